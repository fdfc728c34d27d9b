"""Smooth random fields over head space, cheap to sample at any points."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]

TILE = 48
TILE_SIGMA = 1.25


@dataclass(frozen=True)
class NoiseTile:
    """One periodic tile of band-limited Gaussian noise (unit variance) that serves as many fields.

    A field is the tile read at a scale and an offset of its own. Fields of one tile are near enough to independent for
    anatomy, and one small filtered tile costs far less than a full-size field for each use.
    """

    values: Floats

    @classmethod
    def draw(cls, random: np.random.Generator) -> "NoiseTile":
        white = random.standard_normal((TILE, TILE, TILE), dtype=np.float32)
        smooth = ndimage.gaussian_filter(white, TILE_SIGMA, mode="wrap", truncate=3.0)
        return cls((smooth / smooth.std()).astype(np.float32))

    def at(self, points: tuple[Floats, Floats, Floats], sigma_mm: float, offset: int) -> Floats:
        """The field number `offset`, smoothed as by a Gaussian of `sigma_mm`, at `points` (x, y, z in mm)."""
        scale = np.float32(TILE_SIGMA / sigma_mm)
        shift = (np.array([7.3, 11.9, 17.1]) * offset) % TILE
        coordinates = np.stack([points[axis] * scale + np.float32(shift[axis]) for axis in (0, 1, 2)])
        flat = ndimage.map_coordinates(self.values, coordinates.reshape(3, -1), order=1, mode="grid-wrap")
        return np.asarray(flat, dtype=np.float32).reshape(points[0].shape)


def sheet_distance(field: Floats, sigma_mm: float) -> Floats:
    """About the distance in mm to the zero sheets of a field of `sigma_mm`: |n| over its mean gradient 1.13 / sigma."""
    return np.abs(field) * np.float32(sigma_mm / 1.13)
