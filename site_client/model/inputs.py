"""Turns a volume in Hounsfield units into the input of a network: one pipeline for training and inference.

1. Average thin stacks to about 5 mm.
2. Find the head and set everything else to air.
3. Resample in-plane by area to one scale for all patients, with the head in the middle of the square.
4. Apply three windows, as uint8.

Slices are not resampled along z: their distances are inputs of the network (geometry). The five channels are composed
when a batch is made, so that a cached study holds each slice once.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from federation.labels import MISSING
from numpy.typing import NDArray
from scipy import ndimage

from site_client.ingest.series.volume import Volume

PIPELINE_VERSION: Final = 1  # part of every cache key: raise it with any change of the output

FIELD_MM: Final = 230.4  # the square that holds a head: 0.9 mm/px at 256 px, and the same field at any other size
AIR_HU: Final = -1024.0
WINDOWS_HU: Final = ((40.0, 80.0), (80.0, 200.0), (600.0, 2800.0))  # center, width: brain, subdural, bone

WHOLE: Final = slice(None)  # of a study: all its slices
HEIGHT: Final = 2  # the column of the geometry that holds the relative position

_THIN_MM, _TARGET_MM = 2.5, 5.0  # stacks spaced closer than the first are averaged to about the second
_COARSE_MM = 4.0  # grid on which the head is found
_TISSUE_HU = -300.0


@dataclass(frozen=True)
class PreparedStudy:
    """A study after the pipeline, T slices from caudal to cranial.

    Attributes:
        windows: uint8[T,3,H,W]: brain, subdural, bone.
        geometry: f32[T,4]: log(gap below / 5 mm), log(gap above / 5 mm), relative position 0..1, thickness / 5 mm.
        source_slices: For each slice, the range of the volume's slices that were averaged into it.
    """

    windows: NDArray[np.uint8]
    geometry: NDArray[np.float32]
    source_slices: tuple[range, ...]

    @property
    def slices(self) -> int:
        """T, the slices of windows uint8[T,3,H,W]."""
        return len(self.source_slices)


def prepare(volume: Volume, image_size_px: int, slices_max: int) -> PreparedStudy:
    """Run the pipeline.

    Args:
        volume: A whole head, hu int16[S,rows,columns] in HU; spacing, positions and thickness in mm.
        image_size_px: Side of the output square, which always spans 230.4 mm.
        slices_max: Most slices of the output. A longer series is averaged down, never cut.

    Returns:
        The prepared study, `slices_max` slices or fewer.
    """
    groups = _group_slices(volume.positions_mm, slices_max)
    # Cost: float64, which numpy takes for the mean of whole numbers, would need twice the memory.
    hu = np.stack([volume.hu[group.start : group.stop].mean(axis=0, dtype=np.float32) for group in groups])
    centre_mm, is_head = _find_head(hu, volume.spacing_mm)
    rows, columns = (
        _area_weights(hu.shape[1 + axis], volume.spacing_mm[axis], centre_mm[axis], image_size_px) for axis in (0, 1)
    )
    image = _resample(hu, rows, columns)
    image[~_on_the_square(is_head, centre_mm, image_size_px)] = AIR_HU
    windows = np.stack([_window(image, center, width) for center, width in WINDOWS_HU], axis=1)
    return PreparedStudy(windows, _geometry(volume, groups), tuple(groups))


def compose_channels(windows: NDArray[np.uint8], slab: slice = WHOLE) -> NDArray[np.uint8]:
    """Compose the network's five channels: brain window below, here and above, then subdural and bone here.

    Args:
        windows: uint8[T,3,H,W], of the whole study.
        slab: The slices wanted, N of T. Their neighbours come from the whole study; end slices are repeated.

    Returns:
        uint8[N,5,H,W].
    """
    here = np.arange(len(windows))[slab]
    below, above = (here - 1).clip(min=0), (here + 1).clip(max=len(windows) - 1)
    brain, subdural, bone = windows.swapaxes(0, 1)
    return np.stack([brain[below], brain[here], brain[above], subdural[here], bone[here]], axis=1)


def network_input(windows: NDArray[np.uint8], slab: slice = WHOLE) -> NDArray[np.float32]:
    """Compose the input of a network, f32[N,5,H,W] in [-1,1], bit for bit as training does (`training.data.input_of`).

    Args:
        windows: uint8[T,3,H,W], of the whole study.
        slab: The slices wanted, N of T.
    """
    x = compose_channels(windows, slab).astype(np.float32)
    x /= np.float32(127.5)
    x -= np.float32(1)
    return x


def merge_labels(slice_labels: NDArray[np.int8], groups: tuple[range, ...]) -> NDArray[np.int8]:
    """Merge the labels of averaged slices: 1 if any is 1, 0 if all are 0, else missing.

    Args:
        slice_labels: int8[S,6] of the series' slices: 0, 1 or -1 (missing).
        groups: The source slices of each of T prepared slices.

    Returns:
        int8[T,6].
    """
    merged = []
    for group in groups:
        labels = slice_labels[group.start : group.stop]
        positive, negative = (labels == 1).any(axis=0), (labels == 0).all(axis=0)
        merged.append(np.where(positive, 1, np.where(negative, 0, MISSING)))
    return np.stack(merged).astype(np.int8)


def _group_slices(positions_mm: NDArray[np.float64], slices_max: int) -> list[range]:
    count = len(positions_mm)
    gap_mm = float(np.median(np.diff(positions_mm))) if count > 1 else _TARGET_MM
    size = max(1, round(_TARGET_MM / gap_mm)) if gap_mm < _THIN_MM else 1
    size = max(size, -(-count // slices_max))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _geometry(volume: Volume, groups: list[range]) -> NDArray[np.float32]:
    first, last = ([volume.positions_mm[g[end]] for g in groups] for end in (0, -1))
    z = (np.array(first) + np.array(last)) / 2
    gaps = np.diff(z) if len(z) > 1 else np.array([_TARGET_MM])
    below, above = np.concatenate([gaps[:1], gaps]), np.concatenate([gaps, gaps[-1:]])
    relative = (z - z[0]) / (z[-1] - z[0]) if len(z) > 1 else np.array([0.5])
    thickness = np.array([volume.thickness_mm[g.start : g.stop].mean() for g in groups]) + (np.array(last) - first)
    columns = [np.log(below[: len(z)] / 5), np.log(above[-len(z) :] / 5), relative, thickness / 5]
    return np.stack(columns, axis=1).astype(np.float32)


# --- the head -----------------------------------------------------------------------------------------------------


def _find_head(
    hu: NDArray[np.float32], spacing_mm: tuple[float, float]
) -> tuple[tuple[float, float], NDArray[np.bool_]]:
    """Find the head: its centre in mm from the image's corner (row, column), and its mask on a grid of 4 mm.

    The tissue mask is opened, which removes the thin shell of a headrest. The largest component is the head. It grows
    by 12 mm, which restores ears and vertex. An image without tissue counts as all head.
    """
    size_mm = [hu.shape[1 + axis] * spacing_mm[axis] for axis in (0, 1)]
    cells = [max(1, int(np.ceil(size / _COARSE_MM))) for size in size_mm]
    weights = [
        _area_weights(hu.shape[1 + axis], spacing_mm[axis], cells[axis] * _COARSE_MM / 2, cells[axis], _COARSE_MM)
        for axis in (0, 1)
    ]
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[0] = in_plane[2] = False
    tissue = ndimage.binary_opening(_resample(hu, *weights) > _TISSUE_HU, in_plane)
    components, count = ndimage.label(tissue)
    if count == 0:
        return (size_mm[0] / 2, size_mm[1] / 2), np.ones(tissue.shape, bool)
    head = components == 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    centre = [_middle(head.any(axis=(0, 2 - axis))) * _COARSE_MM for axis in (0, 1)]
    return (centre[0], centre[1]), ndimage.binary_dilation(head, np.ones((3, 3, 3), bool), iterations=3)


def _middle(occupied: NDArray[np.bool_]) -> float:
    where = np.flatnonzero(occupied)
    return float(where[0] + where[-1] + 1) / 2


def _on_the_square(coarse: NDArray[np.bool_], centre_mm: tuple[float, float], image_size_px: int) -> NDArray[np.bool_]:
    """Sample the coarse mask at every output pixel: bool[T,H,W], false outside the image."""
    pixel_mm = FIELD_MM / image_size_px
    offsets_mm = (np.arange(image_size_px) + 0.5) * pixel_mm - FIELD_MM / 2
    cells = [np.floor((centre_mm[axis] + offsets_mm) / _COARSE_MM).astype(int) for axis in (0, 1)]
    inside = [(cell >= 0) & (cell < coarse.shape[1 + axis]) for axis, cell in enumerate(cells)]
    rows, columns = (cell.clip(0, coarse.shape[1 + axis] - 1) for axis, cell in enumerate(cells))
    mask: NDArray[np.bool_] = coarse[:, rows[:, None], columns] & inside[0][:, None] & inside[1]
    return mask


# --- pixels -------------------------------------------------------------------------------------------------------


def _area_weights(
    pixels: int, spacing_mm: float, centre_mm: float, size_px: int, pixel_mm: float | None = None
) -> NDArray[np.float32]:
    """f32[size_px, pixels]: the share of output pixel i covered by input pixel j. Rows sum to 1 inside the image."""
    step = FIELD_MM / size_px if pixel_mm is None else pixel_mm
    start = centre_mm - size_px * step / 2 + np.arange(size_px) * step
    left = np.arange(pixels) * spacing_mm
    overlap = np.minimum(start[:, None] + step, left + spacing_mm) - np.maximum(start[:, None], left)
    weights: NDArray[np.float32] = (overlap.clip(min=0) / step).astype(np.float32)
    return weights


def _resample(hu: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """f32[T,H,W] -> f32[T,rows,columns], area averages. Outside the image there is air."""
    image: NDArray[np.float32] = rows @ (hu - np.float32(AIR_HU)) @ columns.T + np.float32(AIR_HU)
    return image


def _window(hu: NDArray[np.float32], center_hu: float, width_hu: float) -> NDArray[np.uint8]:
    scaled = (hu - (center_hu - width_hu / 2)) * (255 / width_hu)
    window: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return window
