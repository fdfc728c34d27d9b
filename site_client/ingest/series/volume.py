"""One series as a block of Hounsfield units."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from site_client.errors import SeriesUnreadable
from site_client.ingest.files.hounsfield import has_wrapped, may_have_wrapped, to_hu
from site_client.ingest.files.pixels import Slice, read_slice
from site_client.ingest.reasons import Reason
from site_client.ingest.records import SeriesRecord
from site_client.ingest.series.stacks import along_normal


@dataclass(frozen=True, eq=False)
class Volume:
    """T slices, caudal to cranial, in their native grid.

    `hu`: int16[T, H, W] within [-1024, 3071]. `spacing_mm`: between rows, between columns. `positions_mm`: f64[T],
    along the slices' normal, ascending, gaps and changes of spacing as they were. `thickness_mm`: f64[T], from the
    distances where the files do not state it.
    """

    hu: NDArray[np.int16]
    spacing_mm: tuple[float, float]
    positions_mm: NDArray[np.float64]
    thickness_mm: NDArray[np.float64]


def read_volume(series: SeriesRecord) -> Volume:
    """Reads the files of a series that the catalog found ready.

    Raises SeriesUnreadable when a file is gone, cannot be decoded, or is not byte for byte what the catalog saw
    (`series.content_hash`): a round trains on what it announced, or not at all.
    """
    slices = [read_slice(path) for path in series.files]
    if content_hash([one.sha256 for one in slices]) != series.content_hash:
        raise SeriesUnreadable(
            "expected the files that the catalog saw, got others; leave the series out and scan again",
            Reason.Q_READ.name,
        )
    shape, spacing = slices[0].stored.shape, slices[0].spacing_mm
    if len(spacing) != 2 or any(one.stored.shape != shape for one in slices):
        raise SeriesUnreadable("expected slices of one size and spacing; scan again", Reason.Q_GEOMETRY.name)
    positions = along_normal(slices[0].orientation, [one.position for one in slices])
    return Volume(
        hu=to_hounsfield(slices),
        spacing_mm=(spacing[0], spacing[1]),
        positions_mm=positions,
        thickness_mm=_thickness(np.array([one.thickness_mm for one in slices]), positions),
    )


def content_hash(digests: list[bytes]) -> str:
    """Hex SHA-256 over the files' digests in order."""
    return hashlib.sha256(b"hemofed series v1" + b"".join(digests)).hexdigest()


def to_hounsfield(slices: Sequence[Slice]) -> NDArray[np.int16]:
    """int16[T, H, W] out of slices of one size."""
    wrapped = have_wrapped(slices)
    return np.stack([to_hu(one.stored, one.scale, wrapped and may_have_wrapped(one.scale)) for one in slices])


def have_wrapped(slices: Sequence[Slice]) -> bool:
    """Whether 12-bit values wrapped: decided once for a series, over all slices whose header allows it."""
    suspects = [one.stored[::4, ::4] for one in slices if may_have_wrapped(one.scale)]
    return bool(suspects) and has_wrapped(np.stack(suspects))


def _thickness(stated: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    if positions.size < 2 or (stated > 0).all():
        return stated
    steps = np.diff(positions)
    around = np.concatenate([steps[:1], (steps[:-1] + steps[1:]) / 2, steps[-1:]])
    return np.where(stated > 0, stated, around)
