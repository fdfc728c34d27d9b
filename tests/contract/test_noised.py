"""A private round's words: what one patient changes, what the noise is when it is decoded, what a liar may send."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from federation.chain import check_norm, next_model, norm_bound
from federation.encoding import (
    HEADER_WORDS,
    HISTOGRAM_SHAPE,
    DecodedSum,
    HeaderSum,
    Layout,
    decode_sum,
    pack_sum,
    unpack_sum,
)
from federation.encoding.noised import CELLS, encode_noised, merged
from federation.encoding.rotation import rotate
from federation.encoding.skellam import SecretStream
from federation.errors import ChainRefused, EncodingRefused
from federation.manifest import Model
from federation.plan import TrainingPlan
from federation.privacy import certain_shares, gradient_noise, histogram_noise

from tests.contract.mean import mean_update
from tests.contract.secagg_session import Session

Make = Callable[..., TrainingPlan]
Floats = npt.NDArray[np.float32]
NO_COUNTS = np.zeros(HISTOGRAM_SHAPE, np.int64)


def _coins(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _sum(layout: Layout, gradients: list[Floats], seed: int = 0, histograms: npt.NDArray[np.int64] = NO_COUNTS):  # type: ignore[no-untyped-def]
    members = len(gradients)
    words = [
        encode_noised(layout, gradient, histograms, members, _coins(1000 * seed + number))
        for number, gradient in enumerate(gradients)
    ]
    return np.sum(words, axis=0, dtype=np.uint64)


def _whole(layout: Layout, decoded: DecodedSum) -> npt.NDArray[np.int64]:
    """The sum in whole steps, noise included."""
    return decoded.levels.astype(np.int64) - decoded.members * layout.level_max // 2


def test_a_sum_whose_squares_leave_int64_is_refused_as_any_long_one(make_private_plan: Make) -> None:
    """Every coordinate is 2^24 half steps from zero: the squares of 2^16 of them are 2^64, which int64 takes for 0."""
    members = 128
    layout = Layout.of(make_private_plan(parameters=1 << 16, maximum=members, batch_max=2500), 1 << 16)
    center = members * layout.level_max
    levels = np.full(layout.coordinates, (center + (1 << 24)) // 2, np.int32)
    header = HeaderSum(members, 0.0, 0, 0, NO_COUNTS)
    decoded = DecodedSum(members, np.zeros(HEADER_WORDS, np.uint64), header, levels)
    assert (1 << 24) * math.sqrt(levels.size) > norm_bound(layout, members, members)
    with pytest.raises(ChainRefused):
        check_norm(layout, decoded)


def test_opened_noise_has_its_variance_on_the_real_path(make_private_plan: Make) -> None:
    """A million coordinates, three members, masks on and off again: within 1 % of theory, and no coordinate clipped."""
    plan = make_private_plan(parameters=1 << 20, maximum=3, histograms=False)
    layout = Layout.of_round(plan, 1)
    session = Session(3, layout.words, seed=1)
    zero = np.zeros(layout.parameters, np.float32)
    for number, site in enumerate(session.sites):
        session.words[site] = encode_noised(layout, zero, NO_COUNTS, 3, _coins(number))
    decoded = decode_sum(layout, session.play().total, 3)
    assert layout.gradient is not None
    expected = 3 * layout.gradient.noise.share_variance(3) + 0.0
    whole = _whole(layout, decoded)
    assert np.var(whole) == pytest.approx(expected, rel=0.01)
    assert abs(whole.mean()) < 5 * math.sqrt(expected / whole.size)
    check_norm(layout, decoded)


def test_the_mean_gradient_comes_back_without_bias(make_private_plan: Make) -> None:
    plan = make_private_plan(parameters=300, noise_multiplier=2.0)
    layout = Layout.of_round(plan, 2)
    privacy = plan.privacy
    assert privacy is not None
    rng = np.random.default_rng(5)
    gradients = [rng.standard_normal(300).astype(np.float32) for _ in range(4)]
    means = [mean_update(layout, decode_sum(layout, _sum(layout, gradients, seed), 4)) for seed in range(60)]
    expected = np.sum(gradients, axis=0) / (privacy.sampling_rate * privacy.patients_expected * 4)
    error = np.mean(means, axis=0) - expected
    deviation = np.std(means, axis=0, ddof=1) / math.sqrt(60)
    assert np.abs(error / deviation).max() < 5
    assert np.mean(error**2) / np.mean(deviation**2) == pytest.approx(1, rel=0.35)


def test_one_patient_moves_the_whole_numbers_by_no_more_than_the_sensitivity(make_private_plan: Make) -> None:
    """Same coins, so the same dither and noise: the difference of the words is the patient's part alone."""
    plan = make_private_plan(parameters=5000)
    layout = Layout.of_round(plan, 2)
    assert layout.gradient is not None
    rng = np.random.default_rng(7)
    for seed in range(10):
        others = rng.standard_normal(5000).astype(np.float32)
        patient = rng.standard_normal(5000)
        patient *= 1.0 / np.linalg.norm(patient)
        pair = [others, (others + patient).astype(np.float32)]
        levels = [decode_sum(layout, encode_noised(layout, g, NO_COUNTS, 3, _coins(seed)), 1).levels for g in pair]
        moved = levels[1].astype(np.int64) - levels[0].astype(np.int64)
        assert np.linalg.norm(moved) <= layout.gradient.noise.sensitivity.l2
        assert np.abs(moved).sum() <= layout.gradient.noise.sensitivity.l1


def test_a_sum_longer_than_the_largest_batch_is_projected_and_still_moves_no_further(
    make_private_plan: Make,
) -> None:
    plan = make_private_plan(parameters=64, batch_max=10)
    layout = Layout.of_round(plan, 2)
    assert layout.gradient is not None
    direction = np.zeros(64, np.float32)
    direction[3] = 1.0
    pair = [direction * np.float32(50), direction * np.float32(51)]
    levels = [decode_sum(layout, encode_noised(layout, g, NO_COUNTS, 3, _coins(1)), 1).levels for g in pair]
    assert (levels[0] == levels[1]).all()
    ten = decode_sum(layout, encode_noised(layout, direction * np.float32(10), NO_COUNTS, 3, _coins(1)), 1).levels
    assert np.abs(ten.astype(np.int64) - levels[0]).max() <= 1


@pytest.mark.parametrize("members", [3, 8])
def test_an_honest_sum_of_full_batches_passes_the_norm_gate_and_one_of_a_liar_does_not(
    make_private_plan: Make, members: int
) -> None:
    plan = make_private_plan(parameters=2000, batch_max=10, sampling_rate=0.02, epsilon_train=1.0)
    layout = Layout.of_round(plan, 2)
    model = Model(plan.manifest, np.zeros(2000, np.float32))
    for seed in range(30):
        rng = np.random.default_rng([seed, members])
        update = rng.standard_normal(2000)
        full = (update * 10 / np.linalg.norm(update)).astype(np.float32)
        check_norm(layout, decode_sum(layout, _sum(layout, [full] * members, seed), members))
    words = _sum(layout, [full] * members)
    liar = layout.level_max - decode_sum(layout, encode_noised(layout, full, NO_COUNTS, members, _coins(9)), 1).levels
    assert liar.size == layout.coordinates
    lanes = 64 // layout.lane_width
    extreme = np.zeros(layout.words, np.uint64)
    for lane in range(lanes):
        extreme[HEADER_WORDS:] |= np.uint64(layout.level_max) << np.uint64(lane * layout.lane_width)
    vector_words = layout.words - HEADER_WORDS
    past_the_end = vector_words * lanes - layout.coordinates
    if past_the_end:
        keep = np.uint64((1 << ((lanes - 1) * layout.lane_width)) - 1)
        extreme[-past_the_end:] &= keep
    extreme[0] = 1
    honest = [
        encode_noised(layout, np.zeros(2000, np.float32), NO_COUNTS, members, _coins(n)) for n in range(members - 1)
    ]
    poisoned = decode_sum(layout, np.sum([extreme, *honest], axis=0, dtype=np.uint64), members)
    assert decode_sum(layout, words, members).members == members
    with pytest.raises(ChainRefused, match="longer than"):
        next_model(plan, model, poisoned)


def test_noise_alone_stays_below_the_bound_of_one_in_a_billion(make_private_plan: Make) -> None:
    """With a batch that allows almost nothing, the bound is that of the noise: 300 sums, and all are well below it."""
    plan = make_private_plan(
        parameters=512, batch_max=1, sampling_rate=0.001, noise_multiplier=0.5, maximum=3, epsilon_train=8.0
    )
    layout = Layout.of_round(plan, 2)
    assert layout.gradient is not None
    zero = [np.zeros(512, np.float32)] * 3
    norms = []
    for seed in range(300):
        whole = 2 * _whole(layout, decode_sum(layout, _sum(layout, zero, seed), 3))
        norms.append(float(np.linalg.norm(whole)))
    allowed = norm_bound(layout, 3, 3) - 2 * 3 * layout.gradient.scale
    assert max(norms) < allowed
    assert np.mean(norms) == pytest.approx(2 * math.sqrt(512 * 3 * layout.gradient.noise.share_variance(3)), rel=0.02)


def test_leaving_shares_out_still_leaves_the_plans_variance(make_private_plan: Make) -> None:
    """A third of seven vanish, two corrupt ones add no noise, and the reader knows its own: mu is left."""
    plan = make_private_plan(parameters=20_000, maximum=7, histograms=False)
    layout = Layout.of_round(plan, 2)
    assert layout.gradient is not None
    zero = np.zeros(20_000, np.float32)
    honest = [encode_noised(layout, zero, NO_COUNTS, 7, _coins(n)) for n in range(certain_shares(7))]
    total = decode_sum(layout, np.sum(honest, axis=0, dtype=np.uint64), len(honest))
    assert np.var(_whole(layout, total)) == pytest.approx(layout.gradient.noise.variance, rel=0.04)


def test_two_attempts_differ_by_noise_and_not_by_dither_alone(make_private_plan: Make) -> None:
    plan = make_private_plan(parameters=4096)
    layout = Layout.of_round(plan, 2)
    assert layout.gradient is not None
    gradient = np.full(4096, 1 / 64, np.float32)
    levels = [
        decode_sum(layout, encode_noised(layout, gradient, NO_COUNTS, 3, _coins(number)), 1).levels.astype(np.int64)
        for number in (1, 2)
    ]
    assert np.var(levels[0] - levels[1]) > 1.9 * layout.gradient.noise.share_variance(3)


def test_the_same_coins_give_the_same_words(make_private_plan: Make) -> None:
    layout = Layout.of_round(make_private_plan(), 1)
    gradient = np.linspace(-1, 1, 1000).astype(np.float32)
    words = [encode_noised(layout, gradient, NO_COUNTS, 4, coins) for coins in (_coins(1), _coins(1), _coins(2))]
    assert (words[0] == words[1]).all()
    assert (words[0] != words[2]).any()


def test_dither_noise_and_histogram_noise_come_from_different_streams() -> None:
    drawn = {SecretStream(_coins(1), purpose).words(4).tobytes() for purpose in range(4)}
    assert len(drawn) == 4


def test_histograms_are_patients_in_sixteen_cells_with_noise_that_may_be_negative(make_private_plan: Make) -> None:
    plan = make_private_plan(parameters=10)
    layout = Layout.of_round(plan, 6)
    assert layout.parameters == 0
    counts = np.zeros(HISTOGRAM_SHAPE, np.int64)
    counts[:, 0, 5:9] = 3
    sums = [
        decode_sum(
            layout,
            np.sum(
                [encode_noised(layout, None, counts, 3, _coins(10 * s + n)) for n in range(3)], axis=0, dtype=np.uint64
            ),
            3,
        )
        for s in range(200)
    ]
    histograms = np.array([decoded.header.histograms for decoded in sums])
    assert (histograms[0].reshape(-1) % 1 == 0).all()
    assert histograms.min() < 0
    assert set(np.flatnonzero(histograms.any(axis=(0, 1, 2)))) == set(range(0, 64, 64 // CELLS))
    expected = 3 * merged(counts)
    assert plan.privacy is not None
    variance = 3 * histogram_noise(plan.privacy).share_variance(3)
    noisy = (histograms - expected)[..., :: 64 // CELLS]
    assert np.var(noisy) == pytest.approx(variance, rel=0.05)
    assert np.abs(noisy.mean(axis=0)).max() < 5 * math.sqrt(variance / 200)
    assert (sums[0].header.weight, sums[0].header.loss_sum, sums[0].header.example_count) == (3, 0.0, 0)


def test_a_published_sum_of_a_private_round_reads_back(make_private_plan: Make) -> None:
    layout = Layout.of_round(make_private_plan(parameters=100), 1)
    decoded = decode_sum(layout, _sum(layout, [np.ones(100, np.float32)] * 4), 4)
    again = unpack_sum(layout, pack_sum(layout, decoded), 4)
    assert (again.levels == decoded.levels).all()
    assert (again.header.histograms == decoded.header.histograms).all()


def test_a_round_without_evaluation_has_no_histogram_words(make_private_plan: Make) -> None:
    plan = make_private_plan()
    counts = np.ones(HISTOGRAM_SHAPE, np.int64)
    words = encode_noised(Layout.of_round(plan, 2), np.zeros(1000, np.float32), counts, 3, _coins(1))
    assert not words[1:HEADER_WORDS].any()


@pytest.mark.parametrize("value", [2**62, 2**63, 2**64 - 2**62])
@pytest.mark.parametrize("word", [0, 1, 2, 3, 4, 100])
def test_header_words_that_no_cohort_can_have_made_are_refused(make_private_plan: Make, word: int, value: int) -> None:
    layout = Layout.of_round(make_private_plan(parameters=100), 1)
    words = _sum(layout, [np.zeros(100, np.float32)] * 3)
    words[word] = np.uint64(value)
    with pytest.raises(EncodingRefused):
        decode_sum(layout, words, 3)


def test_a_plan_without_privacy_short_coins_and_other_cohorts_are_refused(
    make_plan: Make, make_private_plan: Make
) -> None:
    private, plain = Layout.of_round(make_private_plan(), 1), Layout.of(make_plan(), 37)
    gradient = np.zeros(1000, np.float32)
    for layout, members, coins in (
        (plain, 3, _coins(1)),
        (private, 3, b"short"),
        (private, 2, _coins(1)),
        (private, 9, _coins(1)),
    ):
        with pytest.raises(EncodingRefused):
            encode_noised(layout, gradient, NO_COUNTS, members, coins)
    with pytest.raises(EncodingRefused, match="diverged"):
        encode_noised(private, np.full(1000, np.nan, np.float32), NO_COUNTS, 3, _coins(1))


def test_the_rotation_of_a_private_round_is_in_float64(make_private_plan: Make) -> None:
    layout = Layout.of_round(make_private_plan(parameters=5000), 2)
    vector = np.random.default_rng(1).standard_normal(5000)
    rotated = np.concatenate(list(rotate(layout, vector, 3.0)))
    assert rotated.dtype == np.float64
    assert np.linalg.norm(rotated) == pytest.approx(3 * np.linalg.norm(vector), rel=1e-14)


def test_steps_are_so_fine_that_rounding_adds_little_noise(make_private_plan: Make) -> None:
    privacy = make_private_plan().privacy
    assert privacy is not None
    for coordinates in (16, 8192, 1 << 20, 1 << 23):
        steps = gradient_noise(privacy, coordinates)
        assert steps.noise.sensitivity.l2 / (steps.scale * privacy.clip_norm) < 1.04
