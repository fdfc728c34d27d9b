"""Estimates and differences with 95 % intervals over patients.

A bootstrap draw takes patients with replacement, each with all of its rows. Two models are compared on the same draws,
so the difference is paired. An estimate may be the mean over several models of one recipe (seeds).

One rule for all intervals: value +- t x standard error of the draws, on a scale on which the measure has no bounds
(log-odds of shares, logarithm of losses, the difference itself). t has min(positive, negative patients) - 1 degrees of
freedom. The plain percentiles of the draws cover too little in small sets: 60 patients of whom 2 are positive .63
instead of .95. A test holds the coverage of this rule at .93 or more from ten patients of each kind on; below that no
interval is shown.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from federation.labels import MISSING
from scipy import stats

from site_client.errors import EvaluationRefused
from site_client.inference.measures import Measure, log_loss_of_draws, of_draws, rates_of_draws, undefined
from site_client.inference.scores import Column, Reals, Scored

DRAWS: Final = 2000
DRAW_SEED: Final = 20_240_229  # one for all evaluations: the same patients are drawn for every model
PATIENTS_MIN: Final = 10  # positive and negative ones, for an interval
PREVALENCES: Final = (0.05, 0.10, 0.15, 0.40)  # from emergency rooms to a collection made for training
_DRAWS_MIN: Final = 100  # defined ones
_EDGE: Final = 1e-6  # of a share on the scale of log-odds

Scale = Literal["share", "loss", "difference"]


@dataclass(frozen=True)
class Estimate:
    """A measure.

    Attributes:
        value: None if it is not defined.
        low: Lower end of the 95 % interval; None without draws or with too few patients.
        high: Its upper end.
        reason: Why `value` is None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Difference:
    """A measure of one recipe minus that of another.

    Attributes:
        value: None if it is not defined.
        low: Lower end of the 95 % interval; None with too few patients.
        high: Its upper end.
        p: Two-sided p-value of the same t statistic; None with `low`.
        reason: Why `value` is None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    reason: str | None = None


def draw_patients(patients: int, draws: int, rng: np.random.Generator) -> Reals:
    """Draw patients with replacement: f64[draws, patients], how often each patient is in each draw."""
    return rng.multinomial(patients, np.full(patients, 1 / max(1, patients)), size=draws).astype(np.float64)


def degrees_of_freedom(positive_patients: int, negative_patients: int) -> int | None:
    """Return the degrees of freedom of an interval; None with fewer than PATIENTS_MIN patients of either kind."""
    fewer = min(positive_patients, negative_patients)
    return fewer - 1 if fewer >= PATIENTS_MIN else None


def interval(value: float, draws: Reals, scale: Scale, freedom: int | None) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a value with draws f64[D]; (None, None) if there is none.

    Draws that are not defined (NaN) are left out. Without spread, as of a perfect separation, there is no interval.
    """
    usable = draws[np.isfinite(draws)]
    if freedom is None or len(usable) < _DRAWS_MIN or not math.isfinite(value):
        return None, None
    middle, spread = _stretch(np.array([value]), scale)[0], _stretch(usable, scale).std(ddof=1)
    if spread < 1e-12:
        return None, None
    reach = stats.t.ppf(0.975, freedom) * spread
    low, high = _shrink(np.array([middle - reach, middle + reach]), scale)
    return float(low), float(high)


def estimate(columns: Sequence[Column], measure: Measure, draws: Reals | None = None) -> Estimate:
    """Compute a measure, the mean over models, and with draws f64[D,patients] its 95 % interval.

    Args:
        columns: One label of one model or more, on the same rows.
        measure: See `measures`.
        draws: Of `draw_patients`.
    """
    reason = undefined(columns[0], measure)
    if reason is not None:
        return Estimate(None, reason=reason)
    value = _mean_over(columns, measure, np.ones((1, columns[0].patients_count)))[0]
    if draws is None:
        return Estimate(float(value))
    scale: Scale = "loss" if measure is Measure.LOG_LOSS else "share"
    freedom = degrees_of_freedom(columns[0].positive_patients, columns[0].negative_patients)
    # Cost: draws that no interval may use are not computed.
    drawn = np.empty(0) if freedom is None else _mean_over(columns, measure, draws)
    return Estimate(float(value), *interval(float(value), drawn, scale, freedom))


def compare(first: Sequence[Column], second: Sequence[Column], measure: Measure, draws: Reals) -> Difference:
    """Compute the paired difference of two recipes, each the mean over its models, on the same rows and draws.

    Raises:
        EvaluationRefused: The rows differ.
    """
    if not first[0].same_rows(second[0]):
        raise EvaluationRefused("expected two models on the same rows of the same patients, got different rows")
    reason = undefined(first[0], measure)
    if reason is not None:
        return Difference(None, reason=reason)
    whole = np.ones((1, first[0].patients_count))
    value = _mean_over(first, measure, whole) - _mean_over(second, measure, whole)
    freedom = degrees_of_freedom(first[0].positive_patients, first[0].negative_patients)
    if freedom is None:
        return Difference(float(value[0]))
    drawn = _mean_over(first, measure, draws) - _mean_over(second, measure, draws)
    return _difference(float(value[0]), drawn, freedom)


def weighted_log_loss(models: Sequence[Scored], draws: Reals | None = None) -> Estimate:
    """Compute RSNA 2019's weighted log loss, the mean over models on the same rows, and its interval with draws.

    Its degrees of freedom are those of `any`.
    """
    if not (models[0].labels != MISSING).any():
        return Estimate(None, reason="no row has a label")
    value = _mean_log_loss(models, np.ones((1, models[0].patients_count)))[0]
    if draws is None:
        return Estimate(float(value))
    return Estimate(float(value), *interval(float(value), _mean_log_loss(models, draws), "loss", _freedom(models[0])))


def compare_log_loss(first: Sequence[Scored], second: Sequence[Scored], draws: Reals) -> Difference:
    """Compute the paired difference of two recipes' weighted log losses.

    Raises:
        EvaluationRefused: The rows differ.
    """
    if not (
        np.array_equal(first[0].labels, second[0].labels) and np.array_equal(first[0].patients, second[0].patients)
    ):
        raise EvaluationRefused("expected two models on the same rows of the same patients, got different rows")
    if not (first[0].labels != MISSING).any():
        return Difference(None, reason="no row has a label")
    whole = np.ones((1, first[0].patients_count))
    value = float((_mean_log_loss(first, whole) - _mean_log_loss(second, whole))[0])
    freedom = _freedom(first[0])
    if freedom is None:
        return Difference(value)
    return _difference(value, _mean_log_loss(first, draws) - _mean_log_loss(second, draws), freedom)


def predictive(
    column: Column, prevalences: Sequence[float], draws: Reals | None = None
) -> dict[float, tuple[Estimate, Estimate]]:
    """Compute PPV and NPV at each prevalence, by Bayes' rule from sensitivity and specificity.

    Args:
        column: One label.
        prevalences: Shares of positive rows, other than the column's own.
        draws: f64[D,patients], for intervals.

    Returns:
        PPV and NPV of the threshold of SPECIFICITY_95, by prevalence.
    """
    reason = undefined(column, Measure.SPECIFICITY_95)
    if reason is not None:
        return dict.fromkeys(prevalences, (Estimate(None, reason=reason), Estimate(None, reason=reason)))
    own = rates_of_draws(column, np.ones((1, column.patients_count)))
    freedom = degrees_of_freedom(column.positive_patients, column.negative_patients)
    drawn = None if draws is None or freedom is None else rates_of_draws(column, draws)

    def value_of(formula: Callable[[float, Reals, Reals], Reals], prevalence: float) -> Estimate:
        value = float(formula(prevalence, *own)[0])
        if math.isnan(value):
            return Estimate(None, reason="nothing is called negative")
        if drawn is None:
            return Estimate(value)
        return Estimate(value, *interval(value, formula(prevalence, *drawn), "share", freedom))

    return {prevalence: (value_of(_ppv, prevalence), value_of(_npv, prevalence)) for prevalence in prevalences}


def accuracy(scored: Scored) -> tuple[Estimate, Estimate]:
    """Compute the share of known labels that a threshold of .5 gets right, and the share that "all negative" does.

    The first means nothing without the second, which is .943 at RSNA's prevalences.
    """
    known = scored.labels != MISSING
    if not known.any():
        return Estimate(None, reason="no row has a label"), Estimate(None, reason="no row has a label")
    right = (scored.probabilities > 0.5) == (scored.labels == 1)
    return Estimate(float(right[known].mean())), Estimate(float((scored.labels[known] == 0).mean()))


def _mean_over(columns: Sequence[Column], measure: Measure, draws: Reals) -> Reals:
    mean: Reals = np.mean([of_draws(column, measure, draws) for column in columns], axis=0)
    return mean


def _mean_log_loss(models: Sequence[Scored], draws: Reals) -> Reals:
    mean: Reals = np.mean([log_loss_of_draws(scored, draws) for scored in models], axis=0)
    return mean


def _freedom(scored: Scored) -> int | None:
    any_ = scored.column(-1)  # `any` is the last label
    return degrees_of_freedom(any_.positive_patients, any_.negative_patients)


def _difference(value: float, draws: Reals, freedom: int) -> Difference:
    low, high = interval(value, draws, "difference", freedom)
    if low is None or high is None:
        # Without spread both recipes are the same in every draw.
        return Difference(value, p=1.0 if value == 0 else None)
    spread = draws[np.isfinite(draws)].std(ddof=1)
    return Difference(value, low, high, float(2 * stats.t.sf(abs(value) / spread, freedom)))


def _ppv(prevalence: float, sensitivity: Reals, specificity: Reals) -> Reals:
    true_positive = sensitivity * prevalence
    return _divided(true_positive, true_positive + (1 - specificity) * (1 - prevalence))


def _npv(prevalence: float, sensitivity: Reals, specificity: Reals) -> Reals:
    true_negative = specificity * (1 - prevalence)
    return _divided(true_negative, true_negative + (1 - sensitivity) * prevalence)


def _divided(numerator: Reals, denominator: Reals) -> Reals:
    out: Reals = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return out


def _stretch(values: Reals, scale: Scale) -> Reals:
    """The values on a scale without bounds."""
    if scale == "difference":
        return values
    if scale == "loss":
        return np.log(np.maximum(values, _EDGE))
    inside = values.clip(_EDGE, 1 - _EDGE)
    stretched: Reals = np.log(inside) - np.log1p(-inside)
    return stretched


def _shrink(values: Reals, scale: Scale) -> Reals:
    """The inverse of `_stretch`."""
    if scale == "difference":
        return values
    shrunk: Reals = np.exp(values) if scale == "loss" else 1 / (1 + np.exp(-values))
    return shrunk
