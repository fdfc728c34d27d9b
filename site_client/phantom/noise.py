"""Smooth random fields over head space, cheap to sample at any points."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Points = tuple[Floats, Floats, Floats]
Mask = npt.NDArray[np.bool_]

COARSE = 64
TILE = 2 * COARSE
TILE_SIGMA = 4.0


@dataclass(frozen=True)
class NoiseTile:
    """One periodic tile of band-limited Gaussian noise (unit variance) that serves as many fields.

    A field is the tile read at a scale and an offset of its own, at the nearest of its fine cells. Fields of one tile
    are near enough to independent for anatomy, and one small tile costs far less than a full-size field for each use.
    """

    values: Floats = field(repr=False)

    @classmethod
    def draw(cls, random: np.random.Generator) -> "NoiseTile":
        """Draws a tile."""
        # Half the cells, then doubled: filtering the full tile would cost eight times as much.
        white = random.standard_normal((COARSE, COARSE, COARSE), dtype=np.float32)
        smooth = ndimage.gaussian_filter(white, TILE_SIGMA / 2, mode="wrap", truncate=3.0)
        smooth /= smooth.std()
        for axis in range(3):
            smooth = _doubled(smooth, axis)
        return cls(np.ascontiguousarray(smooth, dtype=np.float32).ravel())

    def at(self, points: tuple[Floats, Floats, Floats], sigma_mm: float, number: int) -> Floats:
        """Reads the field `number`, smoothed as by a Gaussian of `sigma_mm`.

        Args:
            points: X, y, z in mm, three arrays of one shape.
            sigma_mm: Smoothness of the field.
            number: Of the field; another number gives another field.

        Returns:
            f32 of the shape of x.
        """
        scale = np.float32(TILE_SIGMA / sigma_mm)
        # The cast below truncates toward zero: a shift of many periods keeps every coordinate positive.
        shift = (np.array([19.3, 31.9, 47.1]) * number) % TILE + 64 * TILE
        cell = np.zeros(points[0].shape, dtype=np.int32)
        for axis in range(3):
            along = (points[axis] * scale + np.float32(shift[axis])).astype(np.int32)
            along &= TILE - 1
            cell *= TILE
            cell += along
        return np.asarray(self.values[cell], dtype=np.float32)


def sheet_distance(field: Floats, sigma_mm: float) -> Floats:
    """Approximates the distance in mm to the zero sheets of a field: |n| over its mean gradient 1.13 / sigma."""
    return np.abs(field) * np.float32(sigma_mm / 1.13)


def _doubled(values: Floats, axis: int) -> Floats:
    """Doubles the cells along a periodic axis, the new ones halfway between their neighbors."""
    between = (values + np.roll(values, -1, axis)) / 2
    shape = list(values.shape)
    shape[axis] *= 2
    return np.stack([values, between], axis=axis + 1).reshape(shape)
