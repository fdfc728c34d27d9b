"""What unmasking a sum costs the aggregator: secrets from shares, then the masks that did not cancel, off the sum.

    python tests/benchmarks/unmask.py --sites 100 --drops 30 --json unmask.json

The session is real; `drops` members vanish between dealing shares and uploading, the costliest moment. That the sum
comes out right is checked on the session's own short vector before anything is timed. The limit beside each time is
AES-256-CTR alone on this machine: as many streams of the same length, on the same number of threads.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from federation.encoding import Layout
from federation.secagg import Words, recover_masks, unmask
from federation.secagg.masks import CHUNK_BYTES, MaskStreams
from federation.vocabulary import Metric

from tests.contract.secagg_session import Session


def measure(sites: int, drops: int, params: int, members_max: int, threads: list[int]) -> dict[str, object]:
    """Measure the seconds to unmask a sum of `params` parameters over `sites - drops` uploads, by number of threads."""
    session, reconstruct_s, recovered = recovered_session(sites, drops)
    layout = Layout(params, 6, members_max, 1.0, 1000, bytes(32), frozenset(Metric))
    total = np.random.default_rng(0).integers(0, 1 << 64, layout.words, dtype=np.uint64)
    streams = len(recovered.add) + len(recovered.subtract)
    runs = []
    for count in threads:
        seconds = timed(partial(unmask, total, recovered, count))
        limit = timed(partial(keystreams, layout.bytes, streams, count))
        runs.append(
            {
                "threads": count,
                "unmask_s": seconds,
                "total_s": reconstruct_s + seconds,
                "machine_limit_keystream_s": limit,
                "ratio_to_keystream": seconds / limit,
            }
        )
    return {
        "sites": sites,
        "drops": drops,
        "params": params,
        "threshold": session.cohort.threshold,
        "streams": streams,
        "reconstruct_s": reconstruct_s,
        "cores": os.cpu_count(),
        "runs": runs,
        "speedup": runs[0]["total_s"] / runs[-1]["total_s"],
    }


def recovered_session(sites: int, drops: int) -> tuple[Session, float, MaskStreams]:
    """A session played to its end, the seconds that recovering its masks took, and the masks."""
    session = Session(sites, length=3)
    uploaded = session.sites[: sites - drops]
    dealt = session.share_all()
    uploads = session.mask_all(dealt, uploaded)
    confirmations = session.confirm_all(uploaded, uploaded)
    answers = {site: session.members[site].reveal(uploaded, confirmations) for site in uploaded}
    start = time.perf_counter()
    recovered = recover_masks(session.ctx, session.cohort, dealt, uploaded, answers)
    seconds = time.perf_counter() - start
    total: Words = np.add.reduce(list(uploads.values()))
    unmask(total, recovered)
    if not np.array_equal(total, session.plain_sum(uploaded)):
        raise SystemExit("the unmasked sum is wrong, so there is nothing to time")
    return session, seconds, recovered


def keystreams(length: int, streams: int, threads: int) -> None:
    """`streams` keystreams of `length` bytes, shared out among `threads`, thrown away."""

    def some(count: int) -> None:
        zeros, buffer = memoryview(bytes(CHUNK_BYTES)), bytearray(CHUNK_BYTES)
        for _ in range(count):
            cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
            for start in range(0, length, CHUNK_BYTES):
                cipher.update_into(zeros[: min(CHUNK_BYTES, length - start)], buffer)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, [streams * (part + 1) // threads - streams * part // threads for part in range(threads)]))


def timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--drops", type=int, default=30, help="members that deal shares and never upload")
    parser.add_argument("--params", type=int, default=8_000_000, help="length of the update")
    parser.add_argument("--members-max", type=int, default=100, help="largest cohort of the plan, for the lane width")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1, 2, 4, ... up to the cores of this machine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    threads = options.threads or [1 << power for power in range(cores.bit_length())]
    figures = json.dumps(
        measure(options.sites, options.drops, options.params, options.members_max, threads), indent=2, sort_keys=True
    )
    print(figures)
    if options.json:
        options.json.write_text(figures + "\n")


if __name__ == "__main__":
    main()
