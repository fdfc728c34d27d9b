"""Missing slices: found from positions, thickness and instance numbers of a whole stack. Pure functions.

A bleed in a missing slice makes the study's label false, so a doubt holds the series back.
"""

from collections.abc import Set
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_LONGER = 1.4  # than what is usual there: a step over a missing slice is twice as long
APART = 1.2  # of the thickness: slices further apart leave tissue out
_AROUND = 3  # steps to either side that show what is usual there


def gaps(
    positions_mm: NDArray[np.float64],
    thickness_mm: NDArray[np.float64],
    numbers: NDArray[np.int64] | None = None,
    elsewhere: Set[int] = frozenset(),
) -> NDArray[np.intp]:
    """Finds the indices i where slices are missing between i and i+1.

    Slices that touch or overlap have no gap. Of the others a step is a gap when one of these holds:

    - it is longer by 40 % than the usual step on either side;
    - it is longer by 40 % than the usual step between slices of this thickness;
    - instance numbers are missing between its ends, and it is longer than a step where none is missing.

    So a change from thin to thick blocks and a constant distance between thin slices are no gaps.

    Args:
        positions_mm: f64[T], ascending.
        thickness_mm: f64[T], 0 where not stated.
        numbers: i64[T], (0020,0013) *Instance Number*; None, or -1 where not stated.
        elsewhere: Instance numbers of the series' other images, which are not missing.
    """
    steps = np.diff(positions_mm)
    if steps.size < 3:
        return np.zeros(0, dtype=np.intp)
    slabs = np.maximum(thickness_mm[:-1], thickness_mm[1:])
    longer = _longer_than_around(steps) | _longer_than_its_kind(steps, slabs)
    if numbers is not None:
        longer |= _over_missing_numbers(steps, slabs, numbers, elsewhere)
    return np.flatnonzero(longer & (steps > APART * slabs))


def _longer_than_around(steps: NDArray[np.float64]) -> NDArray[np.bool_]:
    longer = np.ones(steps.size, dtype=np.bool_)
    for place, step in enumerate(steps):
        for side in (steps[max(0, place - _AROUND) : place], steps[place + 1 : place + 1 + _AROUND]):
            # At an end of the stack only the other side tells.
            longer[place] &= not side.size or step > _LONGER * np.median(side)
    return longer


def _longer_than_its_kind(steps: NDArray[np.float64], slabs: NDArray[np.float64]) -> NDArray[np.bool_]:
    longer = np.zeros(steps.size, dtype=np.bool_)
    # Without a stated thickness, thin and thick blocks would be one kind.
    for slab in np.unique(slabs[slabs > 0]):
        kind = np.abs(slabs - slab) <= 0.1 * slab
        longer |= kind & (steps > _LONGER * np.median(steps[kind]))
    return longer


def _over_missing_numbers(
    steps: NDArray[np.float64], slabs: NDArray[np.float64], numbers: NDArray[np.int64], elsewhere: Set[int]
) -> NDArray[np.bool_]:
    counted = np.diff(numbers)
    # Numbers that do not run along the stack say nothing about it.
    if (numbers < 0).any() or not ((counted > 0).all() or (counted < 0).all()):
        return np.zeros(steps.size, dtype=np.bool_)
    present = set(numbers.tolist()) | elsewhere
    missing = np.array(
        [any(n not in present for n in range(min(a, b) + 1, max(a, b))) for a, b in pairwise(numbers.tolist())]
    )
    usual = float(np.median(steps[~missing])) if not missing.all() else np.inf
    reference = np.minimum(np.where(slabs > 0, slabs, np.inf), usual)
    return missing & (~np.isfinite(reference) | (steps > APART * reference))
