"""Clip an update, and turn rotated coordinates into whole levels without bias.

A coordinate z in [-B, B] becomes level floor((z + B) / step + u) with u uniform in [0, 1) and step = 2 B / level_max:
the level's expectation is the coordinate's place between the two levels beside it. Both summands are multiples of
2^-16: the place is rounded to the nearest one, and from there on the expectation is exact. Coordinates outside are
clipped; B (layout.range) is chosen so that few are. Source: Suresh et al., ICML 2017, section 2.2.
"""

import math

import numpy as np
from numpy.typing import NDArray

from federation.encoding.layout import Layout
from federation.errors import EncodingRefused

_CHUNK = 1 << 16
_PART_BITS = 16  # of a step; 2^-16 of it is as much as float32 tells apart at the highest levels


def clip(delta: NDArray[np.float32], norm: float) -> tuple[NDArray[np.float32], bool]:
    """Scales `delta` f32[d] down to L2 norm `norm` if it is longer.

    Returns:
        The scaled vector, or `delta` itself; and whether it was longer.

    Raises:
        EncodingRefused: `delta` holds NaN or infinity, as it does after training that diverged.
    """
    length = norm_of(delta)
    if length <= norm:
        return delta, False
    return delta * np.float32(norm / length), True


def norm_of(delta: NDArray[np.float32]) -> float:
    """Returns the L2 norm of `delta` f32[d], summed in float64.

    Raises:
        EncodingRefused: `delta` holds NaN or infinity.
    """
    total = 0.0
    for start in range(0, delta.size, _CHUNK):
        part = delta[start : start + _CHUNK].astype(np.float64)
        total += float(part @ part)
    # float32 squares cannot overflow a float64 sum, so anything else than a finite total came in with the delta.
    if not math.isfinite(total):
        raise EncodingRefused("expected a finite update, got NaN or infinity; the training diverged")
    return math.sqrt(total)


def quantize(layout: Layout, rotated: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Quantizes rotated coordinates f32[k] to levels uint8[k], 0 to level_max. Overwrites `rotated`."""
    levels = np.empty(rotated.size, np.uint8)
    # In whole parts of a step below 2^24, which float32 holds exactly.
    top = np.float32(layout.level_max << _PART_BITS)
    per_step = np.float32(layout.level_max * 2**_PART_BITS / (2 * layout.range))
    for start in range(0, rotated.size, _CHUNK):
        part = rotated[start : start + _CHUNK]
        part *= per_step
        part += top / 2 + np.float32(0.5)  # a half, because the conversion to whole numbers takes the floor
        np.clip(part, 0, top, out=part)
        places = part.astype(np.int32)
        # Cost: one 64-bit number gives four draws; drawn one by one, as floats, they took more than all the rest.
        numbers = rng.integers(0, 2**64 - 1, -(-part.size // 4), np.uint64, endpoint=True)
        places += numbers.view(np.uint16)[: part.size]
        places >>= _PART_BITS
        levels[start : start + part.size] = places
    return levels
