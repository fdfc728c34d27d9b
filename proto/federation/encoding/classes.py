"""Size classes: the counts of a site leave only as 0, 4, 8, 16, 32 … so that no two sums tell them apart exactly.

How many studies a hospital trains on, and how many validation slices it has of each label, hardly change from round to
round. Over many rounds with other cohorts the sums determine such numbers, though all keep the protocol. So a site
rounds them down to a class before it encodes. Its loss stays a mean, and its histograms keep their form.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from federation.encoding.header import SiteHeader
from federation.encoding.layout import Layout
from federation.gate import (
    NO_COMPARISON,
    NO_COMPARISONS,
    SMALLEST_CLASS,
    ClipAndCases,
    Comparison,
    Comparisons,
    Gate,
    bounds_of,
)


def size_class(count: int) -> int:
    """Returns the class of a count: the largest power of two in it; 0 below `SMALLEST_CLASS`."""
    return 1 << (count.bit_length() - 1) if count >= SMALLEST_CLASS else 0


def coarse_header(layout: Layout, header: SiteHeader) -> SiteHeader:
    """Rounds every count of a site down to its class, at most to the plan's caps.

    The weight is at least 1: an update without weight could not be encoded.

    Args:
        layout: Layout of the round.
        header: The exact header.

    Returns:
        The header to encode. Each histogram of 64 bins keeps its form; its sum is a class.
    """
    examples = size_class(min(header.example_count, layout.count_cap))
    mean_loss = header.loss_sum / header.example_count if header.example_count else 0.0
    histograms = np.zeros_like(header.histograms)
    for label, truth in np.ndindex(header.histograms.shape[:2]):
        counts = header.histograms[label, truth]
        histograms[label, truth] = _scaled(counts, size_class(min(int(counts.sum()), layout.count_cap)))
    return replace(
        header,
        studies=max(1, size_class(min(header.studies, layout.weight_cap))),
        loss_sum=mean_loss * examples,
        example_count=examples,
        histograms=histograms,
        comparisons=NO_COMPARISONS if layout.gate is None else _coarse_comparisons(layout.gate, header.comparisons),
    )


def _coarse_comparisons(gate: Gate, comparisons: Comparisons) -> Comparisons:
    loss_bounds, *label_bounds = bounds_of(gate)
    return Comparisons(
        _coarse_comparison(loss_bounds, comparisons.loss),
        tuple(map(_coarse_comparison, label_bounds, comparisons.labels)),
    )


def _coarse_comparison(bounds: ClipAndCases, comparison: Comparison) -> Comparison:
    """Scales the sums to a class of cases; their means stay."""
    cases = size_class(min(comparison.cases, bounds.cases_max))
    if cases == 0:
        return NO_COMPARISON
    factor = cases / comparison.cases
    return Comparison(comparison.difference_sum * factor, comparison.square_sum * factor, cases, 1)


def _scaled(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Scales whole counts so that they add up to `total`, by largest remainders; of equal ones the first bin's."""
    if total == 0:
        return np.zeros_like(counts)
    # Python's whole numbers: products of counts and totals of 2^32 do not fit into int64.
    parts = [divmod(count * total, int(counts.sum())) for count in counts.tolist()]
    scaled = np.array([quotient for quotient, _ in parts], np.int64)
    by_remainder = sorted(range(len(parts)), key=lambda place: -parts[place][1])
    scaled[by_remainder[: total - int(scaled.sum())]] += 1
    return scaled
