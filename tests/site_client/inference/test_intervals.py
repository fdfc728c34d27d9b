"""Intervals cover as often as they say, and are shown only where there are patients enough."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from site_client.errors import EvaluationRefused
from site_client.inference.intervals import (
    compare,
    compare_log_loss,
    draw_patients,
    estimate,
    predictive,
    weighted_log_loss,
)
from site_client.inference.measures import Measure, of_draws
from site_client.inference.scores import Column, Scored
from tests.site_client.inference.figures import bounds_of, value_of

SLICES = 8
SETS = 1000  # of a simulation of coverage, whose standard error is .007


def _patients(positive: int, negative: int, rng: np.random.Generator, better: float = 0.0) -> list[Column]:
    """Draw slices of patients with an effect of their own; some slices of positive patients are positive.

    Returns:
        One column; with `better` a second one, whose scores of positive slices are higher.
    """
    count = positive + negative
    patients = np.repeat(np.arange(count), SLICES)
    truth = np.zeros((count, SLICES), np.int8)
    truth[:positive] = np.arange(SLICES) < rng.integers(1, SLICES, (positive, 1))
    labels = truth.ravel()
    scores = rng.normal(0, 0.7, count)[patients] + rng.normal(0, 1, len(labels)) + 1.3 * labels
    shifts = [0.0, better] if better else [0.0]
    return [Column(1 / (1 + np.exp(-scores - shift * labels)), labels, patients, count) for shift in shifts]


@pytest.mark.parametrize(("positive", "negative"), [(10, 10), (10, 50), (25, 25)])
def test_intervals_of_few_patients_hold_the_true_value_as_often_as_they_say(positive: int, negative: int) -> None:
    """Nominal .95; at least .93 has to be held."""
    rng = np.random.default_rng([positive, negative, 1])
    (whole,) = _patients(100 * positive, 100 * negative, rng)
    true, held = value_of(estimate([whole], Measure.AUC)), 0
    for _ in range(SETS):
        (column,) = _patients(positive, negative, rng)
        figure = estimate([column], Measure.AUC, draw_patients(positive + negative, 150, rng))
        low, _, high = bounds_of(figure)
        held += low <= true <= high
    assert held / SETS >= 0.93


def test_percentiles_of_the_draws_would_hold_it_too_seldom() -> None:
    """With them 10 patients of each kind have an interval that is too short: hence the rule of `interval`."""
    rng = np.random.default_rng(8)
    (whole,) = _patients(1000, 1000, rng)
    true, held = value_of(estimate([whole], Measure.AUC)), 0
    for _ in range(SETS):
        (column,) = _patients(10, 10, rng)
        drawn = of_draws(column, Measure.AUC, draw_patients(20, 200, rng))
        low, high = np.nanquantile(drawn, (0.025, 0.975))
        held += low <= true <= high
    assert held / SETS < 0.92


def test_differences_of_few_patients_hold_the_true_difference_as_often_as_they_say() -> None:
    rng = np.random.default_rng(9)
    whole = _patients(1500, 1500, rng, better=0.4)
    true = value_of(estimate(whole[1:], Measure.AUC)) - value_of(estimate(whole[:1], Measure.AUC))
    held = 0
    for _ in range(SETS):
        first, second = _patients(15, 15, rng, better=0.4)
        difference = compare([second], [first], Measure.AUC, draw_patients(30, 200, rng))
        low, _, high = bounds_of(difference)
        held += low <= true <= high
    assert held / SETS >= 0.93


@pytest.mark.parametrize(("positive", "negative"), [(9, 30), (30, 9)])
def test_nine_patients_of_a_kind_have_a_figure_and_no_interval(positive: int, negative: int) -> None:
    rng = np.random.default_rng(7)
    for added, known in ((0, False), (1, True)):
        sizes = (positive + added, negative + added)
        first, second = _patients(*sizes, rng, better=0.4)
        draws = draw_patients(sum(sizes), 200, rng)
        for measure in (Measure.AUC, Measure.ECE, Measure.LOG_LOSS, Measure.SENSITIVITY_90):
            figure = estimate([first], measure, draws)
            assert figure.value is not None
            assert (figure.low is not None) is known, measure
        assert (compare([first], [second], Measure.AUC, draws).p is not None) is known
        ((ppv, npv),) = predictive(first, (0.1,), draws).values()
        assert ppv.value is not None
        assert (ppv.low is not None, npv.low is not None) == (known, known)
        scored = [_scored(column) for column in (first, second)]
        assert (weighted_log_loss(scored[:1], draws).low is not None) is known
        assert (compare_log_loss(scored[:1], scored[1:], draws).p is not None) is known


def test_a_mean_over_seeds_is_the_mean_of_the_models_and_no_wider_than_the_widest() -> None:
    rng = np.random.default_rng(11)
    models = _patients(40, 40, rng, better=0.5)
    draws = draw_patients(80, 500, rng)
    single = [estimate([model], Measure.AUC, draws) for model in models]
    both = estimate(models, Measure.AUC, draws)
    low, value, high = bounds_of(both)
    bounds = [bounds_of(figure) for figure in single]
    assert value == pytest.approx(np.mean([one for _, one, _ in bounds]))
    assert high - low <= max(end - begin for begin, _, end in bounds) + 1e-3


def test_an_interval_stays_within_the_bounds_of_its_measure() -> None:
    rng = np.random.default_rng(12)
    (column,) = _patients(12, 12, rng)
    sharp = Column(np.where(column.truth == 1, 0.99, 0.3 * column.probabilities), *_rest(column))
    for measure in (Measure.AP, Measure.BRIER, Measure.LOG_LOSS, Measure.SPECIFICITY_95):
        figure = estimate([sharp], measure, draw_patients(24, 300, rng))
        if figure.low is not None:
            low, value, high = bounds_of(figure)
            assert 0 <= low <= value <= high
            assert measure is Measure.LOG_LOSS or high <= 1
    assert not math.isnan(value_of(estimate([sharp], Measure.AUC)))


def _rest(column: Column) -> tuple[NDArray[np.int8], NDArray[np.int64], int]:
    return column.truth, column.patients, column.patients_count


def _scored(column: Column) -> Scored:
    """All six labels are this one."""
    columns = np.repeat(column.probabilities[:, None], 6, axis=1), np.repeat(column.truth[:, None], 6, axis=1)
    return Scored(*columns, column.patients)


def test_a_model_against_itself_differs_by_nothing() -> None:
    rng = np.random.default_rng(3)
    column = Column(rng.random(60), (np.arange(60) < 30).astype(np.int8), np.arange(60) // 3, 20)
    same = compare([column], [column], Measure.AUC, draw_patients(20, 200, rng))
    assert (same.value, same.low, same.high, same.p) == (0, None, None, 1)  # no spread, so no interval


def test_pairing_sees_a_small_steady_difference_that_the_intervals_hide() -> None:
    rng = np.random.default_rng(4)
    patients = np.arange(600) // 4
    truth = ((patients < 75) & (rng.random(600) < 0.7)).astype(np.int8)
    base = truth + rng.normal(0, 1.5, 600)
    better = base + 0.25 * truth
    first, second = (Column(1 / (1 + np.exp(-s)), truth, patients, 150) for s in (better, base))
    draws = draw_patients(150, 1000, rng)
    separate = [estimate([column], Measure.AUC, draws) for column in (first, second)]
    assert separate[0].low is not None
    assert separate[1].high is not None
    assert separate[0].low < separate[1].high
    difference = compare([first], [second], Measure.AUC, draws)
    assert difference.low is not None
    assert difference.p is not None
    assert difference.low > 0
    assert difference.p < 0.01


def test_clustering_by_patient_widens_the_interval_of_repeated_rows() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, 60).astype(np.int8)
    probabilities = (truth + rng.random(60) * 2) / 3
    truth, probabilities = np.repeat(truth, 10), np.repeat(probabilities, 10)
    widths = []
    for patients in (np.arange(600), np.repeat(np.arange(60), 10)):
        count = int(patients.max()) + 1
        draws = draw_patients(count, 500, np.random.default_rng(6))
        figure = estimate([Column(probabilities, truth, patients, count)], Measure.AUC, draws)
        assert figure.low is not None
        assert figure.high is not None
        widths.append(figure.high - figure.low)
    assert widths[1] > 2 * widths[0]


def test_two_models_on_different_rows_are_not_compared() -> None:
    column = Column(np.array([0.1, 0.9]), np.array([0, 1], np.int8), np.arange(2), 2)
    other = Column(np.array([0.1, 0.9]), np.array([1, 0], np.int8), np.arange(2), 2)
    with pytest.raises(EvaluationRefused, match="same rows"):
        compare([column], [other], Measure.AUC, np.ones((2, 2)))
