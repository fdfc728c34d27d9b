"""Measures that depend on the order of scores, for one set and for thousands of weighted draws of it.

Scores are sorted once. Rows with equal scores form one group, so ties never depend on the order of the input. A draw is
a weight for each row. All measures read the same two tables: the negative and the positive weight of each group, from
the highest score down.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranked:
    """Rows sorted by score.

    Attributes:
        order: int64[N], rows from the highest score down.
        starts: int64[G], where each group of equal scores begins.
        truth: int8[N], in that order.
        scores: f64[G], descending.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    truth: NDArray[np.int8]
    scores: Reals

    @classmethod
    def of(cls, scores: Reals, truth: NDArray[np.int8]) -> "Ranked":
        """Sort scores f64[N] with truth int8[N] of 0 and 1."""
        # Stable: equal rows are summed in one order on every machine, so figures have the same last bits.
        order = np.argsort(-scores, kind="stable")
        descending = scores[order]
        starts = np.flatnonzero(np.concatenate([[True], descending[1:] != descending[:-1]])[: len(scores)])
        return cls(order, starts, truth[order], descending[starts])

    def counts(self, weights: Reals) -> tuple[Reals, Reals]:
        """Sum weights f64[D,N] by group: negative and positive, f64[D,G] each."""
        if not len(self.starts):
            empty = np.zeros((len(weights), 0))
            return empty, empty
        sorted_weights = weights[:, self.order]
        positive = np.add.reduceat(sorted_weights * (self.truth == 1), self.starts, axis=1)
        negative = np.add.reduceat(sorted_weights * (self.truth == 0), self.starts, axis=1)
        return negative, positive


def auc(negative: Reals, positive: Reals) -> Reals:
    """Compute f64[D]: the Mann-Whitney statistic, ties counting half; NaN in a draw without positives or negatives."""
    return _ratio(wins(negative, positive), pairs(negative, positive))


def wins(negative: Reals, positive: Reals) -> Reals:
    """Compute f64[D]: the weight of pairs whose positive row has the higher score, ties counting half."""
    above = np.cumsum(positive, axis=1) - positive
    won: Reals = (negative * (above + positive / 2)).sum(axis=1)
    return won


def pairs(negative: Reals, positive: Reals) -> Reals:
    """Compute f64[D]: the weight of all pairs of a positive and a negative row."""
    both: Reals = negative.sum(axis=1) * positive.sum(axis=1)
    return both


def average_precision(negative: Reals, positive: Reals) -> Reals:
    """Compute f64[D]: the sum of precision x gain in recall over thresholds; NaN in a draw without positives."""
    hits = np.cumsum(positive, axis=1)
    precision = _ratio(hits, hits + np.cumsum(negative, axis=1))
    gains = np.where(positive > 0, precision * positive, 0)
    return _ratio(gains.sum(axis=1), positive.sum(axis=1))


def sensitivity_at(specificity: float, negative: Reals, positive: Reals) -> Reals:
    """Compute f64[D]: the highest sensitivity of a threshold with this specificity or more.

    It is 0 in a draw in which only "never positive" has that specificity, and NaN in one without negatives or
    positives.
    """
    allowed, gained = np.cumsum(negative, axis=1), np.cumsum(positive, axis=1)
    negatives, positives = negative.sum(axis=1), positive.sum(axis=1)
    # Room for rounding: with ten negatives a specificity of .9 allows exactly one false positive.
    fits = allowed <= (1 - specificity) * negatives[:, None] + 1e-9 * np.maximum(negatives[:, None], 1)
    most = np.where(fits, gained, 0).max(axis=1, initial=0)
    return np.where(negatives > 0, _ratio(most, positives), np.nan)


def specificity_at(sensitivity: float, negative: Reals, positive: Reals) -> Reals:
    """Compute f64[D]: the highest specificity of a threshold with this sensitivity or more; NaN as in `rates_at`."""
    return rates_at(sensitivity, negative, positive)[1]


def rates_at(sensitivity: float, negative: Reals, positive: Reals) -> tuple[Reals, Reals]:
    """Compute sensitivity and specificity of the highest threshold with this sensitivity or more.

    Returns:
        f64[D] each; NaN in a draw without positives or negatives.
    """
    hits = np.cumsum(positive, axis=1)
    positives, negatives = hits[:, -1:], negative.sum(axis=1)
    # Room for rounding as in sensitivity_at.
    first = np.argmax(hits >= sensitivity * positives - 1e-9 * np.maximum(positives, 1), axis=1)[:, None]
    false_alarms = np.take_along_axis(np.cumsum(negative, axis=1), first, axis=1)[:, 0]
    reached = _ratio(np.take_along_axis(hits, first, axis=1)[:, 0], np.where(negatives > 0, positives[:, 0], 0))
    return reached, np.where(np.isfinite(reached), _ratio(negatives - false_alarms, negatives), np.nan)


def roc(negative: Reals, positive: Reals) -> tuple[Reals, Reals]:
    """Compute false and true positive rates of one set with both kinds, f64[G+1] each, from (0, 0) to (1, 1)."""
    rates = [np.concatenate([[0.0], np.cumsum(kind[0]) / kind[0].sum()]) for kind in (negative, positive)]
    return rates[0], rates[1]


def _ratio(numerator: Reals, denominator: Reals) -> Reals:
    out: Reals = np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)
    return out
