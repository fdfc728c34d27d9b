"""What protecting one upload costs a site: rotate, quantize, pack and mask, against the bare keystream of its masks.

    python tests/benchmarks/masking.py --params 8000000 --neighbors 32 --json masking.json

The member is a real one in a real session: it receives every neighbor's shares, agrees every key and digests the words.
The limit beside it is AES-256-CTR alone on this machine, the same number of streams of the same length, in the same
chunks. Runs alternate; the figures are medians.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from federation.encoding import HISTOGRAM_SHAPE, Layout, SiteHeader, encode
from federation.secagg import DealtShares, Member, Words
from federation.secagg.masks import CHUNK_BYTES
from federation.vocabulary import Metric

from tests.contract.secagg_session import Session, addressed_to

T = TypeVar("T")


def measure(params: int, neighbors: int, members_max: int, repeats: int) -> dict[str, float]:
    """Seconds and ratios of one upload of `params` parameters, masked towards `neighbors` other members."""
    rng = np.random.default_rng(0)
    layout = Layout(params, 6, members_max, 1.0, 1000, rng.bytes(32), frozenset(Metric))
    delta = rng.standard_normal(params, dtype=np.float32)
    delta /= np.linalg.norm(delta)
    header = SiteHeader(500, 1.0, 500, False, np.zeros(HISTOGRAM_SHAPE, np.int64))
    session = Session(neighbors + 1)
    site = session.sites[0]
    shares = addressed_to(site, session.share_all())
    saved = session.members[site].to_bytes()
    encode_s, mask_s, keystream_s = [], [], []
    for _ in range(repeats):
        words, seconds = timed(lambda: encode(layout, delta, header, rng))
        encode_s.append(seconds)
        member = Member.from_bytes(saved, session.signing_keys[site])
        mask_s.append(timed(partial(receive_and_mask, member, words, shares))[1])
        keystream_s.append(timed(partial(keystream, words.nbytes, neighbors + 1))[1])
    encoding, masking, limit = (statistics.median(one) for one in (encode_s, mask_s, keystream_s))
    streamed = layout.bytes * (neighbors + 1)
    return {
        "params": params,
        "neighbors": neighbors,
        "members_max": members_max,
        "upload_bytes": layout.bytes,
        "bytes_per_parameter": layout.bytes / params,
        "rotate_quantize_pack_s": encoding,
        "mask_s": masking,
        "total_s": encoding + masking,
        "machine_limit_keystream_s": limit,
        "machine_limit_gb_per_s": streamed / limit / 1e9,
        "ratio_to_keystream": (encoding + masking) / limit,
        "mask_ratio_to_keystream": masking / limit,
    }


def receive_and_mask(member: Member, words: Words, shares: Mapping[str, DealtShares]) -> None:
    member.receive(shares)
    member.mask(words, shares)


def keystream(length: int, streams: int) -> None:
    """`streams` AES-256-CTR keystreams of `length` bytes, thrown away."""
    zeros, buffer = memoryview(bytes(CHUNK_BYTES)), bytearray(CHUNK_BYTES)
    for _ in range(streams):
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        for start in range(0, length, CHUNK_BYTES):
            cipher.update_into(zeros[: min(CHUNK_BYTES, length - start)], buffer)


def timed(step: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = step()
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, default=8_000_000, help="length of the update")
    parser.add_argument("--neighbors", type=int, default=32, help="other members of the cohort, one mask each")
    parser.add_argument("--members-max", type=int, default=64, help="largest cohort of the plan, for the lane width")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    figures = json.dumps(
        measure(options.params, options.neighbors, options.members_max, options.repeats), indent=2, sort_keys=True
    )
    print(figures)
    if options.json:
        options.json.write_text(figures + "\n")


if __name__ == "__main__":
    main()
