"""The contents of a series: is this a head, with a brain in it, in Hounsfield units? Pixels decide, never a text.

Pure functions. Three questions about a few slices from the middle of the stack: does bone surround most directions seen
from the middle of the body; is there soft tissue of a brain's density inside; do air and brain have their HU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from site_client.ingest.reasons import Reason

RAYS = 72
GRID_MM = 2.0  # measured on a grid about this coarse, which is fast and blurs the noise away


@dataclass(frozen=True)
class Content:
    """Measures of one slice. `brain_mode_hu` and `air_hu` are nan where there is no brain, no air.

    `ring`: share of the directions that meet bone. `brain`: share of soft tissue in the inner body. `width_mm`:
    diameter of a disc with the body's area. `border_air`: share of the image's border that is air.
    """

    ring: float
    brain: float
    width_mm: float
    brain_mode_hu: float
    air_hu: float
    border_air: float


def measure(hu: NDArray[np.int16], spacing_mm: tuple[float, float]) -> Content:
    """Measures one slice, int16[H, W] in HU; `spacing_mm` between rows, between columns."""
    # At most the whole image: of one row or column there is a measure, too.
    step = max(1, min(round(GRID_MM / spacing_mm[0]), *hu.shape))
    height, width = (size - size % step for size in hu.shape)
    blocks = hu[:height, :width].astype(np.float32).reshape(height // step, step, width // step, step)
    coarse, pixel_mm = blocks.mean(axis=(1, 3)), step * spacing_mm[0]
    body = _body(coarse)
    border = np.concatenate([coarse[0], coarse[-1], coarse[:, 0], coarse[:, -1]])
    # Above -1024, which is padding outside the reconstruction circle.
    air = coarse[~body & (coarse < -500) & (coarse > -1024)]
    if body.sum() * pixel_mm**2 < 2000:  # mm2: the very vertex, or an empty image
        return Content(0.0, 0.0, 0.0, np.nan, np.nan, float(np.mean(border < -500)))
    # 12 mm inside the skin: past scalp and skull, where only the cavity remains.
    inner = ndimage.binary_erosion(body, iterations=max(1, round(12 / pixel_mm)))
    tissue = coarse[inner & (coarse > 0) & (coarse < 80)]
    return Content(
        ring=_ring(coarse, body),
        brain=tissue.size / max(1, int(inner.sum())),
        width_mm=float(np.sqrt(body.sum() * 4 / np.pi) * pixel_mm),
        brain_mode_hu=_mode(tissue),
        air_hu=float(np.median(air)) if air.size > 100 else float("nan"),
        border_air=float(np.mean(border < -500)),
    )


def assess(slices: Sequence[Content]) -> tuple[Reason, ...]:
    """Assesses a sample of slices by medians. No slice decides alone: the vertex has no brain, the base no clean ring.

    Returns:
        No reason for a head; else R_NOT_HEAD, R_NO_BRAIN, both of these, or Q_HU_RANGE.
    """
    ring = np.median([content.ring for content in slices])
    width = np.median([content.width_mm for content in slices])
    brain = np.median([content.brain for content in slices])
    surrounded = np.median([content.border_air for content in slices])
    if ring < 0.7 or not 90 <= width <= 280 or surrounded < 0.3:
        return (Reason.R_NOT_HEAD,) if brain >= 0.3 else (Reason.R_NOT_HEAD, Reason.R_NO_BRAIN)
    if brain < 0.3:
        return (Reason.R_NO_BRAIN,)
    modes = [content.brain_mode_hu for content in slices if content.brain >= 0.3]
    airs = [content.air_hu for content in slices if np.isfinite(content.air_hu)]
    # Brains of real scanners have a mean of 31-35 HU. The bounds are wide: they catch a wrong rescale, no disease.
    plausible = 15 <= np.median(modes) <= 50 and (not airs or -1024 <= np.median(airs) <= -850)
    return () if plausible else (Reason.Q_HU_RANGE,)


def _body(coarse: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Finds the largest piece that is denser than air, with its hollows filled; the headrest is another piece."""
    pieces, count = ndimage.label(ndimage.binary_opening(coarse > -300))
    if count == 0:
        return np.zeros(coarse.shape, dtype=np.bool_)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(pieces == largest), dtype=np.bool_)


def _ring(coarse: NDArray[np.float32], body: NDArray[np.bool_]) -> float:
    """Measures the share of RAYS directions from the body's middle that meet bone in the body's outer 38 %."""
    center = np.argwhere(body).mean(axis=0)
    radii = np.arange(0.0, float(max(coarse.shape)), 0.5)
    angles = np.arange(RAYS) * (2 * np.pi / RAYS)
    rows = np.clip(np.rint(center[0] + np.outer(np.sin(angles), radii)), 0, coarse.shape[0] - 1).astype(np.intp)
    columns = np.clip(np.rint(center[1] + np.outer(np.cos(angles), radii)), 0, coarse.shape[1] - 1).astype(np.intp)
    inside = body[rows, columns]
    outer = np.where(inside, radii, 0.0).max(axis=1, keepdims=True)
    # The outer part only: a spine in the middle of an abdomen is no skull.
    shell = inside & (radii > outer * 0.62)
    return float(np.mean(((coarse[rows, columns] > 250) & shell).any(axis=1)))


def _mode(values: NDArray[np.float32]) -> float:
    if values.size < 50:
        return float("nan")
    counts, _ = np.histogram(values, bins=80, range=(0, 80))
    return float(np.argmax(ndimage.uniform_filter1d(counts.astype(np.float64), 7)) + 0.5)
