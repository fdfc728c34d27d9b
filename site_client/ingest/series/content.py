"""Is this a head, with a brain in it, in Hounsfield units? Asked of the pixels, never of a text. Pure.

Three questions over a few slices from the middle of the stack: does a ring of bone surround most directions seen from
the middle of the body; is there soft tissue of a brain's density inside; are air and brain where Hounsfield put them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from site_client.ingest.reasons import Reason

RAYS = 72
GRID_MM = 2.0  # everything is judged on a grid about this coarse


@dataclass(frozen=True)
class Content:
    """What one slice shows. Fractions of 1, lengths in mm; `brain_mode_hu` and `air_hu` are nan when there is none."""

    ring: float
    brain: float
    width_mm: float
    brain_mode_hu: float
    air_hu: float
    border_air: float


def measure(hu: NDArray[np.int16], spacing_mm: tuple[float, float]) -> Content:
    """int16[H, W] -> what is to be seen on it."""
    small, pixel_mm = _coarse(hu, spacing_mm)
    body = _body(small)
    border = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    air = small[~body & (small < -500) & (small > -1024)]
    if body.sum() * pixel_mm**2 < 2000:
        return Content(0.0, 0.0, 0.0, np.nan, np.nan, float(np.mean(border < -500)))
    inner = ndimage.binary_erosion(body, iterations=max(1, round(12 / pixel_mm)))
    tissue = small[inner & (small > 0) & (small < 80)]
    return Content(
        ring=_ring(small, body),
        brain=tissue.size / max(1, int(inner.sum())),
        width_mm=float(np.sqrt(body.sum() * 4 / np.pi) * pixel_mm),
        brain_mode_hu=_mode(tissue),
        air_hu=float(np.median(air)) if air.size > 100 else float("nan"),
        border_air=float(np.mean(border < -500)),
    )


def judge(slices: Sequence[Content]) -> tuple[Reason, ...]:
    """The verdict over a sample. No slice decides alone: the vertex has no brain, the base no clean ring."""
    ring = np.median([one.ring for one in slices])
    width = np.median([one.width_mm for one in slices])
    brain = np.median([one.brain for one in slices])
    surrounded = np.median([one.border_air for one in slices])
    if ring < 0.7 or not 90 <= width <= 280 or surrounded < 0.3:
        return (Reason.R_NOT_HEAD,) if brain >= 0.3 else (Reason.R_NOT_HEAD, Reason.R_NO_BRAIN)
    if brain < 0.3:
        return (Reason.R_NO_BRAIN,)
    modes = [one.brain_mode_hu for one in slices if one.brain >= 0.3]
    airs = [one.air_hu for one in slices if np.isfinite(one.air_hu)]
    plausible = 15 <= np.median(modes) <= 50 and (not airs or -1024 <= np.median(airs) <= -850)
    return () if plausible else (Reason.Q_HU_RANGE,)


def _coarse(hu: NDArray[np.int16], spacing_mm: tuple[float, float]) -> tuple[NDArray[np.float32], float]:
    step = max(1, round(GRID_MM / spacing_mm[0]))
    height, width = (size - size % step for size in hu.shape)
    blocks = hu[:height, :width].astype(np.float32).reshape(height // step, step, width // step, step)
    return blocks.mean(axis=(1, 3)), step * spacing_mm[0]


def _body(small: NDArray[np.float32]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(ndimage.binary_opening(small > -300))
    if count == 0:
        return np.zeros(small.shape, dtype=np.bool_)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(labels == largest), dtype=np.bool_)


def _ring(small: NDArray[np.float32], body: NDArray[np.bool_]) -> float:
    """Share of the directions from the body's middle that meet bone within its outer shell, 25 mm or a third deep."""
    center = np.argwhere(body).mean(axis=0)
    radii = np.arange(0.0, float(max(small.shape)), 0.5)
    angles = np.arange(RAYS) * (2 * np.pi / RAYS)
    rows = np.clip(np.rint(center[0] + np.outer(np.sin(angles), radii)), 0, small.shape[0] - 1).astype(np.intp)
    columns = np.clip(np.rint(center[1] + np.outer(np.cos(angles), radii)), 0, small.shape[1] - 1).astype(np.intp)
    inside = body[rows, columns]
    outer = np.where(inside, radii, 0.0).max(axis=1, keepdims=True)
    shell = inside & (radii > outer * 0.62)
    return float(np.mean(((small[rows, columns] > 250) & shell).any(axis=1)))


def _mode(values: NDArray[np.float32]) -> float:
    if values.size < 50:
        return float("nan")
    counts, _ = np.histogram(values, bins=80, range=(0, 80))
    return float(np.argmax(ndimage.uniform_filter1d(counts.astype(np.float64), 7)) + 0.5)
