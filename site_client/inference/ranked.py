"""Everything that follows from the order of scores, for one set and for thousands of weighted draws of it.

Scores are sorted once; rows with equal scores form one group, so that ties never depend on the order of the input. A
draw is a weight per row, and all measures read the same two tables: how much negative and how much positive weight each
group holds, from the highest score down.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranked:
    """`order` int64[N], rows from the highest score down; `starts` int64[G], where each group of equal scores begins;
    `truth` int8[N] in that order; `scores` f64[G], descending.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    truth: NDArray[np.int8]
    scores: Reals

    @classmethod
    def of(cls, scores: Reals, truth: NDArray[np.int8]) -> "Ranked":
        """scores f64[N]; truth int8[N] of 0 and 1."""
        order = np.argsort(-scores, kind="stable")
        descending = scores[order]
        starts = np.flatnonzero(np.concatenate([[True], descending[1:] != descending[:-1]])[: len(scores)])
        return cls(order, starts, truth[order], descending[starts])

    def counts(self, weights: Reals) -> tuple[Reals, Reals]:
        """weights f64[D,N] -> negative, positive f64[D,G]: the weight of each kind in each group."""
        if not len(self.starts):
            empty = np.zeros((len(weights), 0))
            return empty, empty
        sorted_weights = weights[:, self.order]
        positive = np.add.reduceat(sorted_weights * (self.truth == 1), self.starts, axis=1)
        negative = np.add.reduceat(sorted_weights * (self.truth == 0), self.starts, axis=1)
        return negative, positive


def auc(negative: Reals, positive: Reals) -> Reals:
    """f64[D]: chance that a positive scores above a negative, ties counting half; nan when a draw lacks a kind."""
    above = np.cumsum(positive, axis=1) - positive
    wins = (negative * (above + positive / 2)).sum(axis=1)
    return _ratio(wins, negative.sum(axis=1) * positive.sum(axis=1))


def average_precision(negative: Reals, positive: Reals) -> Reals:
    """f64[D]: sum of precision x gain in recall over the thresholds, without interpolation; nan without positives."""
    hits = np.cumsum(positive, axis=1)
    precision = _ratio(hits, hits + np.cumsum(negative, axis=1))
    gains = np.where(positive > 0, precision * positive, 0)
    return _ratio(gains.sum(axis=1), positive.sum(axis=1))


def sensitivity_at(specificity: float, negative: Reals, positive: Reals) -> Reals:
    """f64[D]: the highest sensitivity of a threshold whose specificity is at least this; 0 when only "never" has it."""
    return _best(allowed=negative, gained=positive, share=1 - specificity)


def specificity_at(sensitivity: float, negative: Reals, positive: Reals) -> Reals:
    """f64[D]: the highest specificity of a threshold whose sensitivity is at least this."""
    return rates_at(sensitivity, negative, positive)[1]


def rates_at(sensitivity: float, negative: Reals, positive: Reals) -> tuple[Reals, Reals]:
    """f64[D] each: sensitivity and specificity of the highest threshold whose sensitivity is at least this; nan when a
    draw lacks a kind.
    """
    found = np.cumsum(positive, axis=1)
    total, negatives = found[:, -1:], negative.sum(axis=1)
    first = np.argmax(found >= sensitivity * total - 1e-9 * np.maximum(total, 1), axis=1)[:, None]  # as in _best
    taken = np.take_along_axis(np.cumsum(negative, axis=1), first, axis=1)[:, 0]
    true = _ratio(np.take_along_axis(found, first, axis=1)[:, 0], np.where(negatives > 0, total[:, 0], 0))
    return true, np.where(np.isfinite(true), _ratio(negatives - taken, negatives), np.nan)


def roc(negative: Reals, positive: Reals) -> tuple[Reals, Reals]:
    """One set's false and true positive rates, f64[G+1] each, from (0, 0) to (1, 1). Both kinds are present."""
    rates = [np.concatenate([[0.0], np.cumsum(kind[0]) / kind[0].sum()]) for kind in (negative, positive)]
    return rates[0], rates[1]


def _best(allowed: Reals, gained: Reals, share: float) -> Reals:
    """The most of `gained`, as a share, by a prefix of groups that holds no more than `share` of `allowed`."""
    spent, won = np.cumsum(allowed, axis=1), np.cumsum(gained, axis=1)
    total_allowed, total_gained = allowed.sum(axis=1), gained.sum(axis=1)
    # A rounding's room: with ten negatives, a specificity of .9 allows exactly one of them.
    fits = spent <= share * total_allowed[:, None] + 1e-9 * np.maximum(total_allowed[:, None], 1)
    most = np.where(fits, won, 0).max(axis=1, initial=0)
    return np.where(total_allowed > 0, _ratio(most, total_gained), np.nan)


def _ratio(part: Reals, whole: Reals) -> Reals:
    out: Reals = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return out
