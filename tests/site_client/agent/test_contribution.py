"""From an update to a contribution: the part of the model that moves, and what a private round says of a site."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from federation.encoding import Layout
from federation.gate import AUC_CLIP, NO_COMPARISON, NO_COMPARISONS, Gate
from federation.plan import Encoding, LocalTraining, Trainable, TrainingPlan
from federation.privacy import Privacy
from federation.vocabulary import Metric, Outcome

from site_client.agent.egress.guard import Guard
from site_client.agent.rounds.contribution import prepare_contribution
from site_client.config import PolicySettings
from site_client.errors import EgressRefused
from site_client.records import AucLoss, PredecessorComparison, RunId, Update, histograms_of
from site_client.typed_json import Digest

PRIVACY = Privacy(0.1, 2.0, 500, 100, 8.0, validation_multiplier=20.0, epsilon_validation=2.0)


@pytest.fixture
def heads(plan: TrainingPlan) -> TrainingPlan:
    """Only `head.bias` moves, 6 numbers of 36."""
    return replace(plan, training=LocalTraining(trainable=Trainable.HEADS), moving_tensors=(1,))


@pytest.fixture
def private(heads: TrainingPlan) -> TrainingPlan:
    return replace(heads, encoding=Encoding(rotation_seed=bytes(32)), metrics=(Metric.HISTOGRAMS,), privacy=PRIVACY)


def update(studies: int = 40, count: int = 3) -> Update:
    histograms = histograms_of(np.full((6, 2, 64), count, np.int64))
    run, base = RunId(bytes(range(16))), Digest(bytes(32))
    return Update(run, 1, base, Outcome.TRAINED, None, studies, 7.0, 9, True, histograms)


def test_a_contribution_is_as_long_as_the_part_that_moves(heads: TrainingPlan) -> None:
    guard = Guard(PolicySettings())
    contribution = prepare_contribution(guard, heads, 1, update(), np.full(6, 0.01, np.float32))
    assert contribution.layout == Layout.of(heads, 6)
    with pytest.raises(EgressRefused, match="6 numbers move under the plan"):
        prepare_contribution(guard, heads, 1, update(), np.full(heads.manifest.size, 0.01, np.float32))


@pytest.mark.parametrize("predecessor", [Digest(bytes([7]) * 32), Digest(bytes([8]) * 32), None])
def test_a_comparison_leaves_when_it_is_with_the_predecessor_and_within_the_gate(
    plan: TrainingPlan, predecessor: Digest | None
) -> None:
    gated = replace(plan, gate=Gate(clip=0.1, patients_max=16))
    labels = (AucLoss(0.9, 200), AucLoss(-0.02, 9), AucLoss(0.9, 3), *[AucLoss()] * 3)
    compared = replace(update(), comparison=PredecessorComparison(Digest(bytes([7]) * 32), 99.0, 99.0, 20, labels))
    delta = np.full(plan.moving.size, 0.01, np.float32)
    header = prepare_contribution(Guard(PolicySettings()), gated, 1, compared, delta, predecessor).header
    if predecessor != bytes([7]) * 32:
        assert header.comparisons == NO_COMPARISONS
        return
    # The trainer's sums, cut to what 20 patients can come to, and scaled to the size class of 16.
    expected = (pytest.approx(1.6), pytest.approx(0.16), 16, 1)
    assert dataclasses.astuple(header.comparisons.loss) == expected
    # A label's loss of AUC likewise, at most at the cap of positives; three positives are none.
    lost, won, *others = header.comparisons.labels
    assert dataclasses.astuple(lost) == (pytest.approx(AUC_CLIP * 32), pytest.approx(AUC_CLIP**2 * 32), 32, 1)
    assert dataclasses.astuple(won) == (pytest.approx(-0.16), pytest.approx(0.0032), 8, 1)
    assert others == [NO_COMPARISON] * 4
    ungated = prepare_contribution(Guard(PolicySettings()), plan, 1, compared, delta)
    assert ungated.header.comparisons == NO_COMPARISONS


def test_a_private_contribution_says_nothing_of_studies_loss_and_clipping(private: TrainingPlan) -> None:
    guard = Guard(PolicySettings())
    summed = np.full(6, 0.01, np.float32)
    few, many = (prepare_contribution(guard, private, 1, update(studies), summed).header for studies in (0, 5000))
    assert (few.studies, few.loss_sum, few.example_count, few.clipped) == (1, 0.0, 0, False)
    assert (many.studies, many.loss_sum, many.example_count, many.clipped) == (1, 0.0, 0, False)
    assert (few.histograms == 3).all()  # no size classes: patients are counted, and noise comes on top


def test_no_count_of_patients_goes_beyond_the_plan_s(private: TrainingPlan) -> None:
    crowded = update(count=2**40)
    contribution = prepare_contribution(Guard(PolicySettings()), private, 1, crowded, np.zeros(6, np.float32))
    assert (contribution.header.histograms == PRIVACY.patients_expected).all()


def test_histograms_leave_a_private_round_only_where_the_plan_evaluates(private: TrainingPlan) -> None:
    guard, summed = Guard(PolicySettings()), np.zeros(6, np.float32)
    metrics = [prepare_contribution(guard, private, number, update(), summed).layout.metrics for number in (1, 2)]
    assert metrics == [{Metric.HISTOGRAMS}, set()]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_counts_as_of_no_patient(private: TrainingPlan, value: float) -> None:
    spoiled = np.array([0.1, value, 0, 0, 0, 0], np.float32)
    contribution = prepare_contribution(Guard(PolicySettings()), private, 1, update(), spoiled)
    assert contribution.delta is not None
    assert not contribution.delta.any()


def test_a_sum_of_gradients_is_as_long_as_the_largest_batch_at_most(private: TrainingPlan) -> None:
    longest = PRIVACY.batch_max * PRIVACY.clip_norm
    guard, direction = Guard(PolicySettings()), np.array([1, 0, 0, 0, 0, 0], np.float32)
    for length, kept in ((0.5 * longest, 0.5 * longest), (3 * longest, longest)):
        contribution = prepare_contribution(guard, private, 1, update(), direction * np.float32(length))
        assert contribution.delta is not None
        assert np.linalg.norm(contribution.delta) == pytest.approx(kept)
    # The guard trusts no earlier step.
    with pytest.raises(EgressRefused, match="within the plan's clip norm"):
        guard.check_update(private, update(), direction * np.float32(1.01 * longest))


def test_a_metric_that_the_policy_keeps_stays_here_in_a_private_round_too(private: TrainingPlan) -> None:
    guard = Guard(PolicySettings(metrics=(Metric.LOSS,)))
    with pytest.raises(EgressRefused, match="does not hold histograms"):
        prepare_contribution(guard, private, 1, update(), np.zeros(6, np.float32))
