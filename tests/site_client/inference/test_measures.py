"""Measures against slow independent definitions, and against scikit-learn where it has them."""

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from site_client.errors import EvaluationRefused
from site_client.inference.intervals import accuracy, draw_patients, estimate, predictive, weighted_log_loss
from site_client.inference.measures import Measure, of_draws, perfect_calibration_error, reliability
from site_client.inference.scores import Column, Scored, refuse_shared_patients
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from tests.site_client.inference.figures import bounds_of, value_of

# Few different probabilities, so that ties are the rule and not the exception.
ROWS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=40)
EXAMPLES = settings(max_examples=60, deadline=None)


def _column(rows: list[tuple[int, int, int]]) -> Column:
    probabilities, truth, patients = (np.array(part) for part in zip(*rows, strict=True))
    return Column(probabilities / 8, truth.astype(np.int8), patients.astype(np.int64), 5)


def _slow_auc(probabilities: NDArray[np.float64], truth: NDArray[np.int8]) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in probabilities[truth == 1] for b in probabilities[truth == 0]]
    return float(np.mean(pairs))


def _thresholds(column: Column) -> list[tuple[float, float, float]]:
    """Return sensitivity, specificity and precision of "positive from t on" for each threshold t."""
    points = []
    for threshold in [*sorted(set(column.probabilities), reverse=True)]:
        called = column.probabilities >= threshold
        points.append(
            (
                float(called[column.truth == 1].mean()),
                float((~called)[column.truth == 0].mean()),
                float((column.truth[called] == 1).mean()),
            )
        )
    return points


@given(ROWS)
@EXAMPLES
def test_measures_of_order_agree_with_their_definitions(rows: list[tuple[int, int, int]]) -> None:
    column = _column(rows)
    if len(set(column.truth)) < 2:
        return
    points = _thresholds(column)
    recall = [0.0, *(point[0] for point in points)]
    expected = {
        Measure.AUC: _slow_auc(column.probabilities, column.truth),
        Measure.AP: sum((point[0] - before) * point[2] for point, before in zip(points, recall, strict=False)),
        Measure.SENSITIVITY_90: max([0.0, *(s for s, c, _ in points if c >= 0.9 - 1e-9)]),
        Measure.SENSITIVITY_95: max([0.0, *(s for s, c, _ in points if c >= 0.95 - 1e-9)]),
        Measure.SPECIFICITY_95: max(c for s, c, _ in points if s >= 0.95 - 1e-9),
    }
    for measure, value in expected.items():
        assert estimate([column], measure).value == pytest.approx(value, abs=1e-12), measure


@given(ROWS)
@EXAMPLES
def test_predictive_values_at_the_sets_own_prevalence_are_counted_shares(rows: list[tuple[int, int, int]]) -> None:
    column = _column(rows)
    if len(set(column.truth)) < 2:
        return
    threshold = max(
        t for t in column.probabilities if (column.probabilities >= t)[column.truth == 1].mean() >= 0.95 - 1e-9
    )
    called = column.probabilities >= threshold
    ((ppv, npv),) = predictive(column, [float(column.truth.mean())]).values()
    assert ppv.value == pytest.approx((column.truth[called] == 1).mean())
    if called.all():
        assert (npv.value, npv.reason) == (None, "nothing is called negative")
    else:
        assert npv.value == pytest.approx((column.truth[~called] == 0).mean())


def test_a_rarer_finding_has_a_lower_ppv_and_a_higher_npv() -> None:
    rng = np.random.default_rng(2)
    truth = (rng.random(400) < 0.3).astype(np.int8)
    column = Column((truth + rng.normal(0, 0.5, 400)).clip(-1, 2) / 3 + 1 / 3, truth, np.arange(400) // 2, 200)
    values = [*predictive(column, (0.05, 0.10, 0.40), draw_patients(200, 200, rng)).values()]
    ppv, npv = ([value_of(pair[index]) for pair in values] for index in (0, 1))
    assert ppv == sorted(ppv)
    assert npv == sorted(npv, reverse=True)
    bounded = [bounds_of(figure) for pair in values for figure in pair]
    assert all(low < value < high for low, value, high in bounded)


@given(ROWS)
@EXAMPLES
def test_measures_agree_with_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    column = _column(rows)
    truth, probabilities = column.truth, column.probabilities
    if len(set(truth)) < 2:
        return
    clipped = probabilities.clip(1e-15, 1 - 1e-15)
    expected = {
        Measure.AUC: reference.roc_auc_score(truth, probabilities),
        Measure.AP: reference.average_precision_score(truth, probabilities),
        Measure.BRIER: reference.brier_score_loss(truth, probabilities),
        Measure.LOG_LOSS: reference.log_loss(truth, clipped),
    }
    for measure, value in expected.items():
        assert estimate([column], measure).value == pytest.approx(value, abs=1e-9), measure


@given(ROWS)
@EXAMPLES
def test_a_draw_is_the_measure_of_the_patients_it_repeats(rows: list[tuple[int, int, int]]) -> None:
    column = _column(rows)
    times = np.array([2.0, 0.0, 1.0, 3.0, 1.0])
    again = np.repeat(np.arange(len(rows)), times[column.patients].astype(int))
    repeated = Column(column.probabilities[again], column.truth[again], column.patients[again], 5)
    for measure in set(Measure) - {
        Measure.ECE,
        Measure.AUC_HEIGHT,
    }:  # bins stay those of the whole set; no heights here
        expected = estimate([repeated], measure).value
        if expected is not None:
            assert of_draws(column, measure, times[None])[0] == pytest.approx(expected, abs=1e-9), measure


@given(ROWS)
@EXAMPLES
def test_auc_turns_round_with_the_labels_and_ignores_any_rising_transform(rows: list[tuple[int, int, int]]) -> None:
    column = _column(rows)
    value = estimate([column], Measure.AUC).value
    turned = estimate([Column(column.probabilities, 1 - column.truth, column.patients, 5)], Measure.AUC).value
    cubed = estimate([Column(column.probabilities**3, column.truth, column.patients, 5)], Measure.AUC).value
    assert value == cubed
    if value is None:
        assert turned is None
    else:
        assert turned == pytest.approx(1 - value)
        assert 0 <= value <= 1


@pytest.mark.parametrize(("truth", "reason"), [(0, "no positive row"), (1, "no negative row")])
def test_rows_of_one_kind_have_no_auc_but_a_reason(truth: int, reason: str) -> None:
    column = Column(np.array([0.1, 0.9]), np.full(2, truth, np.int8), np.arange(2), 2)
    figure = estimate([column], Measure.AUC, np.ones((3, 2)))
    assert (figure.value, figure.reason) == (None, reason)
    assert estimate([column], Measure.LOG_LOSS).value is not None


def test_calibration_error_is_the_gap_of_probability_and_share_in_each_bin() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.random(300)
    truth = (rng.random(300) < probabilities**2).astype(np.int8)
    column = Column(probabilities, truth, np.arange(300), 300)
    order = np.argsort(probabilities)
    gaps = [abs(probabilities[part].mean() - truth[part].mean()) for part in np.array_split(order, 15)]
    assert estimate([column], Measure.ECE).value == pytest.approx(np.mean(gaps))
    assert [rows for _, _, rows in reliability(column)] == [20] * 15


def test_missing_cells_change_no_figure() -> None:
    rng = np.random.default_rng(2)
    probabilities, labels = rng.random((50, 6)), rng.integers(0, 2, (50, 6)).astype(np.int8)
    patients = rng.integers(0, 9, 50)
    whole = Scored(probabilities, labels, patients)
    unknown = Scored(rng.random((30, 6)), np.full((30, 6), -1, np.int8), rng.integers(0, 9, 30))
    both = Scored(
        np.concatenate([probabilities, unknown.probabilities]),
        np.concatenate([labels, unknown.labels]),
        np.concatenate([patients, unknown.patients]),
    )
    assert weighted_log_loss([both]) == weighted_log_loss([whole])
    assert accuracy(both) == accuracy(whole)
    for measure in Measure:
        assert estimate([both.column(3)], measure) == estimate([whole.column(3)], measure)


def test_the_prior_alone_scores_what_rsna_s_prevalences_give() -> None:
    """.231 and .943 are the figures of a model that knows the prevalences only."""
    prevalence = np.array([0.0042, 0.0480, 0.0348, 0.0474, 0.0627, 0.1434])
    rows = 10_000
    labels = (np.arange(rows)[:, None] < np.rint(prevalence * rows)).astype(np.int8)
    scored = Scored(np.broadcast_to(prevalence, (rows, 6)).copy(), labels, np.arange(rows))
    assert weighted_log_loss([scored]).value == pytest.approx(0.231, abs=5e-4)
    own, all_negative = accuracy(scored)
    assert own == all_negative
    assert own.value == pytest.approx(0.943, abs=5e-4)


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1])
def test_a_value_that_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(EvaluationRefused, match="from 0 to 1"):
        Scored(np.full((1, 6), value), np.zeros((1, 6), np.int8), np.zeros(1, np.int64))


def test_a_patient_on_both_sides_is_refused_without_a_name() -> None:
    def study(number: int, patient: str) -> StudyRecord:
        labels = np.zeros((1, 6), np.int8)
        series = SeriesRecord(SeriesKey(f"x{number}"), "", ())
        return StudyRecord(StudyKey(f"s{number}"), PatientKey(patient), series, labels, labels[0])

    refuse_shared_patients([study(1, "anna"), study(2, "bert")], [study(3, "carl")])
    with pytest.raises(EvaluationRefused, match="got 1;") as refusal:
        refuse_shared_patients([study(1, "anna"), study(2, "bert")], [study(3, "bert")])
    assert "bert" not in str(refusal.value)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)), max_size=30))
@EXAMPLES
def test_auc_at_equal_height_counts_the_pairs_within_each_height(rows: list[tuple[int, int, int, int]]) -> None:
    pairs = [
        (a[0] > b[0]) + 0.5 * (a[0] == b[0]) for a in rows for b in rows if a[1] == 1 and b[1] == 0 and a[3] == b[3]
    ]
    parts = np.array(rows, float).reshape(-1, 4).T
    column = Column(parts[0] / 8, parts[1].astype(np.int8), parts[2].astype(np.int64), 5, parts[3] / 20 + 0.01)
    figure = estimate([column], Measure.AUC_HEIGHT)
    assert figure.value == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_the_height_alone_has_an_auc_at_equal_height_of_one_half() -> None:
    rng = np.random.default_rng(3)
    heights = np.repeat(np.arange(20) / 20 + 0.025, 40)
    truth = (rng.random(800) < 0.5 - np.abs(heights - 0.5)).astype(np.int8)
    column = Column(1 - np.abs(heights - 0.5), truth, np.arange(800), 800, heights)
    assert value_of(estimate([column], Measure.AUC)) > 0.6
    assert estimate([column], Measure.AUC_HEIGHT).value == 0.5


def test_a_perfect_model_of_few_rows_has_a_calibration_error_above_0() -> None:
    rng = np.random.default_rng(4)
    errors = []
    for rows in (60, 1000):
        probabilities = rng.random(rows)
        column = Column(probabilities, (rng.random(rows) < probabilities).astype(np.int8), np.arange(rows), rows)
        errors.append(perfect_calibration_error(column))
    assert errors == [pytest.approx(0.145, abs=0.03), pytest.approx(0.036, abs=0.01)]
