"""The parts of the encoding, each by its docstring: clip, rotation, quantizer, lanes, header words."""

from collections.abc import Callable

import numpy as np
import pytest
from federation.encoding import HEADER_WORDS, Layout, SiteHeader, bin_of, clip, lanes
from federation.encoding.header import LOSS_MAX, read_header, write_header
from federation.encoding.layout import COUNT_MAX
from federation.encoding.quantize import quantize
from federation.encoding.rotation import hadamard, rotate
from federation.errors import EncodingRefused
from federation.plan import TrainingPlan
from federation.vocabulary import Metric
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from tests.contract.mean import unrotate

Make = Callable[..., TrainingPlan]
MakeHeader = Callable[..., SiteHeader]
Deltas = Callable[[int, int], np.ndarray]
SIZES = [1, 2, 5, 64, 1000, 4096, 4097, 45_000, 62_500, 300_000]


@pytest.fixture
def layout_of(make_plan: Make) -> Callable[..., Layout]:
    return lambda parameters, **changes: Layout.of(make_plan(parameters=parameters, **changes), parameters)


# Clip


def test_an_update_within_the_norm_is_left_alone() -> None:
    delta = np.array([0.6, -0.8], np.float32)
    same, was_clipped = clip(delta, 1.0001)
    assert same is delta
    assert not was_clipped


@settings(deadline=None)
@given(size=st.integers(1, 3000), norm=st.floats(1e-3, 1e3), scale=st.floats(1e-10, 1e15))
def test_a_longer_update_keeps_its_direction_and_gets_the_norm(size: int, norm: float, scale: float) -> None:
    delta = (np.random.default_rng(size).standard_normal(size) * scale).astype(np.float32)
    length = np.linalg.norm(delta.astype(np.float64))
    clipped, was_clipped = clip(delta, norm)
    assert was_clipped == (length > norm)
    assert np.linalg.norm(clipped.astype(np.float64)) <= norm * (1 + 1e-6)
    if was_clipped:
        assert np.allclose(clipped.astype(np.float64) / norm, delta.astype(np.float64) / length, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused(bad: float) -> None:
    delta = np.zeros(100_000, np.float32)
    delta[70_000] = bad
    with pytest.raises(EncodingRefused, match="diverged"):
        clip(delta, 1.0)


def test_the_largest_floats_do_not_overflow_the_norm() -> None:
    clipped, was_clipped = clip(np.full(1000, np.finfo(np.float32).max), 1.0)
    assert was_clipped
    assert np.linalg.norm(clipped) == pytest.approx(1.0, rel=1e-5)


# Rotation


@pytest.mark.parametrize("exponent", range(10))
def test_hadamard_is_the_matrix_of_signs_of_the_common_bits(exponent: int) -> None:
    size = 2**exponent
    matrix = np.array([[(-1) ** (row & column).bit_count() for column in range(size)] for row in range(size)])
    vector = np.random.default_rng(0).integers(-1000, 1000, size)
    result = vector.astype(np.float64)
    hadamard(result)
    assert np.array_equal(result, matrix @ vector)


@pytest.mark.parametrize("exponent", [*range(15), 18])
def test_hadamard_twice_is_the_length_times_the_vector_exactly(exponent: int) -> None:
    vector = np.random.default_rng(1).integers(-100_000, 100_000, 2**exponent).astype(np.float64)
    twice = vector.copy()
    hadamard(twice)
    hadamard(twice)
    assert np.array_equal(twice, vector * 2**exponent)


@pytest.mark.parametrize("parameters", SIZES)
def test_rotation_keeps_the_norm_and_is_undone_by_its_inverse(
    layout_of: Callable[..., Layout], heavy_tailed: Deltas, parameters: int
) -> None:
    layout = layout_of(parameters)
    delta = heavy_tailed(parameters, 2)
    rotated = np.concatenate([*rotate(layout, delta, 0.5)])
    assert np.linalg.norm(rotated) == pytest.approx(0.5, rel=1e-5)
    # Whole numbers at a scale of 2^20, as the inverse wants them: twice the level, less 10.
    levels = np.round(rotated.astype(np.float64) * 2**20).astype(np.int64) + 5
    restored = unrotate(layout, levels, 10, 2.0**-20)
    assert restored.shape == (parameters,)
    assert np.abs(restored - delta).max() <= 5e-6


@pytest.mark.parametrize("parameters", [4096, 45_000, 300_000])
def test_rotation_spreads_a_lopsided_update_evenly_over_the_pieces(
    layout_of: Callable[..., Layout], parameters: int
) -> None:
    layout = layout_of(parameters)
    delta = np.random.default_rng(3).standard_normal(parameters).astype(np.float32)
    delta[-parameters // 20 :] *= 20  # the last layer moves most, and lies in the last piece
    rotated = np.concatenate([*rotate(layout, delta / np.linalg.norm(delta), 1.0)])
    start = 0
    for length in layout.pieces:
        energy = float(np.sum(rotated[start : start + length] ** 2)) * layout.coordinates / length
        assert energy == pytest.approx(1.0, abs=0.25)
        start += length


def test_another_seed_gives_another_rotation(layout_of: Callable[..., Layout], heavy_tailed: Deltas) -> None:
    delta = heavy_tailed(45_000, 4)
    first = np.concatenate([*rotate(layout_of(45_000), delta, 1.0)])
    second = np.concatenate([*rotate(layout_of(45_000, **{"encoding.rotation_seed": b"\x01" * 32}), delta, 1.0)])
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(45_000)


def test_the_inverse_refuses_numbers_too_large_to_be_exact(layout_of: Callable[..., Layout]) -> None:
    layout = layout_of(4096)
    with pytest.raises(EncodingRefused):
        unrotate(layout, np.full(4096, 2**40), 0, 1.0)
    unrotate(layout, np.full(4096, 2**40), 1, 1.0)


# Quantizer


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_the_quantizer_is_unbiased_between_any_two_levels(layout_of: Callable[..., Layout], bits: int) -> None:
    layout = layout_of(100, **{"encoding.bits": bits})
    step = 2 * layout.range / layout.level_max
    draws = 20_000
    for place in (0.0, 0.1, 1.5, 2.9, layout.level_max / 2, layout.level_max - 0.7, float(layout.level_max)):
        values = np.full(draws, place * step - layout.range, np.float32)
        levels = quantize(layout, values, np.random.default_rng(int(place * 10)))
        part = place % 1
        five_sigmas = 5 * np.sqrt(max(part * (1 - part), 1e-4) / draws)
        assert levels.mean(dtype=np.float64) == pytest.approx(place, abs=five_sigmas)
        assert set(np.unique(levels)) <= {int(np.floor(place + 1e-4)), int(np.ceil(place - 1e-4)), round(place)}


class _Highest(np.random.Generator):
    """A generator whose every draw is the largest there is."""

    # The encoding calls it in this one way only, so the other forms of numpy's method are left out.
    def integers(self, low: int, high: int, size: int, dtype: type, endpoint: bool) -> np.ndarray:  # type: ignore[override]
        return np.full(size, high, dtype)


class _Every(np.random.Generator):
    """A generator that draws each 16-bit number once."""

    # As above.
    def integers(self, low: int, high: int, size: int, dtype: type, endpoint: bool) -> np.ndarray:  # type: ignore[override]
        return np.arange(4 * size, dtype=np.uint16).view(dtype)


@pytest.mark.parametrize("bits", [4, 8])
def test_over_all_draws_the_mean_level_is_the_place_to_a_65536th_of_a_step(
    layout_of: Callable[..., Layout], bits: int
) -> None:
    layout = layout_of(100, **{"encoding.bits": bits})
    step = 2 * layout.range / layout.level_max
    for place in np.linspace(0, layout.level_max, 40):
        value = np.float32(place * step - layout.range)
        levels = quantize(layout, np.full(2**16, value), _Every(np.random.PCG64(0)))
        # The value itself is rounded to float32, and so is its place: by as much again at the ends of the range.
        assert levels.mean(dtype=np.float64) == pytest.approx(place, abs=2.5 * 2**-16)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("value", [3.4e38, 1.0, -1.0, -3.4e38])
def test_no_value_and_no_draw_leaves_the_levels(layout_of: Callable[..., Layout], bits: int, value: float) -> None:
    layout = layout_of(100, **{"encoding.bits": bits, "encoding.clip_norm": 1e-6})
    with np.errstate(over="ignore"):  # the largest float in units of a tiny step is infinity: clipped like the rest
        levels = quantize(layout, np.full(100, value, np.float32), _Highest(np.random.PCG64(0)))
    assert set(levels) <= ({layout.level_max} if value > 0 else {0, 1})


# Lanes


@pytest.mark.parametrize(("members", "bits"), [(3, 4), (64, 6), (65, 6), (500, 8), (500, 4), (100, 5)])
def test_lanes_hold_the_largest_sum_and_nothing_spills(
    layout_of: Callable[..., Layout], members: int, bits: int
) -> None:
    layout = layout_of(1000, **{"encoding.bits": bits, "cohort.maximum": max(members, 8)})
    width = layout.width_for(members)
    size = layout.vector_words_for(members)
    total, words = np.zeros(size, np.uint64), np.empty(size, np.uint64)
    levels = np.tile(np.array([layout.level_max, 0], np.uint8), 512)[: layout.coordinates]
    lanes.pack(levels, width, words)
    for _ in range(members):
        total += words
    summed = lanes.unpack(total, width, layout.coordinates, members * layout.level_max)
    assert np.array_equal(summed, levels.astype(np.int64) * members)


@settings(deadline=None)
@given(data=st.data(), width=st.integers(4, 17), count=st.integers(1, 300))
def test_packed_numbers_come_back(data: st.DataObject, width: int, count: int) -> None:
    numbers = data.draw(st_numpy.arrays(np.int32, count, elements=st.integers(0, 2**width - 1)))
    words = np.empty(-(-count // (64 // width)), np.uint64)
    lanes.pack(numbers, width, words)
    assert np.array_equal(lanes.unpack(words, width, count, 2**width - 1), numbers)


def test_long_vectors_are_packed_across_chunks() -> None:
    numbers = np.random.default_rng(0).integers(0, 4096, 500_000).astype(np.int32)
    words = np.empty(100_000, np.uint64)
    lanes.pack(numbers, 12, words)
    assert np.array_equal(lanes.unpack(words, 12, 500_000, 4095), numbers)


def test_a_number_past_the_end_of_the_vector_is_refused() -> None:
    words = np.empty(20, np.uint64)
    lanes.pack(np.ones(100, np.int32), 12, words)
    with pytest.raises(EncodingRefused, match="past the end"):
        lanes.unpack(words, 12, 99, 4095)


# Header words


@pytest.mark.parametrize(
    ("logit", "expected"),
    [
        (-np.inf, 0),
        (-9, 0),
        (-8, 0),
        (-7.76, 0),
        (-7.75, 1),
        (-1e-9, 31),
        (0, 32),
        (7.749, 62),
        (7.75, 63),
        (np.inf, 63),
    ],
)
def test_bins_are_a_quarter_logit_wide_with_open_ends(logit: float, expected: int) -> None:
    assert bin_of(np.array([[logit]])).tolist() == [[expected]]


def test_a_logit_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(EncodingRefused):
        bin_of(np.array([0.0, np.nan]))


@settings(deadline=None)
@given(
    studies=st.integers(1, 10**7),
    loss=st.floats(0, LOSS_MAX),
    examples=st.integers(1, COUNT_MAX),
    clipped=st.booleans(),
)
def test_a_header_comes_back_within_a_millionth_of_loss(
    make_plan: Make, make_header: MakeHeader, studies: int, loss: float, examples: int, clipped: bool
) -> None:
    layout = Layout.of(make_plan(), 0)
    histograms = np.arange(768).reshape(6, 2, 64)
    header = make_header(studies=studies, loss_sum=loss, example_count=examples, clipped=clipped, histograms=histograms)
    read = read_header(layout, write_header(layout, header), 1)
    assert (read.weight, read.example_count, read.clipped) == (min(studies, 100), examples, int(clipped))
    assert read.loss_sum == pytest.approx(loss, abs=1e-6)
    assert np.array_equal(read.histograms, histograms)


@pytest.mark.parametrize("metrics", [(), (Metric.LOSS,), (Metric.HISTOGRAMS,)])
def test_a_metric_the_plan_does_not_list_is_not_written(
    make_plan: Make, make_header: MakeHeader, metrics: tuple[Metric, ...]
) -> None:
    layout = Layout.of(make_plan(metrics=metrics), 0)
    header = make_header(loss_sum=1.0, example_count=1, histograms=np.ones((6, 2, 64), np.int64))
    read = read_header(layout, write_header(layout, header), 1)
    assert (read.loss_sum > 0, read.example_count > 0) == (Metric.LOSS in metrics,) * 2
    assert bool(read.histograms.any()) == (Metric.HISTOGRAMS in metrics)


@pytest.mark.parametrize(
    "change",
    [
        {"studies": 0},
        {"studies": -5},
        {"loss_sum": -1.0, "example_count": 1},
        {"loss_sum": float("nan"), "example_count": 1},
        {"loss_sum": float("inf"), "example_count": 1},
        {"loss_sum": 2.0**31 + 1, "example_count": 1},
        {"loss_sum": 1.0, "example_count": 0},
        {"example_count": -1},
        {"example_count": 2**32 + 1},
        {"histograms": np.zeros((6, 2, 63), np.int64)},
        {"histograms": np.zeros((6, 2, 64), np.int32)},
        {"histograms": np.full((6, 2, 64), -1)},
        {"histograms": np.full((6, 2, 64), 2**32 + 1)},
    ],
)
def test_a_header_out_of_range_is_refused(make_header: MakeHeader, change: dict[str, object]) -> None:
    with pytest.raises(EncodingRefused):
        make_header(**change)


# Word, and what three members with a weight cap of 100 cannot have summed to.
IMPOSSIBLE = [
    (0, 2),  # each member has at least one study
    (0, 301),
    (1, 3 * 2**51 + 1),
    (1, 1),  # loss without examples
    (2, 3 * 2**32 + 1),
    (3, 4),
    (4, 3 * 2**32 + 1),
    (HEADER_WORDS - 1, 2**64 - 1),
]


@pytest.mark.parametrize(("word", "value"), IMPOSSIBLE)
def test_a_header_sum_no_cohort_can_have_made_is_refused(make_plan: Make, word: int, value: int) -> None:
    words = np.zeros(HEADER_WORDS, np.uint64)
    words[0] = 3
    words[word] = value
    with pytest.raises(EncodingRefused, match=r"^sum: expected"):
        read_header(Layout.of(make_plan(), 0), words, 3)


@pytest.mark.parametrize("word", [1, 2, 4])
def test_a_metric_the_plan_does_not_list_is_refused_in_a_sum(make_plan: Make, word: int) -> None:
    words = np.zeros(HEADER_WORDS, np.uint64)
    words[0] = 3
    words[word] = 1
    with pytest.raises(EncodingRefused, match=r"^sum: expected"):
        read_header(Layout.of(make_plan(metrics=()), 0), words, 3)


def test_the_largest_sums_of_the_largest_cohort_are_read(make_plan: Make) -> None:
    layout = Layout.of(make_plan(**{"cohort.maximum": 500, "encoding.weight_cap": 1_000_000}), 0)
    words = np.zeros(HEADER_WORDS, np.uint64)
    words[4::64] = 500 * COUNT_MAX  # all slices of a label in one bin
    words[:4] = [500 * 1_000_000, 500 * 2**51, 500 * COUNT_MAX, 500]
    read = read_header(layout, words, 500)
    assert read.loss_sum == 500 * LOSS_MAX
    assert int(read.histograms.max()) == 500 * COUNT_MAX


def test_one_member_counts_no_more_than_the_plan_s_cap(make_plan: Make, make_header: MakeHeader) -> None:
    """Honest sites refuse to write more; a sum in which one claimed more than all may is refused."""
    layout = Layout.of(make_plan(**{"encoding.count_cap": 1000}), 0)
    full = np.zeros((6, 2, 64), np.int64)
    full[:, :, 3], full[:, :, 60] = 400, 600
    words = write_header(layout, make_header(histograms=full, loss_sum=64_000.0, example_count=1000))
    assert read_header(layout, words * np.uint64(3), 3).example_count == 3000
    for changes in (
        {"histograms": full + 1},
        {"example_count": 1001, "loss_sum": 1.0},
        {"example_count": 1000, "loss_sum": 64_001.0},
    ):
        with pytest.raises(EncodingRefused, match="cap"):
            write_header(layout, make_header(**changes))
    for place, more, what in ((4 + 3, 601, "slices of a label"), (2, 1, "an example count"), (1, 2**20, "a loss sum")):
        lie = words * np.uint64(3)
        lie[place] += np.uint64(more)
        with pytest.raises(EncodingRefused, match=what):
            read_header(layout, lie, 3)
