"""How long a phantom study takes, as JSON: seconds, and the ratio to a bare Gaussian filter of the same volume.

python tests/benchmarks/phantom.py [--size-px 256] [--slices 36] [--repeats 3]

One core; the best of the repeats counts. The ratio is what travels between machines, the seconds are printed beside it.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from site_client.phantom.profiles import PROFILES
from site_client.phantom.streams import PhantomStreams
from site_client.phantom.study import Wishes, make_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--slices", type=int, default=36)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    volume = np.random.default_rng(1).standard_normal(
        (arguments.slices, arguments.size_px, arguments.size_px), dtype=np.float32
    )
    bare_s = best_s(lambda: ndimage.gaussian_filter(volume, 1.0), arguments.repeats)
    slices: list[int] = []
    study_s = best_s(lambda: slices.append(make(arguments.size_px, 150.0 / arguments.slices)), arguments.repeats)
    per_study_s = study_s * arguments.slices / slices[-1]
    print(
        json.dumps(
            {
                "size_px": arguments.size_px,
                "slices_made": slices[-1],
                "slices_asked": arguments.slices,
                "study_s": round(per_study_s, 3),
                "gaussian_filter_s": round(bare_s, 4),
                "ratio_to_gaussian_filter": round(per_study_s / bare_s, 1),
            },
            indent=1,
        )
    )


def make(size_px: int, thickness_mm: float) -> int:
    streams = PhantomStreams.of("C", 1, 1)
    profile = PROFILES["C"]
    wishes = Wishes(size_px=size_px, thickness_mm=thickness_mm, prevalence="balanced")
    return make_study(streams, streams, profile.patients, profile.scanner, wishes).scan.slices


def best_s(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the fastest of some runs."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


if __name__ == "__main__":
    main()
