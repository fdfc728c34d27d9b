"""The sample points of a scan: slices, tilt, pose of the head, and the way from pixels to head space.

Head space is in mm: x to the patient's left, y to the back, z to the vertex, origin in the middle of the brain.
Scanner space is the DICOM patient system of a supine patient (LPS). A tilted gantry keeps its table axis, so slices are
parallel, tilted, and sheared along z, as real ones are.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from site_client.phantom.noise import Floats

SLAB_POINTS = 100_000
HEAD_REACH_MM = (92.0, 118.0)  # half extents of the head across and along the image, pose included


@dataclass(frozen=True)
class Scan:
    """Geometry of one series of T slices, caudal to cranial.

    `along_mm`: f64[T], middles of the slices along their normal. `thickness_mm`: f64[T]. `sample_mm`: distance of the
    sub-slices that are averaged. `pose`: f64[3, 3], rotation from head space to scanner space; `center_mm`: f64[3], the
    head's origin in scanner space.
    """

    size_px: int
    pixel_mm: float
    tilt_rad: float
    along_mm: npt.NDArray[np.float64]
    thickness_mm: npt.NDArray[np.float64]
    sample_mm: float
    pose: npt.NDArray[np.float64] = field(repr=False)
    center_mm: npt.NDArray[np.float64] = field(repr=False)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return len(self.along_mm)

    @property
    def row_direction(self) -> npt.NDArray[np.float64]:
        """First three of (0020,0037) *Image Orientation (Patient)*."""
        return np.array([1.0, 0.0, 0.0])

    @property
    def column_direction(self) -> npt.NDArray[np.float64]:
        """Last three of (0020,0037) *Image Orientation (Patient)*."""
        return np.array([0.0, np.cos(self.tilt_rad), np.sin(self.tilt_rad)])

    def position_mm(self, index: int) -> npt.NDArray[np.float64]:
        """Computes (0020,0032) *Image Position (Patient)* of a slice: the center of its first pixel, f64[3]."""
        half = (self.size_px - 1) / 2 * self.pixel_mm
        # The table moves along z, whatever the tilt.
        middle = np.array([0.0, 0.0, self.along_mm[index] / np.cos(self.tilt_rad)])
        return np.asarray(middle - half * (self.row_direction + self.column_direction))

    def seen_at(self, head_mm: tuple[float, float, float]) -> npt.NDArray[np.float64]:
        """Computes the place in scanner space, f64[3] in mm, of a point of the head."""
        return np.asarray(self.pose @ np.array(head_mm) + self.center_mm)


@dataclass(frozen=True)
class Lattice:
    """The sample points of a scan inside the head's box: thin sub-slices that average to the slices.

    `x`, `y`, `z`: head-space coordinates f32[S, H, W]. `box`: rows and columns of the image that the box covers.
    `first`, `counts`: int64[T], index of each slice's first sub-slice and their number. `voxel_ml`: f32[S], volume of a
    voxel of each sub-slice.
    """

    x: Floats = field(repr=False)
    y: Floats = field(repr=False)
    z: Floats = field(repr=False)
    box: tuple[slice, slice]
    first: npt.NDArray[np.int64] = field(repr=False)
    counts: npt.NDArray[np.int64] = field(repr=False)
    voxel_ml: Floats = field(repr=False)

    @classmethod
    def of(cls, scan: Scan) -> "Lattice":
        """Computes the sample points of a scan."""
        along, counts = _sub_slices(scan)
        box = _head_box(scan)
        pixels = (np.arange(scan.size_px) - (scan.size_px - 1) / 2) * scan.pixel_mm
        middle = np.stack([np.zeros_like(along), np.zeros_like(along), along / np.cos(scan.tilt_rad)], axis=1)
        to_head = scan.pose.T
        # A point is a sum of a term a slice, a term a row and a term a column: three small arrays instead of a rotation
        # of every point.
        by_slice = (middle - scan.center_mm) @ to_head.T
        by_row = np.outer(pixels[box[0]], to_head @ scan.column_direction)
        by_column = np.outer(pixels[box[1]], to_head @ scan.row_direction)
        x, y, z = (
            by_slice[:, axis].astype(np.float32)[:, None, None]
            + by_row[:, axis].astype(np.float32)[None, :, None]
            + by_column[:, axis].astype(np.float32)[None, None, :]
            for axis in (0, 1, 2)
        )
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        step = np.repeat(scan.thickness_mm / counts, counts)
        return cls(x, y, z, box, first, counts, (step * scan.pixel_mm**2 / 1000).astype(np.float32))

    def slabs(self) -> list[slice]:
        """Divides the sub-slices into slabs whose arrays stay in the processor's cache."""
        thickness = max(1, SLAB_POINTS // (self.x.shape[1] * self.x.shape[2]))
        return [slice(start, start + thickness) for start in range(0, len(self.x), thickness)]

    def averaged(self, values: Floats) -> Floats:
        """Averages sub-slices f32[S, H, W] to slices f32[T, H, W]."""
        # Slice by slice into one array: a reshaped mean would need equal counts, and a second copy of all sub-slices.
        out = np.empty((len(self.counts), *values.shape[1:]), dtype=np.float32)
        for k, (first, count) in enumerate(zip(self.first, self.counts, strict=True)):
            np.mean(values[first : first + count], axis=0, out=out[k])
        return out


def _sub_slices(scan: Scan) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    # At least one sub-slice; thick slices get more, so that all are sampled about equally densely.
    counts = np.maximum(1, np.round(scan.thickness_mm / scan.sample_mm)).astype(np.int64)
    offsets = [((np.arange(n) + 0.5) / n - 0.5) * t for n, t in zip(counts, scan.thickness_mm, strict=True)]
    return np.concatenate([a + o for a, o in zip(scan.along_mm, offsets, strict=True)]), counts


def _head_box(scan: Scan) -> tuple[slice, slice]:
    middle = (scan.size_px - 1) / 2
    across, along = (reach / scan.pixel_mm for reach in HEAD_REACH_MM)
    row = middle + scan.center_mm[1] / scan.pixel_mm
    column = middle + scan.center_mm[0] / scan.pixel_mm
    return _clipped(row, along, scan.size_px), _clipped(column, across, scan.size_px)


def _clipped(center: float, reach: float, size_px: int) -> slice:
    return slice(max(0, int(center - reach)), min(size_px, int(center + reach) + 2))
