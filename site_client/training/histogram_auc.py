"""The AUC of a score histogram."""

import numpy as np
from numpy.typing import NDArray


def auc_of_histogram(negative: NDArray[np.number], positive: NDArray[np.number]) -> float:
    """Compute the AUC of a binned score: the Mann-Whitney statistic, ties counting half.

    Args:
        negative: Int or float[bins], counts of negatives by ascending bin.
        positive: [bins], counts of positives, likewise.

    Returns:
        The AUC, 0 to 1; NaN without positives or without negatives.
        Source: Hanley and McNeil, Radiology 143(1), 1982.
    """
    # Danger: the product of two sums of int64 counts could overflow.
    pairs = float(negative.sum()) * float(positive.sum())
    if pairs == 0:
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum()) / pairs
