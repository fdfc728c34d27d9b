"""A plan's privacy: bounds of its fields, budgets that are kept, shares of noise that survive dropouts and liars."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from federation import accounting
from federation.errors import PlanRefused
from federation.plan import TrainingPlan
from federation.privacy import (
    BATCH_MAX,
    CLIP_NORM_MIN,
    certain_shares,
    delta_of_prices,
    evaluations,
    gradient_noise,
    histogram_noise,
    noise_over_signal,
    train_price,
)
from federation.v1 import plan_pb2
from federation.vocabulary import Metric

Make = Callable[..., TrainingPlan]

OUTSIDE: list[tuple[str, Any]] = [
    ("clip_norm", 0.0),
    ("clip_norm", 1e-7),
    ("clip_norm", 1001.0),
    ("sampling_rate", 0.0),
    ("sampling_rate", 1.5),
    ("noise_multiplier", 0.0),
    ("noise_multiplier", float("nan")),
    ("patients_expected", 0),
    ("batch_max", 0),
    ("batch_max", 2501),
    ("delta", 0.0),
    ("delta", 0.01),
    ("epsilon_train", 0.0),
    ("epsilon_train", 1e-3),
    ("validation_interval", -1),
    ("validation_multiplier", 0.0),
    ("epsilon_validation", 0.0),
    ("epsilon_validation", 1e-3),
]


def test_a_private_plan_travels_unchanged(make_private_plan: Make) -> None:
    plan = make_private_plan()
    assert TrainingPlan.from_bytes(plan.to_bytes()) == plan
    assert plan.privacy is not None


def test_every_field_of_privacy_has_its_namesake_on_the_wire(make_private_plan: Make) -> None:
    assert set(plan_pb2.Privacy.DESCRIPTOR.fields_by_name) == set(vars(make_private_plan().privacy))


@pytest.mark.parametrize(("field", "value"), OUTSIDE, ids=str)
def test_a_value_outside_its_bounds_or_budget_is_refused_by_name(
    make_private_plan: Make, field: str, value: Any
) -> None:
    with pytest.raises(PlanRefused) as refused:
        make_private_plan(**{field: value})
    assert refused.value.field == f"privacy.{field}"


@pytest.mark.parametrize("clip_norm", [CLIP_NORM_MIN, 1.0, 1000.0])
@pytest.mark.parametrize("numbers", [1, 1 << 10, 1 << 20])
def test_float32_lengthens_a_patients_part_of_the_largest_batch_by_less_than_the_slack(
    clip_norm: float, numbers: int
) -> None:
    coordinate = clip_norm / math.sqrt(numbers)
    others = np.full(numbers, np.float32(BATCH_MAX * coordinate))
    step = float(np.spacing(others[0]))
    # The worst case: all coordinates lie just below the middle of two float32 numbers, and the patient lifts them.
    summed = others.astype(np.float64) + 0.4999 * step
    patient = np.full(numbers, coordinate // step * step + 0.0002 * step)
    moved = (summed + patient).astype(np.float32).astype(np.float64) - summed.astype(np.float32)
    assert np.linalg.norm(moved) > np.linalg.norm(patient)
    # Two roundings more, of the length that is cut, are no larger than this one.
    assert 3 * (np.linalg.norm(moved) - np.linalg.norm(patient)) < 0.001 * clip_norm


@pytest.mark.parametrize("field", ["epochs", "learning_rate", "proximal_mu", "ema_decay", "patience"])
def test_a_training_field_that_a_private_round_does_not_use_is_refused(make_private_plan: Make, field: str) -> None:
    plan = make_private_plan()
    value: Any = {"epochs": 2, "patience": 1}.get(field, 0.5)
    with pytest.raises(PlanRefused, match=f"training.{field}: expected its default"):
        replace(plan, training=replace(plan.training, **{field: value}))


def test_the_training_loss_may_not_leave_without_noise(make_private_plan: Make) -> None:
    with pytest.raises(PlanRefused, match="loss"):
        replace(make_private_plan(), metrics=(Metric.LOSS, Metric.HISTOGRAMS))


def test_noise_that_no_lane_can_hold_is_refused(make_private_plan: Make) -> None:
    with pytest.raises(PlanRefused, match="noise that a lane can hold"):
        make_private_plan(parameters=4_000_000, maximum=500, noise_multiplier=900.0)


def test_noise_whose_table_would_exhaust_a_site_is_refused(make_private_plan: Make) -> None:
    with pytest.raises(PlanRefused, match=r"noise_multiplier.*shares of noise"):
        make_private_plan(parameters=1000, maximum=3, noise_multiplier=1000.0)


def test_delta_pays_for_the_cut_tails_of_the_larger_budget(make_private_plan: Make) -> None:
    with pytest.raises(PlanRefused, match="rounding and tails"):
        make_private_plan(epsilon_validation=100.0)


def test_the_price_of_all_rounds_is_within_the_budget_and_hardly_below_it_at_the_least_noise(
    make_private_plan: Make,
) -> None:
    plan = make_private_plan()
    assert plan.privacy is not None

    def spent(multiplier: float) -> float:
        assert plan.privacy is not None
        privacy = replace(plan.privacy, noise_multiplier=multiplier)
        price = accounting.times(train_price(privacy, 1024), plan.rounds)
        return accounting.epsilon(price, delta_of_prices(privacy, plan.rounds, 1024))

    low, high = 0.5, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > plan.privacy.epsilon_train else (low, middle)
    make_private_plan(noise_multiplier=high)
    with pytest.raises(PlanRefused, match="epsilon_train"):
        make_private_plan(noise_multiplier=low * 0.999)


@pytest.mark.parametrize(("members", "expected"), [(3, 2), (4, 2), (5, 3), (6, 4), (16, 6), (64, 22)])
def test_certain_shares_are_those_of_honest_others(members: int, expected: int) -> None:
    assert certain_shares(members) == expected
    # Whoever vanishes, and whoever of the corrupt leaves a share out: t in the sum, less those, less the reader itself.
    corrupt = (members - 1) // 3
    assert expected == 2 * members // 3 + 1 - max(1, corrupt)


@pytest.mark.parametrize("members", range(3, 65))
def test_the_certain_shares_hold_the_whole_variance_and_a_share_more_would_not_be_needed(
    make_private_plan: Make, members: int
) -> None:
    privacy = make_private_plan().privacy
    assert privacy is not None
    for noise in (gradient_noise(privacy, 1024).noise, histogram_noise(privacy)):
        share = noise.share_variance(members)
        assert certain_shares(members) * share >= noise.variance > certain_shares(members) * (share - 1)
        assert noise.tail(members) >= 12 * math.sqrt(share)


def test_every_admissible_cohort_has_the_same_levels(make_private_plan: Make) -> None:
    privacy = make_private_plan().privacy
    assert privacy is not None
    gradient = gradient_noise(privacy, 1024)
    tails = [gradient.noise.tail(members) for members in range(3, 9)]
    assert gradient.level_max(3, 8) == 2 * (gradient.bound + max(tails))


@pytest.mark.parametrize(("interval", "expected"), [(0, [1, 6]), (1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5, 6])])
def test_histograms_leave_in_the_rounds_that_the_plan_names(
    make_private_plan: Make, interval: int, expected: list[int]
) -> None:
    privacy = make_private_plan(validation_interval=interval, epsilon_validation=5.0).privacy
    assert privacy is not None
    assert [number for number in range(1, 7) if privacy.evaluates(number, 5)] == expected
    assert evaluations(privacy, 5) == len(expected)


def test_noise_over_signal_is_the_rule_of_the_specification(make_private_plan: Make) -> None:
    """r = z (D2 / sC) sqrt(n / h) sqrt(d) / (q N n)."""
    privacy = make_private_plan(batch_max=1000).privacy
    assert privacy is not None
    for members, size in ((3, 1000), (5, 900)):
        steps = gradient_noise(privacy, 1024)
        ratio = steps.noise.sensitivity.l2 / (steps.scale * privacy.clip_norm)
        excess = math.sqrt(members / certain_shares(members))
        expected = privacy.noise_multiplier * ratio * excess * math.sqrt(size) / (0.1 * 500 * members)
        assert noise_over_signal(privacy, members, size, 1024) == pytest.approx(expected, rel=1e-4)
