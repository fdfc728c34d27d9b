"""Measures of a model's probabilities against labels, with intervals over patients.

The sampling unit is the patient. A bootstrap draw takes patients with replacement, each with all of its rows. Two
models are compared on the same draws, so the difference is paired. Every measure is a function of row weights, and the
set itself is the draw of weights 1, so there is one implementation for both.

    AUC            Mann-Whitney, ties half
    AP             average precision, not interpolated
    BRIER          mean squared difference of probability and label
    ECE            expected calibration error over 15 bins with equally many rows of the set
    LOG_LOSS       mean cross-entropy, probabilities clipped at 1e-15
    SENSITIVITY_90 at a specificity of at least .90; SENSITIVITY_95 likewise
    SPECIFICITY_95 at a sensitivity of at least .95

PPV and NPV belong to the threshold of SPECIFICITY_95, at a stated prevalence.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

import numpy as np
from federation.labels import LABEL_WEIGHTS, LABELS, MISSING
from numpy.typing import NDArray

from site_client.errors import EvaluationRefused
from site_client.inference import ranked
from site_client.inference.ranked import Ranked, Reals
from site_client.ingest.records import StudyRecord

DRAWS: Final = 2000
PATIENTS_MIN: Final = 10  # for an interval
PREVALENCES: Final = (0.05, 0.10, 0.15, 0.40)  # from emergency rooms to a collection made for training
ECE_BINS: Final = 15
_CLIP: Final = 1e-15
_CELLS_AT_ONCE: Final = 1 << 22  # of a table draws x rows: 32 MiB


class Measure(Enum):
    """A measure; its value is its name in reports."""

    AUC = "AUC"
    AP = "AP"
    BRIER = "Brier"
    ECE = "ECE"
    LOG_LOSS = "log loss"
    SENSITIVITY_90 = "sensitivity at specificity .90"
    SENSITIVITY_95 = "sensitivity at specificity .95"
    SPECIFICITY_95 = "specificity at sensitivity .95"


_NEEDS_BOTH: Final = frozenset({Measure.AUC, Measure.SENSITIVITY_90, Measure.SENSITIVITY_95, Measure.SPECIFICITY_95})


@dataclass(frozen=True)
class Estimate:
    """A measure of one model.

    Attributes:
        value: None if it is not defined.
        low: Lower end of the 95 % interval; None without draws or with fewer than PATIENTS_MIN patients.
        high: Its upper end.
        reason: Why `value` is None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Difference:
    """A measure of one model minus that of another.

    Attributes:
        value: None if it is not defined.
        low: Lower end of the 95 % interval; None with fewer than PATIENTS_MIN patients.
        high: Its upper end.
        p: Two-sided bootstrap p-value, at least 1 / draws; None with `low`.
        reason: Why `value` is None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """Probabilities beside labels; a row is a slice or a study.

    Attributes:
        probabilities: f64[N,6] in [0,1].
        labels: int8[N,6]: 0, 1 or -1 (missing).
        patients: int64[N], the number of each row's patient, from 0.

    Raises:
        EvaluationRefused: A shape or a value is different.
    """

    probabilities: Reals
    labels: NDArray[np.int8]
    patients: NDArray[np.int64]

    def __post_init__(self) -> None:
        rows = len(self.patients)
        shape = (rows, len(LABELS))
        if self.probabilities.shape != shape or self.labels.shape != shape:
            raise EvaluationRefused(
                f"expected probabilities and labels of shape {shape}, "
                f"got {self.probabilities.shape} and {self.labels.shape}"
            )
        if not ((self.probabilities >= 0) & (self.probabilities <= 1)).all():
            raise EvaluationRefused(
                "expected probabilities from 0 to 1, got others; a model that diverged cannot be evaluated"
            )
        if not np.isin(self.labels, (0, 1, MISSING)).all():
            raise EvaluationRefused("expected labels 0, 1 or -1 (missing), got others")

    @property
    def patients_count(self) -> int:
        """Number of patients."""
        return int(self.patients.max(initial=-1)) + 1

    def column(self, label: int) -> "Column":
        """Return the column of one label (its index in LABELS), without rows that lack it."""
        known = self.labels[:, label] != MISSING
        return Column(
            self.probabilities[known, label], self.labels[known, label], self.patients[known], self.patients_count
        )


@dataclass(frozen=True, eq=False)
class Column:
    """One label of a `Scored`.

    Attributes:
        probabilities: f64[M].
        truth: int8[M]: 0 or 1.
        patients: int64[M], below `patients_count`.
        patients_count: Of the whole set.
    """

    probabilities: Reals
    truth: NDArray[np.int8]
    patients: NDArray[np.int64]
    patients_count: int

    def patients_with(self, value: int) -> int:
        """Count the patients who have a row with this label value."""
        return len(np.unique(self.patients[self.truth == value]))


def refuse_shared_patients(training: Sequence[StudyRecord], validation: Sequence[StudyRecord]) -> None:
    """Check that no patient is in both sets.

    Raises:
        EvaluationRefused: Some are. The message has their number only.
    """
    shared = {study.patient_key for study in training} & {study.patient_key for study in validation}
    if shared:
        raise EvaluationRefused(
            f"expected no patient both in training and in validation, got {len(shared)}; split by patient, not by study"
        )


def estimate(column: Column, measure: Measure, draws: Reals | None = None) -> Estimate:
    """Compute a measure, and with draws f64[D,patients] of `draw_patients` its 95 % interval."""
    reason = _undefined(column, measure)
    if reason is not None:
        return Estimate(None, reason=reason)
    value = float(of_draws(column, measure, np.ones((1, column.patients_count)))[0])
    if draws is None or len(np.unique(column.patients)) < PATIENTS_MIN:
        return Estimate(value)
    low, high = interval(of_draws(column, measure, draws))
    return Estimate(value, low, high)


def predictive(
    column: Column, prevalences: Sequence[float], draws: Reals | None = None
) -> dict[float, tuple[Estimate, Estimate]]:
    """Compute PPV and NPV at each prevalence, by Bayes' rule from sensitivity and specificity.

    Args:
        column: One label.
        prevalences: Shares of positive rows, other than the column's own.
        draws: f64[D,patients], for intervals.

    Returns:
        PPV and NPV by prevalence.
    """
    reason = _undefined(column, Measure.SPECIFICITY_95)
    if reason is not None:
        return dict.fromkeys(prevalences, (Estimate(None, reason=reason), Estimate(None, reason=reason)))
    own = _rates(column, np.ones((1, column.patients_count)))
    drawn = None if draws is None or len(np.unique(column.patients)) < PATIENTS_MIN else _rates(column, draws)

    def value_of(formula: Callable[[float, Reals, Reals], Reals], prevalence: float) -> Estimate:
        value = float(formula(prevalence, *own)[0])
        if math.isnan(value):
            return Estimate(None, reason="nothing is called negative")
        return Estimate(value) if drawn is None else Estimate(value, *interval(formula(prevalence, *drawn)))

    return {prevalence: (value_of(_ppv, prevalence), value_of(_npv, prevalence)) for prevalence in prevalences}


def compare(first: Column, second: Column, measure: Measure, draws: Reals) -> Difference:
    """Compute the paired difference of two models on the same rows and the same draws f64[D,patients].

    Raises:
        EvaluationRefused: The rows differ.
    """
    if not (np.array_equal(first.truth, second.truth) and np.array_equal(first.patients, second.patients)):
        raise EvaluationRefused("expected two models on the same rows of the same patients, got different rows")
    reason = _undefined(first, measure)
    if reason is not None:
        return Difference(None, reason=reason)
    whole = np.ones((1, first.patients_count))
    value = of_draws(first, measure, whole) - of_draws(second, measure, whole)
    if len(np.unique(first.patients)) < PATIENTS_MIN:
        return Difference(float(value[0]))
    return _difference(value, of_draws(first, measure, draws) - of_draws(second, measure, draws))


def weighted_log_loss(scored: Scored, draws: Reals | None = None) -> Estimate:
    """Compute RSNA 2019's metric: the weighted mean over labels of the mean cross-entropy; `any` has weight 2.

    Labels that no row has are left out, with their weights.
    """
    if not (scored.labels != MISSING).any():
        return Estimate(None, reason="no row has a label")
    value = float(_rsna(scored, np.ones((1, scored.patients_count)))[0])
    if draws is None or scored.patients_count < PATIENTS_MIN:
        return Estimate(value)
    return Estimate(value, *interval(_rsna(scored, draws)))


def compare_log_loss(first: Scored, second: Scored, draws: Reals) -> Difference:
    """Compute the paired difference of two models' weighted log losses.

    Raises:
        EvaluationRefused: The rows differ.
    """
    if not (np.array_equal(first.labels, second.labels) and np.array_equal(first.patients, second.patients)):
        raise EvaluationRefused("expected two models on the same rows of the same patients, got different rows")
    if not (first.labels != MISSING).any():
        return Difference(None, reason="no row has a label")
    whole = np.ones((1, first.patients_count))
    value = _rsna(first, whole) - _rsna(second, whole)
    if first.patients_count < PATIENTS_MIN:
        return Difference(float(value[0]))
    return _difference(value, _rsna(first, draws) - _rsna(second, draws))


def accuracy(scored: Scored) -> tuple[Estimate, Estimate]:
    """Compute the share of known labels that a threshold of .5 gets right, and the share that "all negative" does.

    The first means nothing without the second, which is .943 at RSNA's prevalences.
    """
    known = scored.labels != MISSING
    if not known.any():
        return Estimate(None, reason="no row has a label"), Estimate(None, reason="no row has a label")
    right = (scored.probabilities > 0.5) == (scored.labels == 1)
    return Estimate(float(right[known].mean())), Estimate(float((scored.labels[known] == 0).mean()))


def draw_patients(patients: int, draws: int, rng: np.random.Generator) -> Reals:
    """Draw patients with replacement: f64[draws, patients], how often each patient is in each draw."""
    return rng.multinomial(patients, np.full(patients, 1 / max(1, patients)), size=draws).astype(np.float64)


def interval(values: Reals) -> tuple[float | None, float | None]:
    """Return the middle 95 % of draws f64[D]. Undefined draws (NaN) are left out; None when all are."""
    usable = values[np.isfinite(values)]
    if not len(usable):
        return None, None
    low, high = np.quantile(usable, [0.025, 0.975])
    return float(low), float(high)


def reliability(column: Column, bins: int = ECE_BINS) -> list[tuple[float, float, int]]:
    """Return (mean probability, share of positives, rows) of each bin of equally many rows, ascending."""
    bin_of_row = _bins(column.probabilities, bins)
    points = []
    for index in range(bins):
        inside = bin_of_row == index
        if inside.any():
            mean, share = column.probabilities[inside].mean(), column.truth[inside].mean()
            points.append((float(mean), float(share), int(inside.sum())))
    return points


# --- weighted measures: f64[D, patients] -> f64[D] ----------------------------------------------------------------

_BY_ORDER: Final[Mapping[Measure, Callable[[Reals, Reals], Reals]]] = MappingProxyType(
    {
        Measure.AUC: ranked.auc,
        Measure.AP: ranked.average_precision,
        Measure.SENSITIVITY_90: lambda negative, positive: ranked.sensitivity_at(0.90, negative, positive),
        Measure.SENSITIVITY_95: lambda negative, positive: ranked.sensitivity_at(0.95, negative, positive),
        Measure.SPECIFICITY_95: lambda negative, positive: ranked.specificity_at(0.95, negative, positive),
    }
)


def of_draws(column: Column, measure: Measure, draws: Reals) -> Reals:
    """Compute a measure in each draw f64[D,patients].

    Returns:
        f64[D]; NaN in a draw without the kinds of rows that the measure needs.
    """
    if measure is Measure.ECE:
        return _calibration_error(column, draws)
    if measure is Measure.BRIER:
        return _mean((column.probabilities - column.truth) ** 2, column.patients, draws)
    if measure is Measure.LOG_LOSS:
        return _mean(_cross_entropy(column.probabilities, column.truth), column.patients, draws)
    return np.concatenate([_BY_ORDER[measure](*counts) for counts in _counts(column, draws)])


def _counts(column: Column, draws: Reals) -> Iterator[tuple[Reals, Reals]]:
    """Yield the tables of `ranked` for some draws at a time, which bounds memory."""
    order = Ranked.of(column.probabilities, column.truth)
    at_once = max(1, _CELLS_AT_ONCE // max(1, len(column.truth)))
    for start in range(0, len(draws), at_once):
        yield order.counts(draws[start : start + at_once, column.patients])


def _rates(column: Column, draws: Reals) -> tuple[Reals, Reals]:
    """f64[D] each: sensitivity and specificity of the threshold behind SPECIFICITY_95."""
    rates = [ranked.rates_at(0.95, *counts) for counts in _counts(column, draws)]
    sensitivity, specificity = (np.concatenate(part) for part in zip(*rates, strict=True))
    return sensitivity, specificity


def _ppv(prevalence: float, sensitivity: Reals, specificity: Reals) -> Reals:
    true_positive = sensitivity * prevalence
    return _divided(true_positive, true_positive + (1 - specificity) * (1 - prevalence))


def _npv(prevalence: float, sensitivity: Reals, specificity: Reals) -> Reals:
    true_negative = specificity * (1 - prevalence)
    return _divided(true_negative, true_negative + (1 - sensitivity) * prevalence)


def _calibration_error(column: Column, draws: Reals) -> Reals:
    """The bins are those of the set in every draw: they are part of the measure, not of the sample."""
    bin_of_row = _bins(column.probabilities, ECE_BINS)
    surplus = column.probabilities - column.truth

    def sums(values: Reals) -> Reals:
        return np.bincount(column.patients, values, minlength=column.patients_count).astype(np.float64)

    gaps = [np.abs(draws @ sums(surplus * (bin_of_row == index))) for index in range(ECE_BINS)]
    return _divided(np.sum(gaps, axis=0), draws @ sums(np.ones_like(surplus)))


def _rsna(scored: Scored, draws: Reals) -> Reals:
    total = np.zeros(len(draws))
    weight = np.zeros(len(draws))
    for label, own_weight in enumerate(LABEL_WEIGHTS):
        column = scored.column(label)
        mean = _mean(_cross_entropy(column.probabilities, column.truth), column.patients, draws)
        known = np.isfinite(mean)
        total += np.where(known, own_weight * mean, 0)
        weight += own_weight * known
    return _divided(total, weight)


def _cross_entropy(probabilities: Reals, truth: NDArray[np.int8]) -> Reals:
    clipped = probabilities.clip(_CLIP, 1 - _CLIP)
    loss: Reals = -np.where(truth == 1, np.log(clipped), np.log1p(-clipped))
    return loss


def _mean(values: Reals, patients: NDArray[np.int64], draws: Reals) -> Reals:
    sums = np.bincount(patients, values, minlength=draws.shape[1])
    rows = np.bincount(patients, minlength=draws.shape[1])
    return _divided(draws @ sums, draws @ rows)


def _bins(probabilities: Reals, bins: int) -> NDArray[np.int64]:
    """The bin of each row, by its rank. Equal probabilities share the bin of the first of them."""
    first = np.searchsorted(np.sort(probabilities), probabilities, side="left")
    return (first * bins // max(1, len(probabilities))).astype(np.int64)


def _divided(numerator: Reals, denominator: Reals) -> Reals:
    out: Reals = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return out


def _undefined(column: Column, measure: Measure) -> str | None:
    """The reason why the set has no such measure; None if it has."""
    positive = int((column.truth == 1).sum())
    if not len(column.truth):
        return "no row has this label"
    if positive == 0 and (measure in _NEEDS_BOTH or measure is Measure.AP):
        return "no positive row"
    if positive == len(column.truth) and measure in _NEEDS_BOTH:
        return "no negative row"
    return None


def _difference(value: Reals, draws: Reals) -> Difference:
    low, high = interval(draws)
    usable = draws[np.isfinite(draws)]
    sides = [(np.sum(usable <= 0) + 1) / (len(usable) + 1), (np.sum(usable >= 0) + 1) / (len(usable) + 1)]
    return Difference(float(value[0]), low, high, min(1.0, 2 * float(min(sides))))
