"""Measures of a model's probabilities against labels, as functions of weights of patients.

The sampling unit is the patient. The set itself is the draw of weights 1, so there is one implementation of a measure
for the set and for thousands of bootstrap draws of its patients.

    AUC            Mann-Whitney, ties half
    AUC_HEIGHT     the same over pairs of slices at equal height: pairs within each of 20 bins of relative height
    AP             average precision, not interpolated
    BRIER          mean squared difference of probability and label
    ECE            expected calibration error over 15 bins with equally many rows of the set
    LOG_LOSS       mean cross-entropy, probabilities clipped at 1e-15
    SENSITIVITY_90 at a specificity of at least .90; SENSITIVITY_95 likewise
    SPECIFICITY_95 at a sensitivity of at least .95

A slice's height in the head alone has an AUC of .75 to .8, because the base and the vertex seldom bleed. AUC_HEIGHT is
.5 for it (van Elteren, 1960: the stratified Mann-Whitney statistic).
"""

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

import numpy as np
from federation.labels import LABEL_WEIGHTS
from numpy.typing import NDArray

from site_client.inference import ranked
from site_client.inference.ranked import Ranked
from site_client.inference.scores import Column, Reals, Scored

ECE_BINS: Final = 15
HEIGHT_STRATA: Final = 20
_CLIP: Final = 1e-15
_CELLS_AT_ONCE: Final = 1 << 22  # of a table draws x rows: 32 MiB
_PERFECT_DRAWS: Final = 200


class Measure(Enum):
    """A measure; its value is its name in reports."""

    AUC = "AUC"
    AUC_HEIGHT = "AUC at equal height"
    AP = "AP"
    BRIER = "Brier"
    ECE = "ECE"
    LOG_LOSS = "log loss"
    SENSITIVITY_90 = "sensitivity at specificity .90"
    SENSITIVITY_95 = "sensitivity at specificity .95"
    SPECIFICITY_95 = "specificity at sensitivity .95"


NEEDS_BOTH: Final = frozenset(
    {Measure.AUC, Measure.AUC_HEIGHT, Measure.SENSITIVITY_90, Measure.SENSITIVITY_95, Measure.SPECIFICITY_95}
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
    if measure is Measure.AUC_HEIGHT:
        return _auc_at_equal_height(column, draws)
    return np.concatenate([_BY_ORDER[measure](*counts) for counts in _counts(column, draws)])


def undefined(column: Column, measure: Measure) -> str | None:
    """Return the reason why the set has no such measure; None if it has."""
    positive = int((column.truth == 1).sum())
    if not len(column.truth):
        return "no row has this label"
    if positive == 0 and (measure in NEEDS_BOTH or measure is Measure.AP):
        return "no positive row"
    if positive == len(column.truth) and measure in NEEDS_BOTH:
        return "no negative row"
    if measure is Measure.AUC_HEIGHT:
        if not len(column.heights):
            return "studies have no height"
        if np.isnan(_auc_at_equal_height(column, np.ones((1, column.patients_count)))[0]):
            return "no two slices of both kinds at equal height"
    return None


def rates_of_draws(column: Column, draws: Reals) -> tuple[Reals, Reals]:
    """Compute sensitivity and specificity of the threshold of SPECIFICITY_95 in each draw, f64[D] each."""
    rates = [ranked.rates_at(0.95, *counts) for counts in _counts(column, draws)]
    sensitivity, specificity = (np.concatenate(part) for part in zip(*rates, strict=True))
    return sensitivity, specificity


def log_loss_of_draws(scored: Scored, draws: Reals) -> Reals:
    """Compute RSNA 2019's metric in each draw: f64[D].

    It is the weighted mean over labels of the mean cross-entropy; `any` has weight 2. Labels that no row has are left
    out, with their weights.
    """
    total, weight = np.zeros(len(draws)), np.zeros(len(draws))
    for label, own_weight in enumerate(LABEL_WEIGHTS):
        mean = of_draws(scored.column(label), Measure.LOG_LOSS, draws)
        known = np.isfinite(mean)
        total += np.where(known, own_weight * mean, 0)
        weight += own_weight * known
    return _divided(total, weight)


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


def perfect_calibration_error(column: Column, seed: int = 0) -> float:
    """Return the mean ECE of a perfect model of this size: one whose labels are drawn from its probabilities.

    It is above 0, because a bin of few rows is off by chance: .10 with 60 rows, .03 with 1000.
    """
    rng, weights = np.random.default_rng(seed), np.ones((1, column.patients_count))
    errors = []
    for _ in range(_PERFECT_DRAWS):
        truth = (rng.random(len(column.truth)) < column.probabilities).astype(np.int8)
        drawn = Column(column.probabilities, truth, column.patients, column.patients_count)
        errors.append(_calibration_error(drawn, weights)[0])
    return float(np.mean(errors))


_BY_ORDER: Final[Mapping[Measure, Callable[[Reals, Reals], Reals]]] = MappingProxyType(
    {
        Measure.AUC: ranked.auc,
        Measure.AP: ranked.average_precision,
        Measure.SENSITIVITY_90: lambda negative, positive: ranked.sensitivity_at(0.90, negative, positive),
        Measure.SENSITIVITY_95: lambda negative, positive: ranked.sensitivity_at(0.95, negative, positive),
        Measure.SPECIFICITY_95: lambda negative, positive: ranked.specificity_at(0.95, negative, positive),
    }
)


def _counts(column: Column, draws: Reals) -> Iterator[tuple[Reals, Reals]]:
    """Yields the tables of `ranked` for some draws at a time, which bounds memory."""
    order = Ranked.of(column.probabilities, column.truth)
    at_once = max(1, _CELLS_AT_ONCE // max(1, len(column.truth)))
    for start in range(0, len(draws), at_once):
        yield order.counts(draws[start : start + at_once, column.patients])


def _auc_at_equal_height(column: Column, draws: Reals) -> Reals:
    stratum = (column.heights * HEIGHT_STRATA).astype(np.int64).clip(0, HEIGHT_STRATA - 1)
    wins, pairs = np.zeros(len(draws)), np.zeros(len(draws))
    for index in np.unique(stratum):
        inside = stratum == index
        own = Column(column.probabilities[inside], column.truth[inside], column.patients[inside], column.patients_count)
        # A stratum of one kind has no pairs.
        if 0 < own.truth.sum() < len(own.truth):
            for part, own_part in ((wins, ranked.wins), (pairs, ranked.pairs)):
                part += np.concatenate([own_part(*counts) for counts in _counts(own, draws)])
    return _divided(wins, pairs)


def _calibration_error(column: Column, draws: Reals) -> Reals:
    """The bins are those of the set in every draw: they are part of the measure, not of the sample."""
    bin_of_row = _bins(column.probabilities, ECE_BINS)
    surplus = column.probabilities - column.truth

    # Cost: rows are summed by patient once; all draws are then one product of matrices, however many rows there are.
    def sums(values: Reals) -> Reals:
        return np.bincount(column.patients, values, minlength=column.patients_count).astype(np.float64)

    gaps = [np.abs(draws @ sums(surplus * (bin_of_row == index))) for index in range(ECE_BINS)]
    return _divided(np.sum(gaps, axis=0), draws @ sums(np.ones_like(surplus)))


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
