"""Milliseconds of a study of 32 slices in torch and in ONNX Runtime, and what `hemofed-predict` takes, as JSON.

python tests/benchmarks/inference.py [--size 256] [--slices 32] [--repeats 3] [--architectures lite ...]

One thread. The ways take turns, study by study, so that other programs disturb all of them alike; a figure is the least
processor time of the repeats. Weights are fresh and images are noise: neither changes how long the arithmetic takes.
`cold_start_s` is the wall time of the whole program on an empty folder; `study_s` and `memory_mib` are those of the
program with its reader processes on one phantom study, 5 mm a slice and 512 px wide.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.labels import LABELS

from site_client.bedside.bundle import INTENDED_USE, Bundle, BundleDescription, write_bundle
from site_client.bedside.graphs import PackedModel
from site_client.calibration.model import Calibrations
from site_client.model.inputs import PIPELINE_VERSION
from site_client.model.network import CHANNELS, GEOMETRY, SequenceNet
from site_client.model.registry import build
from site_client.packing.export import export
from site_client.packing.quantize import quantize
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes

ARCHITECTURES = ("lite", "densenet121-affine-gru", "densenet121-gru", "efficientnet-lite0-affine-gru")
RANGE_SLICES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for architecture in arguments.architectures:
        results[architecture] = of_architecture(architecture, arguments.size, arguments.slices, arguments.repeats)
        print(json.dumps({architecture: results[architecture]}), file=sys.stderr)
    print(json.dumps({"size_px": arguments.size, "slices": arguments.slices, "architectures": results}, indent=1))


def of_architecture(architecture: str, size_px: int, slices: int, repeats: int) -> dict[str, object]:
    net = build(architecture, 1).eval()
    # every architecture here reads slices
    assert isinstance(net, SequenceNet)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, slices, CHANNELS, size_px, size_px, generator=generator) * 2 - 1
    geometry = torch.rand(1, slices, GEOMETRY, generator=generator)
    mask = torch.ones(1, slices, dtype=torch.bool)
    whole, head = export(net, Calibrations(), size_px)
    packed = quantize(whole, iter(x[0].numpy()[:RANGE_SLICES, None]))
    ways: dict[str, Callable[[], object]] = {
        "torch fp32": lambda: in_torch(net, x, mask, geometry),
        "onnx fp32": in_onnx(PackedModel(whole, head, 1), x, geometry),
        "onnx int8": in_onnx(PackedModel(packed, head, 1), x, geometry),
    }
    least = turns(ways, repeats)
    description = BundleDescription(
        INTENDED_USE,
        architecture,
        "00" * 32,
        size_px,
        slices,
        PIPELINE_VERSION,
        LABELS,
        Calibrations().to_json(),
        {},
        len(packed),
        len(head),
    )
    return {
        "ms_a_study": {name: round(ms, 1) for name, ms in least.items()},
        "times_faster_than_torch": {name: round(least["torch fp32"] / ms, 2) for name, ms in least.items()},
        "trunk_mib": {"onnx fp32": round(len(whole) / 2**20, 1), "onnx int8": round(len(packed) / 2**20, 1)},
        "hemofed-predict": of_program(Bundle(description, packed, head), size_px),
    }


def in_torch(net: SequenceNet, x: torch.Tensor, mask: torch.Tensor, geometry: torch.Tensor) -> object:
    with torch.inference_mode():
        return net(x, mask, geometry)


def in_onnx(model: PackedModel, x: torch.Tensor, geometry: torch.Tensor) -> Callable[[], object]:
    slices, of_slices = x[0].numpy()[:, None], geometry[0].numpy()
    return lambda: model.logits(model.features(slices), of_slices)


def turns(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least processor time of each way in milliseconds, after a first turn that is not counted."""
    least = dict.fromkeys(ways, np.inf)
    for turn in range(repeats + 1):
        for name, work in ways.items():
            start = time.process_time()
            work()
            if turn:
                least[name] = min(least[name], 1000 * (time.process_time() - start))
    return least


def of_program(bundle: Bundle, size_px: int) -> dict[str, object]:
    """Start the program on an empty folder and on one study."""
    key = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory() as folder:
        path, empty, study = Path(folder) / "a.hemofed", Path(folder) / "empty", Path(folder) / "study"
        write_bundle(path, bundle, key)
        empty.mkdir()
        make_set(Order("C", 1, 1, Wishes(size_px=512, thickness_mm=5.0)), study)
        signer = key.public_key().public_bytes_raw().hex()
        options = ["--bundle", str(path), "--signer", signer, "--threads", "1"]
        cold = [started(empty, options) for _ in range(2)]
        answered = started(study / "dicom", options)
    return {
        "cold_start_s": round(min(wall for wall, *_ in cold), 2),
        "cold_start_processor_s": round(min(processor for _, processor, _ in cold), 2),
        "study_s": round(answered[0], 2),
        "study_processor_s": round(answered[1], 2),
        "memory_mib": round(answered[2]),
    }


def started(folder: Path, options: list[str]) -> tuple[float, float, float]:
    """Wall and processor seconds of one call, and the most MiB that all of its processes held at once."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "site_client.bedside.cli", str(folder), *options]
    done = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0.0
    while done.poll() is None:
        most = max(most, held_mib(done))
        time.sleep(0.05)
    # 2: no study in it.
    assert done.returncode in (0, 2), done.returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, processor, most


def held_mib(process: psutil.Process) -> float:
    """Memory of a process and its reader processes; a page that several of them share counts once."""
    held = 0
    for member in [process, *process.children(recursive=True)]:
        # It may have ended since it was listed.
        with suppress(psutil.Error):
            held += member.memory_full_info().pss
    return held / 2**20


if __name__ == "__main__":
    main()
