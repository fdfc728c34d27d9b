"""One series as a block of Hounsfield units."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from site_client.ingest.records import SeriesRecord


@dataclass(frozen=True, eq=False)
class Volume:
    """T slices, caudal to cranial, in their native grid.

    `hu`: int16[T, H, W] within [-1024, 3071]. `spacing_mm`: between rows, between columns. `positions_mm`: f64[T],
    along the slices' normal, ascending, gaps and changes of spacing as they were. `thickness_mm`: f64[T].
    """

    hu: NDArray[np.int16]
    spacing_mm: tuple[float, float]
    positions_mm: NDArray[np.float64]
    thickness_mm: NDArray[np.float64]


def read_volume(series: SeriesRecord) -> Volume:
    """Reads the files of a series that the catalog found ready."""
    raise NotImplementedError
