"""The truth of a study: the label rule, which imitates a reader, and the figures to recompute it.

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
COVERED = 64  # a pixel counts to a lesion's area from this share (of 255) of its thickness on


@dataclass(frozen=True)
class Truth:
    """Bleeds by subtype, in the order of SUBTYPES.

    `masks`: uint8[5, T, H, W], share of each pixel's thickness that is lesion, of 255. `ml`, `area_mm2`, `contrast_hu`:
    f32[T, 5].
    """

    masks: npt.NDArray[np.uint8] = field(repr=False)
    ml: Floats
    area_mm2: Floats
    contrast_hu: Floats

    @property
    def slice_labels(self) -> npt.NDArray[np.int8]:
        """Labels int8[T, 6] in the order of LABELS."""
        return labels_of(self.ml, self.area_mm2, self.contrast_hu)


def labels_of(ml: Floats, area_mm2: Floats, contrast_hu: Floats) -> npt.NDArray[np.int8]:
    """Applies the label rule to three f32[T, 5]; gives int8[T, 6], `any` last."""
    subtypes = (ml >= MIN_ML) & (area_mm2 >= MIN_AREA_MM2) & (np.abs(contrast_hu) >= MIN_CONTRAST_HU)
    return np.concatenate([subtypes, subtypes.any(axis=1, keepdims=True)], axis=1).astype(np.int8)


def truth_of(scan: Scan, lattice: Lattice, subtype: npt.NDArray[np.uint8], image: Floats, brain: Floats) -> Truth:
    """Derives the truth of a scan.

    Args:
        scan: Geometry.
        lattice: Its sample points.
        subtype: Lesion map uint8[S, h, w] of the lattice, 0 for none, else 1 + index in SUBTYPES.
        image: HU f32[T, H, W] without noise.
        brain: f32[T, h, w] of the lattice's box, share of each pixel's thickness inside the skull.
    """
    masks = np.zeros((len(SUBTYPES), *image.shape), dtype=np.uint8)
    contrast = np.zeros((scan.slices, len(SUBTYPES)), dtype=np.float32)
    rows, columns = lattice.box
    # By index, as `bleeds` wrote them: both take the order from SUBTYPES.
    for index in range(len(SUBTYPES)):
        where = subtype == index + 1
        if where.any():
            share = lattice.averaged(where.astype(np.float32))
            masks[index, :, rows, columns] = np.round(255 * share).astype(np.uint8)
    # Of all subtypes: another lesion beside this one is no background.
    any_share = masks.max(axis=0)[:, rows, columns]
    for index in range(len(SUBTYPES)):
        own = masks[index][:, rows, columns]
        for k in np.flatnonzero(own.any(axis=(1, 2))):
            contrast[k, index] = _contrast(image[k, rows, columns], own[k], any_share[k], brain[k], scan.pixel_mm)
    return Truth(masks, *measure(masks, scan.pixel_mm, scan.thickness_mm), contrast)


def measure(
    masks: npt.NDArray[np.uint8], pixel_mm: float, thickness_mm: npt.NDArray[np.float64]
) -> tuple[Floats, Floats]:
    """Measures mL and covered mm2 of each slice and subtype, two f32[T, 5], by the masks uint8[5, T, H, W] alone."""
    area = pixel_mm**2
    filled = masks.sum(axis=(2, 3), dtype=np.int64).T / 255.0
    covered = (masks >= COVERED).sum(axis=(2, 3)).T
    return (filled * area * thickness_mm[:, None] / 1000).astype(np.float32), (covered * area).astype(np.float32)


def _contrast(
    image: Floats, own: npt.NDArray[np.uint8], lesion: npt.NDArray[np.uint8], brain: Floats, pixel_mm: float
) -> float:
    """Computes mean HU of the lesion less that of a 5 mm ring of bloodless brain around it; 0 without a ring."""
    inside = own >= COVERED
    if not inside.any():
        return 0.0
    # The ring lies within 8 mm: dilating the whole slice would be wasted.
    rows, columns = (_grown(np.asarray(inside.any(axis=axis)), int(8 / pixel_mm) + 2) for axis in (1, 0))
    inside, image, clear = inside[rows, columns], image[rows, columns], brain[rows, columns] > 0.98
    ring = ndimage.binary_dilation(inside, iterations=max(2, round(5 / pixel_mm)))
    # Neither bone nor other blood belongs to the background.
    ring &= clear & (lesion[rows, columns] < 8)
    return float(image[inside].mean() - image[ring].mean()) if ring.any() else 0.0


def _grown(hit: npt.NDArray[np.bool_], margin: int) -> slice:
    places = np.flatnonzero(hit)
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1)
