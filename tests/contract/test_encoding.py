"""federation.encoding end to end: what sites encode, summed, opens to what the sites had; nothing else opens."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from federation.encoding import (
    HEADER_WORDS,
    DecodedSum,
    Layout,
    SiteHeader,
    clip,
    decode_sum,
    encode,
    pack_sum,
    unpack_sum,
)
from federation.errors import EncodingRefused, Malformed
from federation.plan import TrainingPlan
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.mean import mean_update

Make = Callable[..., TrainingPlan]
MakeHeader = Callable[..., SiteHeader]
Deltas = Callable[[int, int], np.ndarray]

# NMSE per site, PROTOCOL.md. A short vector is only roughly Gaussian after rotation, so it may miss by a sixth.
TARGETS = [(8, 1.7e-4), (6, 1.9e-3), (5, 6.7e-3), (4, 2.1e-2)]


def _sum(layout: Layout, uploads: list[np.ndarray]) -> DecodedSum:
    total = np.zeros(layout.words, np.uint64)
    for words in uploads:
        total += words
    return decode_sum(layout, total, len(uploads))


@pytest.mark.parametrize(("bits", "target"), TARGETS)
@pytest.mark.parametrize("parameters", [1_000_000, 1_400_000], ids=["one piece", "three pieces"])
def test_one_sites_heavy_tailed_update_opens_within_the_promised_error(
    make_plan: Make, make_header: MakeHeader, heavy_tailed: Deltas, bits: int, target: float, parameters: int
) -> None:
    layout = Layout.of(make_plan(parameters=parameters, **{"encoding.bits": bits}), parameters)
    delta = heavy_tailed(parameters, 1)
    opened = _sum(layout, [encode(layout, delta, make_header(), np.random.default_rng(2))])
    assert np.sum((mean_update(layout, opened) - delta) ** 2) <= target


@pytest.mark.parametrize(("bits", "target"), TARGETS)
@pytest.mark.parametrize("parameters", [62_500, 45_000, 300_000], ids=["one piece", "three pieces", "in blocks"])
def test_a_short_update_opens_within_a_sixth_more(
    make_plan: Make, make_header: MakeHeader, heavy_tailed: Deltas, bits: int, target: float, parameters: int
) -> None:
    layout = Layout.of(make_plan(parameters=parameters, **{"encoding.bits": bits}), parameters)
    delta = heavy_tailed(parameters, 1)
    rng = np.random.default_rng(2)
    sums = [_sum(layout, [encode(layout, delta, make_header(), rng)]) for _ in range(4)]
    assert np.mean([np.sum((mean_update(layout, one) - delta) ** 2) for one in sums]) <= target * 7 / 6


def test_thirty_two_sites_at_4_bits_open_to_their_mean_within_the_promised_error(
    make_plan: Make, make_header: MakeHeader, heavy_tailed: Deltas
) -> None:
    layout = Layout.of(make_plan(parameters=30_000, **{"encoding.bits": 4}), 30_000)
    common = heavy_tailed(30_000, 0)
    deltas = [clip((common + heavy_tailed(30_000, site)).astype(np.float32), 1.0)[0] for site in range(32)]
    rng = np.random.default_rng(3)
    opened = _sum(layout, [encode(layout, delta, make_header(), rng) for delta in deltas])
    mean = np.mean(deltas, axis=0)
    assert np.sum((mean_update(layout, opened) - mean) ** 2) / np.sum(mean**2) <= 5e-3


@pytest.mark.parametrize("members", [1, 3, 7])
def test_the_mean_is_weighted_by_studies_up_to_the_cap(
    make_plan: Make, make_header: MakeHeader, heavy_tailed: Deltas, members: int
) -> None:
    layout = Layout.of(make_plan(parameters=5000, **{"encoding.bits": 8}), 5000)
    studies = [20, 100, 900, 50, 70, 100, 3][:members]
    deltas = [heavy_tailed(5000, site) for site in range(members)]
    rng = np.random.default_rng(4)
    uploads = [encode(layout, delta, make_header(studies=n), rng) for delta, n in zip(deltas, studies, strict=True)]
    opened = _sum(layout, uploads)
    weights = [min(n, 100) for n in studies]
    assert opened.header.weight == sum(weights)
    expected = np.average(deltas, axis=0, weights=weights)
    assert np.sum((mean_update(layout, opened) - expected) ** 2) / np.sum(expected**2) < 1e-2


@pytest.mark.parametrize("parameters", [1, 2, 3, 17, 1000, 4096, 4097, 45_000, 62_500, 300_000])
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_a_published_sum_comes_back_as_it_was(
    make_plan: Make, make_header: MakeHeader, parameters: int, bits: int
) -> None:
    layout = Layout.of(make_plan(parameters=parameters, **{"encoding.bits": bits}), parameters)
    delta = np.full(parameters, 0.5 / np.sqrt(parameters), np.float32)
    rng = np.random.default_rng(5)
    opened = _sum(layout, [encode(layout, delta, make_header(loss_sum=0.5, example_count=2), rng) for _ in range(3)])
    data = pack_sum(layout, opened)
    again = unpack_sum(layout, data, 3)
    assert len(data) == layout.sum_bytes_for(3)
    assert np.array_equal(again.levels, opened.levels)
    assert np.array_equal(again.header_words, opened.header_words)
    assert again.header.loss_sum == 1.5
    assert pack_sum(layout, again) == data


def test_an_evaluation_only_round_is_header_words_and_nothing_else(make_plan: Make, make_header: MakeHeader) -> None:
    layout = Layout.of(make_plan(), 0)
    histograms = np.arange(768).reshape(6, 2, 64)
    words = encode(layout, None, make_header(histograms=histograms), np.random.default_rng(0))
    assert words.shape == (HEADER_WORDS,)
    opened = _sum(layout, [words, words])
    assert opened.levels.size == 0
    assert np.array_equal(opened.header.histograms, 2 * histograms)
    assert unpack_sum(layout, pack_sum(layout, opened), 2).header.weight == 200


@pytest.mark.parametrize(("parameters", "limit"), [(8_000_000, 1.70), (6_970_000, 1.70), (8_220_000, 1.70)])
def test_an_upload_of_64_sites_at_6_bits_costs_at_most_1_7_bytes_a_parameter(
    make_plan: Make, parameters: int, limit: float
) -> None:
    layout = Layout.of(make_plan(parameters=parameters), parameters)
    assert layout.bytes / parameters <= limit


@settings(max_examples=300)
@given(parameters=st.integers(1, 2**28), bits=st.sampled_from([4, 5, 6, 8]), maximum=st.integers(8, 500))
def test_padding_never_costs_more_than_a_twentieth_and_lanes_hold_every_sum(
    make_plan: Make, parameters: int, bits: int, maximum: int
) -> None:
    plan = make_plan(parameters=parameters, **{"encoding.bits": bits, "cohort.maximum": maximum})
    layout = Layout.of(plan, parameters)
    assert all(piece & (piece - 1) == 0 for piece in layout.pieces)
    assert all(first >= second for first, second in pairwise(layout.pieces))
    assert layout.coordinates >= parameters
    if parameters > 4096:
        assert layout.coordinates <= parameters * 1.05
        assert layout.pieces[-1] >= parameters / 41
    assert maximum * layout.level_max < 2**layout.lane_width
    assert layout.lane_width <= bits + (maximum - 1).bit_length()
    assert (layout.words - HEADER_WORDS) * (64 // layout.lane_width) >= layout.coordinates


@pytest.mark.parametrize("parameters", [1, 36, 38])
def test_a_layout_for_another_model_is_refused(make_plan: Make, parameters: int) -> None:
    with pytest.raises(EncodingRefused):
        Layout.of(make_plan(), parameters)


@pytest.mark.parametrize(
    "delta",
    [
        pytest.param(None, id="none"),
        pytest.param(np.zeros(36, np.float32), id="too short"),
        pytest.param(np.zeros(37), id="float64"),
        pytest.param(np.ones(37, np.float32), id="not clipped"),
        pytest.param(np.full(37, np.nan, np.float32), id="NaN"),
        pytest.param(np.full(37, np.inf, np.float32), id="infinity"),
    ],
)
def test_an_update_that_cannot_be_encoded_is_refused(
    make_plan: Make, make_header: MakeHeader, delta: np.ndarray | None
) -> None:
    with pytest.raises(EncodingRefused):
        encode(Layout.of(make_plan(), 37), delta, make_header(), np.random.default_rng(0))


def test_an_update_in_an_evaluation_only_round_is_refused(make_plan: Make, make_header: MakeHeader) -> None:
    with pytest.raises(EncodingRefused):
        encode(Layout.of(make_plan(), 0), np.zeros(37, np.float32), make_header(), np.random.default_rng(0))


@pytest.fixture
def opened_words(make_plan: Make, make_header: MakeHeader) -> tuple[Layout, np.ndarray]:
    layout = Layout.of(make_plan(parameters=1000), 1000)
    rng = np.random.default_rng(6)
    words = sum(encode(layout, np.zeros(1000, np.float32), make_header(), rng) for _ in range(3))
    return layout, np.asarray(words, np.uint64)


@pytest.mark.parametrize("members", [0, -1, 65])
def test_a_number_of_members_the_plan_does_not_allow_is_refused(
    opened_words: tuple[Layout, np.ndarray], members: int
) -> None:
    layout, words = opened_words
    with pytest.raises(EncodingRefused):
        decode_sum(layout, words, members)
    with pytest.raises(EncodingRefused):
        unpack_sum(layout, b"", members)


def test_words_of_another_length_or_type_are_refused(opened_words: tuple[Layout, np.ndarray]) -> None:
    layout, words = opened_words
    wrong_words: list[Any] = [words[:-1], words.astype(np.int64), np.append(words, words[:1])]
    for wrong in wrong_words:
        with pytest.raises(EncodingRefused):
            decode_sum(layout, wrong, 3)


def test_a_sum_that_still_carries_a_mask_is_refused(opened_words: tuple[Layout, np.ndarray]) -> None:
    layout, words = opened_words
    mask = np.random.default_rng(7).integers(0, 2**64, words.size, np.uint64)
    with pytest.raises(EncodingRefused):
        decode_sum(layout, words + mask, 3)


@pytest.mark.parametrize("lane", range(5))
def test_a_level_beyond_what_the_members_can_sum_to_is_refused(
    opened_words: tuple[Layout, np.ndarray], lane: int
) -> None:
    layout, words = opened_words
    words[HEADER_WORDS] |= np.uint64(0xFFF << (12 * lane))
    with pytest.raises(EncodingRefused):
        decode_sum(layout, words, 3)


def test_a_bit_above_the_highest_lane_is_refused(opened_words: tuple[Layout, np.ndarray]) -> None:
    layout, words = opened_words
    words[-1] |= np.uint64(1 << 60)
    with pytest.raises(EncodingRefused, match="above the highest lane"):
        decode_sum(layout, words, 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_published_sum_is_refused_or_says_openly_something_else(
    make_plan: Make, make_header: MakeHeader, data: st.DataObject
) -> None:
    layout = Layout.of(make_plan(), 37)
    uploads = [encode(layout, np.zeros(37, np.float32), make_header(), np.random.default_rng(8)) for _ in range(3)]
    whole = pack_sum(layout, _sum(layout, uploads))
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.sampled_from([None, 0, 8, len(whole) - 8, len(whole) - 1]))
    try:
        opened = unpack_sum(layout, bytes(damaged[:cut]), 3)
    except (EncodingRefused, Malformed):
        return
    assert cut is None
    assert pack_sum(layout, opened) == bytes(damaged)


@given(data=st.binary(max_size=100))
def test_random_bytes_are_no_published_sum(make_plan: Make, data: bytes) -> None:
    with pytest.raises(Malformed):
        unpack_sum(Layout.of(make_plan(), 37), data, 3)
