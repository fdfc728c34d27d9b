"""The norm of a mean update: what honest members send always passes, what one liar adds beyond its share never does."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from federation.chain import check_norm, next_model, norm_bound
from federation.encoding import HEADER_WORDS, HISTOGRAM_SHAPE, Layout, SiteHeader, decode_sum, encode, lanes
from federation.encoding.header import write_header
from federation.errors import ChainRefused
from federation.manifest import Model
from federation.plan import TrainingPlan

Make = Callable[..., TrainingPlan]
CAP = 1000


def uploads(layout: Layout, deltas: list[np.ndarray], studies: list[int], seed: int) -> np.ndarray:
    """The sum of honest encodings, uint64 [layout.words]."""
    headers = [SiteHeader(n, 1.0, 1, False, np.zeros(HISTOGRAM_SHAPE, np.int64)) for n in studies]
    words = [
        encode(layout, delta, header, np.random.default_rng([seed, number]))
        for number, (delta, header) in enumerate(zip(deltas, headers, strict=True))
    ]
    total: npt.NDArray[np.uint64] = np.sum(words, axis=0, dtype=np.uint64)
    return total


def update(layout: Layout, rng: np.random.Generator, norm: float) -> np.ndarray:
    delta = rng.standard_normal(layout.parameters)
    return (delta * norm / np.linalg.norm(delta)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("parameters", [1, 60, 5000])
@pytest.mark.parametrize("members", [3, 8])
def test_updates_at_the_clip_norm_that_all_agree_are_never_refused(
    make_plan: Make, bits: int, parameters: int, members: int
) -> None:
    """The longest mean that honest members can make: the same update at each, exactly at the clip norm."""
    plan = make_plan(parameters=parameters, **{"encoding.bits": bits, "encoding.weight_cap": CAP})
    layout = Layout.of(plan, parameters)
    for seed in range(20):
        rng = np.random.default_rng([seed, bits, parameters, members])
        delta = update(layout, rng, layout.clip_norm)
        studies = [int(n) for n in rng.choice([1, 30, CAP, 5 * CAP], members)]
        check_norm(layout, decode_sum(layout, uploads(layout, [delta] * members, studies, seed), members))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_rounding_alone_stays_below_the_bound_by_what_the_theorem_promises(make_plan: Make, bits: int) -> None:
    """Members without an update: everything in the sum is rounding. 400 sums, none near the bound of one in 10^9."""
    layout = Layout.of(make_plan(parameters=2000, **{"encoding.bits": bits, "encoding.weight_cap": CAP}), 2000)
    zero = [np.zeros(2000, np.float32)] * 3
    norms = []
    for seed in range(400):
        decoded = decode_sum(layout, uploads(layout, zero, [1, 1, 1], seed), 3)
        norms.append(np.linalg.norm(2.0 * decoded.levels.astype(np.int64) - 3 * layout.level_max))
    assert max(norms) < norm_bound(layout, 3, 3)
    assert norm_bound(layout, 3, 3) < 1.3 * np.sqrt(3 * layout.coordinates)  # and the bound is no wish


def test_every_sum_that_leads_to_a_model_has_a_mean_within_clip_norm_and_rounding(make_plan: Make) -> None:
    """Liars of every strength, up to levels that only the sum's range check would stop."""
    parameters, bits = 5000, 8
    plan = make_plan(parameters=parameters, **{"encoding.bits": bits, "encoding.weight_cap": CAP})
    layout = Layout.of(plan, parameters)
    model = Model(plan.manifest, np.zeros(parameters, np.float32))
    rng = np.random.default_rng(3)
    words = uploads(layout, [update(layout, rng, layout.clip_norm) for _ in range(3)], [CAP] * 3, 1)
    header = write_header(layout, SiteHeader(CAP, 1.0, 1, False, np.zeros(HISTOGRAM_SHAPE, np.int64)))
    refused, unit = 0, 2 * layout.range / layout.level_max
    for strength in (0.1, 1.0, 2.0, 8.0, 77.0):
        levels = np.rint(layout.level_max / 2 + update(layout, rng, strength * layout.clip_norm) / unit)
        levels = np.pad(levels, (0, layout.coordinates - parameters), constant_values=layout.level_max // 2)
        poison = np.empty(layout.words, np.uint64)
        poison[:HEADER_WORDS] = header
        lanes.pack(np.clip(levels, 0, layout.level_max).astype(np.int64), layout.lane_width, poison[HEADER_WORDS:])
        decoded = decode_sum(layout, words + poison, 4)
        bound = norm_bound(layout, 4, 4 * CAP) * unit / 2 / 4
        try:
            moved = next_model(plan, model, decoded)
        except ChainRefused:
            refused += 1
            continue
        assert np.linalg.norm(moved.weights) <= bound * plan.server.learning_rate * (1 + 1e-6)
    assert refused >= 1
