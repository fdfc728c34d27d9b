"""AUC from counts with noise, and an interval that covers both the choice of the patients and the noise. Pure.

A private round counts each validation patient once a label, in one of 16 cells of the model's logit, and every cell
carries noise of a known variance. For counts p of positives and n of negatives,

    T(auc) = sum over cells i, j of (K(i, j) - auc) p_i n_j        K: 1 if i > j, 1/2 if i = j, else 0

has mean 0 at the true AUC, because the noise of p and of n is independent and has mean 0. So W / (P N), the root of T,
is unbiased but for terms of second order, and for the cut at 0 and 1. The interval holds every AUC in [0, 1] that
T does not contradict: T(auc)^2 <= z^2 Var T(auc). As a score interval it needs no log-odds at the ends, and it is all
of [0, 1] where noise leaves nothing of the counts (Fieller 1954; Newcombe, Statist. Med. 2006). The variance is the
sum of

    sampling  (P N)^2 times that of Hanley & McNeil, Radiology 1982, at this AUC
    noise     sigma^2 times the squared derivatives of T by each p_i and n_j (delta method). With noisy counts in place
              of the true ones it is too large by sigma^4 sum (K - auc)^2, which is not taken off.

`tests/aggregator/test_noised_auc.py` simulates coverage.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_Z: Final = 1.959964  # of 95 %
_CANDIDATES: Final = np.linspace(0.0, 1.0, 1001)  # steps of .001, as pages show an AUC


@dataclass(frozen=True)
class AucEstimate:
    """An AUC with its interval of 95 %; all in [0, 1], low <= value <= high."""

    value: float
    low: float
    high: float


def auc_of_counts(negative: NDArray[np.int64], positive: NDArray[np.int64], variance: float) -> AucEstimate:
    """Estimate the AUC.

    Args:
        negative: int64[cells], patients without the label by ascending logit, with noise: may be below 0.
        positive: int64[cells], those with it. Both sums have to be above 0.
        variance: Of the noise in each cell.
    """
    cells = np.arange(negative.size)
    above = (cells[:, None] > cells) + 0.5 * (cells[:, None] == cells)
    p, n = positive.astype(np.float64), negative.astype(np.float64)
    positives, negatives = p.sum(), n.sum()
    # Derivatives of W by each count; those of T are smaller by auc * N and auc * P.
    by_positive, by_negative = above @ n, above.T @ p
    wins, pairs = float(p @ by_positive), float(positives * negatives)
    # Noise can make fewer wins than none, or more than there are pairs.
    value = min(1.0, max(0.0, wins / pairs))
    auc = _CANDIDATES
    noise = variance * (
        ((by_positive - auc[:, None] * negatives) ** 2).sum(axis=1)
        + ((by_negative - auc[:, None] * positives) ** 2).sum(axis=1)
    )
    sampling = pairs * (
        auc * (1 - auc)
        + (positives - 1) * (auc / (2 - auc) - auc**2)
        + (negatives - 1) * (2 * auc**2 / (1 + auc) - auc**2)
    )
    possible = auc[(wins - auc * pairs) ** 2 <= _Z**2 * (noise + sampling)]
    # With `value`, which lies between two candidates and may be the only AUC that is possible.
    return AucEstimate(value, float(min([value, *possible])), float(max([value, *possible])))
