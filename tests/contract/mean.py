"""The mean update of a cohort as one vector, for comparisons. Production never holds it whole (chain.next_model)."""

import numpy as np
from federation.chain import affine
from federation.encoding import DecodedSum, Layout
from federation.encoding.rotation import put, unrotated
from numpy.typing import NDArray


def unrotate(layout: Layout, levels: NDArray[np.integer], center: int, factor: float) -> NDArray[np.float64]:
    """f64[d]: factor * the inverse rotation of the whole numbers 2 levels - center, int [coordinates]."""
    result = np.empty(layout.parameters)
    for piece in range(len(layout.pieces)):
        for indices, blocks in unrotated(layout, levels, center, factor, piece):
            put(result, indices, blocks)
    return result


def mean_update(layout: Layout, decoded: DecodedSum) -> NDArray[np.float64]:
    """f64[d]: the weighted mean of the members' updates."""
    return unrotate(layout, decoded.levels, *affine(layout, decoded))
