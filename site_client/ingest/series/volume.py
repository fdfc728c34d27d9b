"""One series as a volume of Hounsfield units."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from site_client.errors import SeriesUnreadable
from site_client.ingest.files.hounsfield import AIR_HU, has_wrapped, may_have_wrapped, to_hu
from site_client.ingest.files.readers import shared_readers, whole
from site_client.ingest.files.slices import Slice
from site_client.ingest.reasons import Reason
from site_client.ingest.records import SeriesRecord
from site_client.ingest.series.stacks import along_normal

# Neighbours of one scan differ by less in their mean and in their densest percent; an intercept that is wrong by 1024
# shows in either.
_MEAN_STEP_HU, _BONE_STEP_HU = 200.0, 600.0
# A smaller fault hides in these: it shows in soft tissue, and in air, which is the same in all slices of a scan.
_SOFT_HU, _SOFT_STEP_HU = (-200, 200), 30.0
_AIR_HU, _AIR_OFF_HU = (AIR_HU + 1, -500), 40.0  # above the padding
_LEVEL_PIXELS_MIN = 100


@dataclass(frozen=True, eq=False)
class Volume:
    """T slices, caudal to cranial, in their native grid.

    `hu`: int16[T, H, W] within [-1024, 3071]. `spacing_mm`: between rows, between columns. `positions_mm`: f64[T] along
    the slices' normal, ascending, with all gaps and changes of spacing. `thickness_mm`: f64[T], derived from the
    distances where the files do not state (0018,0050) *Slice Thickness*.
    """

    hu: NDArray[np.int16]
    spacing_mm: tuple[float, float]
    positions_mm: NDArray[np.float64]
    thickness_mm: NDArray[np.float64]


def read_volume(series: SeriesRecord) -> Volume:
    """Reads the files of a series that the catalog found ready.

    Raises:
        SeriesUnreadable: A file is gone, cannot be decoded, or is not byte for byte the file that the catalog saw
            (`series.content_hash`). A round trains on what it announced, or not at all.
    """
    slices = whole(shared_readers().slices(series.files))
    # Before anything is computed: an archive may have replaced a file since the scan.
    if content_hash([image.sha256 for image in slices]) != series.content_hash:
        raise SeriesUnreadable(
            "expected the files that the catalog saw, got others; leave the series out and scan again",
            Reason.Q_READ.name,
        )
    reason = joint_reason(slices)
    if reason is not None:
        raise SeriesUnreadable("expected slices that form one volume, got others; scan again", reason.name)
    spacing = slices[0].spacing_mm
    positions = along_normal(slices[0].orientation, [image.position for image in slices])
    # One decision for all slices: some show too little air to see by themselves that they have wrapped.
    wrapped = have_wrapped(slices)
    return Volume(
        hu=np.stack([to_hu(image.stored, image.scale, wrapped and may_have_wrapped(image.scale)) for image in slices]),
        spacing_mm=(spacing[0], spacing[1]),
        positions_mm=positions,
        thickness_mm=_thickness(np.array([image.thickness_mm for image in slices]), positions),
    )


def content_hash(digests: list[bytes]) -> str:
    """Computes the hex SHA-256 over the digests of a series' files in order."""
    return hashlib.sha256(b"hemofed series v1" + b"".join(digests)).hexdigest()


def joint_reason(slices: Sequence[Slice]) -> Reason | None:
    """Finds why slices that can be decoded are no volume together: None, Q_GEOMETRY or Q_HU_RANGE.

    The catalog asks before it calls a series READY, and `read_volume` asks again: so a READY series can be read.

    Args:
        slices: Of one series, caudal to cranial, at any step.
    """
    shape, spacing = slices[0].shape, slices[0].spacing_mm
    if len(spacing) != 2 or any(image.shape != shape for image in slices):
        return Reason.Q_GEOMETRY
    scales = [(image.scale.slope, image.scale.intercept) for image in slices]
    if len(set(scales)) == 1:
        return None
    # Other scales are sound if the tissue goes on through them.
    wrapped = have_wrapped(slices)
    hu = [to_hu(image.coarse, image.scale, wrapped and may_have_wrapped(image.scale)) for image in slices]
    air = np.array([_level(image, _AIR_HU) for image in hu])
    if np.isfinite(air).any() and np.nanmax(np.abs(air - np.nanmedian(air))) > _AIR_OFF_HU:
        return Reason.Q_HU_RANGE
    for place, (scale, other) in enumerate(pairwise(scales)):
        if scale != other and not _goes_on(hu[place], hu[place + 1]):
            return Reason.Q_HU_RANGE
    return None


def _goes_on(below: NDArray[np.int16], above: NDArray[np.int16]) -> bool:
    """Tells whether two neighbors, int16[h, w] in HU, may be of one scan."""
    soft_step = abs(_level(below, _SOFT_HU) - _level(above, _SOFT_HU))  # nan: one has too little to tell
    return not (
        abs(below.mean() - above.mean()) > _MEAN_STEP_HU
        or abs(np.percentile(below, 99) - np.percentile(above, 99)) > _BONE_STEP_HU
        or soft_step > _SOFT_STEP_HU
    )


def _level(hu: NDArray[np.int16], within: tuple[int, int]) -> float:
    """Computes the median of the values within a range; nan where they are few."""
    values = hu[(hu >= within[0]) & (hu <= within[1])]
    return float(np.median(values)) if values.size >= _LEVEL_PIXELS_MIN else float("nan")


def have_wrapped(slices: Sequence[Slice]) -> bool:
    """Tells whether 12-bit values wrapped, by every fourth pixel of all slices whose header allows it."""
    suspects = [image.coarse for image in slices if may_have_wrapped(image.scale)]
    return bool(suspects) and has_wrapped(np.stack(suspects))


def _thickness(stated: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    if positions.size < 2 or (stated > 0).all():
        return stated
    steps = np.diff(positions)
    # Half the way to either neighbour; the outermost slices have one neighbour only.
    around = np.concatenate([steps[:1], (steps[:-1] + steps[1:]) / 2, steps[-1:]])
    return np.where(stated > 0, stated, around)
