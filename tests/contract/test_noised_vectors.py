"""Golden vectors of a private round, checked by a second implementation that shares no code with the first.

The slow one is plain Python with mpmath's numbers, AES block by block, and does what docs/PRIVACY.md and
docs/PROTOCOL.md say. It makes the file under vectors/ (`python tests/contract/test_noised_vectors.py`).
"""

import hashlib
import json
import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpmath  # type: ignore[import-untyped]  # ships no types
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from federation.encoding import HISTOGRAM_SHAPE, Layout
from federation.encoding.noised import encode_noised
from federation.plan import TrainingPlan

from tests.contract.test_encoding_vectors import slow_hadamard, slow_pack, slow_pieces

FILE = Path(__file__).parent / "vectors" / "noised.json"
COINS = bytes(range(100, 132))
SEED = bytes(range(32))  # of the rotation, as in conftest.PLAN
MULTIPLIER, VALIDATION_MULTIPLIER, BATCH, MINIMUM = 2.0, 40.0, 100, 3
CASES = [(10, 8, 3), (300, 5, 4)]  # parameters, largest cohort, members


def gradient_of(parameters: int) -> list[float]:
    return [struct.unpack("<f", struct.pack("<f", math.sin(index * 1.7) * 2))[0] for index in range(parameters)]


def counts_of(word: int) -> int:
    return (word * word + 3 * word) % 5


# The slow implementation.


def slow_words(purpose: int) -> Iterator[int]:
    block = Cipher(algorithms.AES(COINS), modes.ECB()).encryptor()
    number = purpose << 120
    while True:
        stream = block.update(number.to_bytes(16, "big"))
        yield int.from_bytes(stream[:8], "little")
        yield int.from_bytes(stream[8:], "little")
        number += 1


def slow_share(variance: int, members: int) -> int:
    certain = 2 * members // 3 + 1 - max(1, (members - 1) // 3)
    return -(-variance // certain)


def slow_tail(share: int) -> int:
    return math.ceil(12 * math.sqrt(share)) + 48


def slow_half(share: int, tail: int) -> list[Any]:
    """exp(-v) I_k(v) for k = 0 .. tail: I_0 by Hankel's expansion, then ratios by their continued fraction."""
    term, total = mpmath.mpf(1), mpmath.mpf(1)
    for k in range(1, 30):
        term *= mpmath.mpf((2 * k - 1) ** 2) / (k * 8 * share)
        total += term
    ratio, ratios = mpmath.mpf(0), []
    for k in range(3 * tail, 0, -1):
        ratio = 1 / (mpmath.mpf(2 * k) / share + ratio)
        ratios.append(ratio)
    half = [total / mpmath.sqrt(2 * mpmath.pi * share)]
    for ratio in ratios[::-1][:tail]:
        half.append(half[-1] * ratio)
    return half


def slow_noise(share: int, count: int, purpose: int) -> list[int]:
    """Inversion of the distribution function, with 60 digits and 128-bit words."""
    tail, words = slow_tail(share), slow_words(purpose)
    with mpmath.workdps(60):
        half = slow_half(share, tail)
        mass = half[0] + 2 * sum(half[1:])
        assert share < 100 or abs(mass - 1) < mpmath.mpf(10) ** -25  # the tails that are cut, and nothing else
        thresholds, cumulative = [], mpmath.mpf(0)
        for k in range(-tail, tail):
            cumulative += half[abs(k)] / mass
            thresholds.append(int(mpmath.floor(cumulative * 2**128)))
    drawn = []
    for _ in range(count):
        word = next(words) << 64
        below = bisect_right(thresholds, word)
        # 64 bits decide unless a threshold lies among the words that begin with them.
        assert bisect_right(thresholds, word + 2**64 - 1) == below
        drawn.append(below - tail)
    return drawn


def slow_rotation(vector: list[float], length: int) -> list[float]:
    signs = hashlib.shake_256(b"hemofed rotation v1\x00signs\x00" + SEED).digest(-(-length // 8))
    padded = vector + [0.0] * (length - len(vector))
    flipped = [-x if signs[index // 8] >> (index % 8) & 1 else x for index, x in enumerate(padded)]
    return [x / math.sqrt(length) for x in slow_hadamard(flipped)]  # type: ignore[arg-type]  # floats add up as well


def slow_case(parameters: int, maximum: int, members: int) -> dict[str, Any]:
    (length,) = slow_pieces(parameters)
    steps = max(1024.0, 2 * math.sqrt(length))
    cross = math.sqrt(2 * math.log(1e10)) * (steps + math.sqrt(length) / 2)
    longest = 1.001 * min(steps + math.sqrt(length), math.sqrt(steps**2 + length / 4 + cross))
    variance = math.ceil((MULTIPLIER * longest) ** 2)
    bound = math.ceil(5 * steps * BATCH / math.sqrt(length)) + 1
    tails = [slow_tail(slow_share(variance, cohort)) for cohort in range(MINIMUM, maximum + 1)]
    top = 2 * (bound + max(tails))
    dither = slow_words(0)
    rounded = [
        math.floor(min(bound, max(-bound, x * steps)) + (next(dither) >> 11) / 2**53)
        for x in slow_rotation(gradient_of(parameters), length)
    ]
    noise = slow_noise(slow_share(variance, members), length, 1)
    levels = [x + y + top // 2 for x, y in zip(rounded, noise, strict=True)]
    width = (maximum * top).bit_length()
    of_validation = slow_share(math.ceil(VALIDATION_MULTIPLIER**2 * 6), members)
    cells = slow_noise(of_validation, 192, 2)
    header = [1, 0, 0, 0] + [0] * 768
    for cell in range(192):
        header[4 + 4 * cell] = (sum(counts_of(4 * cell + k) for k in range(4)) + cells[cell]) % 2**64
    words = header + slow_pack(levels, width)
    return {
        "parameters": parameters,
        "cohort_maximum": maximum,
        "members": members,
        "variance": variance,
        "level_max": top,
        "lane_width": width,
        "first_levels": levels[:4],
        "upload_sha256": hashlib.sha256(struct.pack(f"<{len(words)}Q", *words)).hexdigest(),
    }


# Both held against the file.


def _file() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(FILE.read_text())["cases"]
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_slow_implementation_agrees_with_the_file(number: int) -> None:
    assert slow_case(*CASES[number]) == _file()[number]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_fast_implementation_agrees_with_the_file(
    make_private_plan: Callable[..., TrainingPlan], number: int
) -> None:
    golden = _file()[number]
    parameters = golden["parameters"]
    layout = Layout.of_round(
        make_private_plan(
            parameters=parameters, maximum=golden["cohort_maximum"], validation_multiplier=VALIDATION_MULTIPLIER
        ),
        1,
    )
    assert layout.gradient is not None
    assert (layout.gradient.noise.variance, layout.level_max) == (golden["variance"], golden["level_max"])
    assert layout.lane_width == golden["lane_width"]
    gradient = np.array(gradient_of(parameters), np.float32)
    histograms = np.array([counts_of(word) for word in range(768)], np.int64).reshape(HISTOGRAM_SHAPE)
    words = encode_noised(layout, gradient, histograms, golden["members"], COINS)
    first = words[772:].astype("<u8")
    lane = np.uint64((1 << layout.lane_width) - 1)
    assert [int(word & lane) for word in first[:4]] == golden["first_levels"]
    assert hashlib.sha256(words.astype("<u8").tobytes()).hexdigest() == golden["upload_sha256"]


if __name__ == "__main__":
    about = "Made by tests/contract/test_noised_vectors.py; inputs are gradient_of and counts_of in it."
    FILE.write_text(json.dumps({"about": about, "cases": [slow_case(*case) for case in CASES]}, indent=1) + "\n")
