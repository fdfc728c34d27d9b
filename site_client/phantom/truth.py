"""What a reader would call positive: the label rule, and everything needed to recompute it.

A slice is positive when, after thickness averaging, it holds at least 0.03 mL of lesion over at least 6 mm2 with a
contrast to its surroundings of at least 6 HU. `any` is their OR.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from federation.labels import SUBTYPES
from scipy import ndimage

from site_client.phantom.lattice import Lattice, Scan
from site_client.phantom.noise import Floats

MIN_ML = 0.03
MIN_AREA_MM2 = 6.0
MIN_CONTRAST_HU = 6.0
COVERED = 64
"""A pixel counts to a lesion's area when at least this share (of 255) of its thickness is lesion."""


@dataclass(frozen=True)
class Truth:
    """masks: share of each pixel's thickness that is lesion, uint8[5, T, H, W] of 255; the rest f32[T, 5]."""

    masks: npt.NDArray[np.uint8] = field(repr=False)
    ml: Floats
    area_mm2: Floats
    contrast_hu: Floats

    @property
    def slice_labels(self) -> npt.NDArray[np.int8]:
        """int8[T, 6] in RSNA order."""
        return labels_of(self.ml, self.area_mm2, self.contrast_hu)


def labels_of(ml: Floats, area_mm2: Floats, contrast_hu: Floats) -> npt.NDArray[np.int8]:
    """The label rule on f32[T, 5]: int8[T, 6], `any` last."""
    subtypes = (ml >= MIN_ML) & (area_mm2 >= MIN_AREA_MM2) & (np.abs(contrast_hu) >= MIN_CONTRAST_HU)
    return np.concatenate([subtypes, subtypes.any(axis=1, keepdims=True)], axis=1).astype(np.int8)


def judge(scan: Scan, lattice: Lattice, subtype: npt.NDArray[np.uint8], image: Floats, brain: Floats) -> Truth:
    """Truth of a scan from the lesion map uint8[S, H, W] of its lattice and the noise-free image f32[T, R, C].

    `brain`: share of each pixel's thickness inside the skull, f32[T, H, W] of the lattice's box.
    """
    masks = np.zeros((len(SUBTYPES), *image.shape), dtype=np.uint8)
    contrast = np.zeros((scan.slices, len(SUBTYPES)), dtype=np.float32)
    rows, columns = lattice.box
    for index in range(len(SUBTYPES)):
        where = subtype == index + 1
        if where.any():
            share = lattice.averaged(where.astype(np.float32))
            masks[index, :, rows, columns] = np.round(255 * share).astype(np.uint8)
    any_share = masks.max(axis=0)[:, rows, columns]
    for index in range(len(SUBTYPES)):
        own = masks[index][:, rows, columns]
        for k in np.flatnonzero(own.any(axis=(1, 2))):
            contrast[k, index] = _contrast(image[k, rows, columns], own[k], any_share[k], brain[k], scan.pixel_mm)
    return Truth(masks, *measure(masks, scan.pixel_mm, scan.thickness_mm), contrast)


def measure(
    masks: npt.NDArray[np.uint8], pixel_mm: float, thickness_mm: npt.NDArray[np.float64]
) -> tuple[Floats, Floats]:
    """mL and covered mm2 of each slice and subtype, f32[T, 5], from the masks alone."""
    area = pixel_mm**2
    filled = masks.sum(axis=(2, 3), dtype=np.int64).T / 255.0
    covered = (masks >= COVERED).sum(axis=(2, 3)).T
    return (filled * area * thickness_mm[:, None] / 1000).astype(np.float32), (covered * area).astype(np.float32)


def _contrast(
    image: Floats, own: npt.NDArray[np.uint8], lesion: npt.NDArray[np.uint8], brain: Floats, pixel_mm: float
) -> float:
    """Mean HU of the lesion minus that of a 5 mm ring of bloodless brain around it; 0 where there is no ring."""
    inside = own >= COVERED
    if not inside.any():
        return 0.0
    rows, columns = (_grown(np.asarray(inside.any(axis=axis)), int(8 / pixel_mm) + 2) for axis in (1, 0))
    inside, image, clear = inside[rows, columns], image[rows, columns], brain[rows, columns] > 0.98
    ring = ndimage.binary_dilation(inside, iterations=max(2, round(5 / pixel_mm)))
    ring &= clear & (lesion[rows, columns] < 8)
    return float(image[inside].mean() - image[ring].mean()) if ring.any() else 0.0


def _grown(hit: npt.NDArray[np.bool_], margin: int) -> slice:
    places = np.flatnonzero(hit)
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1)
