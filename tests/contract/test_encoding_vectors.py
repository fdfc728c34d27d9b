"""Golden vectors of encoding and chain, checked by a second implementation that shares no code with the first.

The slow one below is plain Python on whole numbers and floats and does what docs/PROTOCOL.md says. It makes the file
under vectors/ (`python tests/contract/test_encoding_vectors.py`); the tests hold both implementations against it, so
that a change of the bytes on the wire, or of one bit of a model, cannot go unnoticed.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation.chain import next_model
from federation.encoding import HISTOGRAM_SHAPE, Layout, SiteHeader, decode_sum, lanes, pack_sum
from federation.encoding.header import write_header
from federation.gate import Comparison, Comparisons, Gate, Verdict, judge
from federation.manifest import Manifest, Model, TensorSpec
from federation.plan import ServerKind, ServerOptimizer, TrainingPlan

from tests.contract.mean import mean_update

FILE = Path(__file__).parent / "vectors" / "encoding.json"
SEED = bytes(range(7, 39))
CLIP_NORM, WEIGHT_CAP = 2.5, 100
SIGMAS = {4: 2.5, 5: 3.0, 6: 3.0, 8: 4.0}

# parameters, bits, largest cohort, members, whether the plan has a gate
CASES = [
    (10, 6, 64, 3, False),
    (4096, 4, 500, 5, False),
    (5000, 8, 8, 3, False),
    (270_000, 6, 64, 3, False),
    (10, 6, 64, 4, True),
]
CLIP, PATIENTS_MAX, POSITIVES_MIN = 0.25, 16, 50  # of the gate
AUC_CLIP = 0.05
SERVERS = {
    "FEDAVG": (0.7, 0.0, 0.0, 0.0),
    "FEDAVGM": (0.7, 0.9, 0.0, 0.0),
    "FEDADAM": (0.01, 0.9, 0.99, 0.001),
    "FEDYOGI": (0.01, 0.9, 0.99, 0.001),
}


# What every member has, so that both implementations and both rounds start from the same.


def member_levels(count: int, bits: int, member: int) -> list[int]:
    """Around the middle, as those of an update within its clip norm are."""
    spread = max(2, 2**bits // 8)
    lowest = 2 ** (bits - 1) - spread
    return [lowest + (index * index * 31 + index * 7 + member * 101) % (2 * spread) for index in range(count)]


def member_header(member: int) -> list[int]:
    """Word values: weight, loss in 2^-20, examples, clipped, histogram bins."""
    return [min(60 + 30 * member, WEIGHT_CAP), 123_456 * (member + 1), 40 + member, member % 2] + [
        (word * 5 + member) % 11 for word in range(768)
    ]


def member_comparison(member: int) -> list[float]:
    """The differences of the losses of each patient. The first member has none."""
    return [((7 * patient + member) % 5 - 1) / 16 for patient in range(4 * member)]


def member_label(member: int, label: int) -> tuple[float, int]:
    """A label's loss of AUC at a member, and its positives. The first member has none."""
    return ((3 * label + member) % 5 - 1) / 64, 4 << label % 4 if member else 0


def base_weight(index: int) -> float:
    return (index % 17 - 8) / 16


# The slow implementation.


def slow_pieces(parameters: int) -> list[int]:
    def above(number: int) -> int:
        power = 1
        while power < number:
            power *= 2
        return power

    if parameters <= 4096:
        return [above(parameters)]
    slack, pieces, left = parameters // 20, [], parameters
    smallest = 1
    while smallest * 2 <= slack:
        smallest *= 2
    while left > 0:
        length = max(above(left), smallest)
        if length - left > slack:
            length //= 2
        pieces.append(length)
        left -= length
    return pieces


def slow_stream(purpose: bytes, length: int) -> bytes:
    return hashlib.shake_256(b"hemofed rotation v1\x00" + purpose + b"\x00" + SEED).digest(length)


def slow_order(coordinates: int) -> list[int]:
    """Old place of each coordinate that the shuffle brings to 0, 1, 2, ..."""
    block = 1 if coordinates <= 2**18 else 16
    blocks = coordinates // block
    stream = slow_stream(b"shuffle", 8 * blocks)
    draws = [int.from_bytes(stream[8 * number : 8 * number + 8], "little") >> 24 for number in range(blocks)]
    order = sorted(range(blocks), key=lambda number: (draws[number], number))
    return [number * block + inside for number in order for inside in range(block)]


def slow_hadamard(vector: list[int]) -> list[int]:
    if len(vector) == 1:
        return vector
    half = len(vector) // 2
    left, right = vector[:half], vector[half:]
    return slow_hadamard([a + b for a, b in zip(left, right, strict=True)]) + slow_hadamard(
        [a - b for a, b in zip(left, right, strict=True)]
    )


def slow_mean(parameters: int, bits: int, members: int, levels: list[int], weight: int) -> list[float]:
    top = 2**bits - 1
    pieces = slow_pieces(parameters)
    half_step = SIGMAS[bits] * CLIP_NORM / math.sqrt(parameters) / top
    factor = half_step * WEIGHT_CAP / weight
    shuffled: list[float] = []
    start = 0
    for length in pieces:
        whole = [2 * level - members * top for level in levels[start : start + length]]
        scale = factor / math.sqrt(length)
        shuffled += [number * scale for number in slow_hadamard(whole)]
        start += length
    mean = list(shuffled)
    if len(pieces) > 1:
        for place, old in enumerate(slow_order(sum(pieces))):
            mean[old] = shuffled[place]
    signs = slow_stream(b"signs", -(-len(mean) // 8))
    return [-x if signs[index // 8] >> (index % 8) & 1 else x for index, x in enumerate(mean)][:parameters]


def slow_pack(levels: list[int], width: int) -> list[int]:
    count = 64 // width
    size = -(-len(levels) // count)
    words = [0] * size
    for index, level in enumerate(levels):
        words[index % size] |= level << (width * (index // size))
    return words


def slow_width(bits: int, members: int) -> int:
    width = 1
    while 2**width <= members * (2**bits - 1):
        width += 1
    return width


def slow_step(kind: str, mean: float, first: float, second: float) -> tuple[float, float, float]:
    _, beta1, beta2, tau = SERVERS[kind]
    if kind == "FEDAVG":
        return mean, first, second
    if kind == "FEDAVGM":
        first = beta1 * first + mean
        return first, first, second
    first = beta1 * first + (1.0 - beta1) * mean
    square = mean * mean
    if kind == "FEDADAM":
        second = beta2 * second + (1.0 - beta2) * square
    else:
        second = second - (1.0 - beta2) * square * ((second > square) - (second < square))
    return first / (math.sqrt(second) + tau), first, second


def slow_model_digest(kind: str, means: list[list[float]]) -> str:
    """Digest after one round for each mean update."""
    parameters = len(means[0])
    rate, _, _, tau = SERVERS[kind]
    weights = [base_weight(index) for index in range(parameters)]
    firsts, seconds = [0.0] * parameters, [tau * tau] * parameters
    for mean in means:
        for index in range(parameters):
            step, firsts[index], seconds[index] = slow_step(kind, mean[index], firsts[index], seconds[index])
            weights[index] = struct.unpack("<f", struct.pack("<f", weights[index] + rate * step))[0]
    states = {"FEDAVG": [], "FEDAVGM": [firsts]}.get(kind, [firsts, seconds])
    name, number = b"weights", parameters
    tensor = bytes([0x0A, len(name)]) + name + bytes([0x12, len(slow_varint(number))]) + slow_varint(number)
    manifest = hashlib.sha256(b"hemofed manifest v1\x00" + bytes([0x0A, len(tensor)]) + tensor).digest()
    model = b"hemofed model v1\x00" + manifest + struct.pack(f"<{parameters}f", *weights)
    model += struct.pack("<I", len(states)) + b"".join(struct.pack(f"<{parameters}d", *state) for state in states)
    return hashlib.sha256(model).hexdigest()


def slow_varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def slow_comparison(member: int) -> list[int]:
    differences = [Fraction(value) for value in member_comparison(member)]
    shifted = sum(value + Fraction(CLIP) for value in differences)
    squares = sum(value * value for value in differences)
    patients = len(differences)
    words = [round(shifted * 2**20), round(squares * 2**20), patients, min(patients, 1)]
    for label in range(6):
        auc, positives = member_label(member, label)
        shifted, squares = (Fraction(auc) + Fraction(AUC_CLIP)) * positives, Fraction(auc) ** 2 * positives
        words += [round(shifted * 2**20), round(squares * 2**20), positives, min(positives, 1)]
    return words


def slow_verdict(headers: list[list[int]]) -> dict[str, Any]:
    """In fractions: the sums of words 772 to 799, the means, and whether both conditions on each hold at margin 0."""
    sums = [Fraction(sum(header[place] for header in headers)) for place in range(772, 800)]
    means, refused = [], False
    for start in range(0, 28, 4):
        shifted, squares, cases, sites = sums[start : start + 4]
        clip, cases_max = (CLIP, PATIENTS_MAX) if start == 0 else (AUC_CLIP, 32)
        total = shifted / 2**20 - Fraction(clip) * cases
        mean = total / cases
        # mean > 1.5 standard errors, both sides squared, as no root of a fraction is one.
        variance = (squares / 2**20 / cases - mean * mean) / (cases if start == 0 else sites - 1)
        is_certain = mean > 0 and mean * mean > Fraction(9, 4) * variance
        of_one = min(Fraction(cases_max), cases - 4 * (sites - 1))
        without_one = (total - Fraction(clip) * of_one) / cases
        enough = sites >= 3 and (start == 0 or cases >= POSITIVES_MIN)
        refused = refused or (is_certain and without_one > 0 and enough)
        means.append([float(mean).hex(), float(without_one).hex()])
    return {"means": means, "refused": refused}


def slow_case(parameters: int, bits: int, maximum: int, members: int, gated: bool) -> dict[str, Any]:
    pieces = slow_pieces(parameters)
    each = [member_levels(sum(pieces), bits, member) for member in range(members)]
    headers = [member_header(member) + (slow_comparison(member) if gated else []) for member in range(members)]
    levels = [sum(column) for column in zip(*each, strict=True)]
    header = [sum(column) for column in zip(*headers, strict=True)]
    first_upload = headers[0] + slow_pack(each[0], slow_width(bits, maximum))
    published = header + slow_pack(levels, slow_width(bits, members))
    mean = slow_mean(parameters, bits, members, levels, header[0])
    return {
        "parameters": parameters,
        "bits": bits,
        "cohort_maximum": maximum,
        "members": members,
        "pieces": pieces,
        "upload_words": len(first_upload),
        "first_upload_sha256": _sha256_of_words(first_upload),
        "published_bytes": 8 * len(published),
        "published_sha256": _sha256_of_words(published),
        "mean_first": [value.hex() for value in mean[:4]],
        "mean_sha256": hashlib.sha256(struct.pack(f"<{parameters}d", *mean)).hexdigest(),
        "model_after_two_rounds": {kind: slow_model_digest(kind, [mean, mean]) for kind in SERVERS},
        **({"gate": slow_verdict(headers)} if gated else {}),
    }


def _sha256_of_words(words: list[int]) -> str:
    return hashlib.sha256(struct.pack(f"<{len(words)}Q", *words)).hexdigest()


# Both held against the file.


def _file() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(FILE.read_text())["cases"]
    return cases


def _marked(number: int) -> Any:
    parameters = CASES[number][0]
    marks = [pytest.mark.slow] if parameters > 10_000 else []  # seconds of plain Python
    return pytest.param(number, id=f"{parameters} parameters", marks=marks)


@pytest.mark.parametrize("number", [_marked(number) for number in range(len(CASES))])
def test_the_slow_implementation_agrees_with_the_file(number: int) -> None:
    assert slow_case(*CASES[number]) == _file()[number]


@pytest.fixture(params=range(len(CASES)), ids=[f"{case[0]} parameters" for case in CASES])
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    number: int = request.param
    return _file()[number]


def _plan(make_plan: Callable[..., TrainingPlan], case: dict[str, Any], kind: str) -> TrainingPlan:
    changes = {
        "encoding.bits": case["bits"],
        "encoding.clip_norm": CLIP_NORM,
        "encoding.weight_cap": WEIGHT_CAP,
        "encoding.rotation_seed": SEED,
        "cohort.maximum": case["cohort_maximum"],
    }
    server = ServerOptimizer(ServerKind[kind], *SERVERS[kind])
    gate = Gate(0.0, 1.5, CLIP, PATIENTS_MAX, 0.0, POSITIVES_MIN) if "gate" in case else None
    manifest = Manifest((TensorSpec("weights", (case["parameters"],)),))
    return make_plan(manifest=manifest, server=server, gate=gate, **changes)


def _upload(layout: Layout, bits: int, member: int) -> np.ndarray:
    """What `encode` writes once the coordinates are quantized; the draws before it are a site's own."""
    weight, loss, examples, clipped, *bins = member_header(member)
    histograms = np.array(bins, np.int64).reshape(HISTOGRAM_SHAPE)
    comparisons = Comparisons()
    if layout.gate is not None:
        differences = member_comparison(member)
        squares = sum(value * value for value in differences)
        losses = Comparison(sum(differences), squares, len(differences), min(len(differences), 1))
        labels = [member_label(member, label) for label in range(6)]
        comparisons = Comparisons(
            losses, tuple(Comparison(auc * count, auc * auc * count, count, min(count, 1)) for auc, count in labels)
        )
    words = np.empty(layout.words, np.uint64)
    words[: layout.header_words] = write_header(
        layout, SiteHeader(weight, loss * 2.0**-20, examples, bool(clipped), histograms, comparisons)
    )
    levels = np.array(member_levels(layout.coordinates, bits, member), np.uint8)
    lanes.pack(levels, layout.lane_width, words[layout.header_words :])
    return words


def test_the_fast_implementation_agrees_with_the_file(
    make_plan: Callable[..., TrainingPlan], golden: dict[str, Any]
) -> None:
    layout = Layout.of(_plan(make_plan, golden, "FEDAVG"), golden["parameters"])
    assert list(layout.pieces) == golden["pieces"]
    assert layout.words == golden["upload_words"]
    uploads = [_upload(layout, golden["bits"], member) for member in range(golden["members"])]
    assert hashlib.sha256(uploads[0].astype("<u8").tobytes()).hexdigest() == golden["first_upload_sha256"]

    opened = decode_sum(layout, np.sum(uploads, axis=0, dtype=np.uint64), golden["members"])
    published = pack_sum(layout, opened)
    assert len(published) == golden["published_bytes"]
    assert hashlib.sha256(published).hexdigest() == golden["published_sha256"]

    if layout.gate is not None:
        judgement = judge(layout.gate, opened.header.comparisons, 3)
        figures = [(found.mean, found.without_one) for found in (judgement.loss, *judgement.labels)]
        golden_figures = [[float.fromhex(value) for value in pair] for pair in golden["gate"]["means"]]
        # The clip of AUC is no fraction of a power of two: float64 rounds where fractions do not.
        np.testing.assert_allclose(figures, golden_figures, rtol=0, atol=1e-12)
        assert golden["gate"]["refused"] == (judgement.verdict is Verdict.REFUSED)

    mean = mean_update(layout, opened)
    assert [float(value).hex() for value in mean[:4]] == golden["mean_first"]
    assert hashlib.sha256(mean.astype("<f8").tobytes()).hexdigest() == golden["mean_sha256"]

    for kind, digest in golden["model_after_two_rounds"].items():
        plan = _plan(make_plan, golden, kind)
        weights = np.array([base_weight(index) for index in range(golden["parameters"])], np.float32)
        model = next_model(plan, Model(plan.manifest, weights), opened)
        assert next_model(plan, model, opened).digest.hex() == digest


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    about = "Made by tests/contract/test_encoding_vectors.py; inputs are the functions member_* and base_weight in it."
    FILE.write_text(json.dumps({"about": about, "cases": [slow_case(*case) for case in CASES]}, indent=1) + "\n")
