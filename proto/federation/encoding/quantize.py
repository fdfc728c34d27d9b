"""Clip an update, and turn rotated coordinates into whole levels without bias.

A coordinate z in [-B, B] becomes level floor((z + B) / step + u) with u uniform in [0, 1) and step = 2 B / level_max:
the level's expectation is exactly the coordinate's place between the two levels beside it. Coordinates outside are
clipped; B (layout.range) is chosen so that few are. Source: Suresh et al., ICML 2017, section 2.2.
"""

import math

import numpy as np
from numpy.typing import NDArray

from federation.encoding.layout import Layout
from federation.errors import EncodingRefused

_CHUNK = 1 << 16


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
    draws = np.empty(_CHUNK, np.float32)
    top = np.float32(layout.level_max)
    per_step = np.float32(layout.level_max / (2 * layout.range))
    for start in range(0, rotated.size, _CHUNK):
        part = rotated[start : start + _CHUNK]
        noise = draws[: part.size]
        rng.random(out=noise, dtype=np.float32)
        part *= per_step
        part += top / 2
        np.clip(part, 0, top, out=part)
        part += noise
        # Rounding may carry top + 0.99999997 to top + 1, a level that no lane has room for.
        np.minimum(part, top, out=part)
        levels[start : start + part.size] = part
    return levels
