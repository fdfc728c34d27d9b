"""The shapes of bleeds: each lesion grows in its space until it holds its volume.

Every shape is a score over cavity points that rises outward from the lesion's seed. The lesion takes the points of the
lowest scores until it has its volume. So volumes are exact on any scanner, and shapes stay in head space.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from federation.labels import SUBTYPES

from site_client.phantom.brain import HU, Brain, Tissue, tentorium_mm
from site_client.phantom.head import Head
from site_client.phantom.lesions import Lesion
from site_client.phantom.noise import Floats, Mask, Points

FAR = np.float32(1e6)  # score of a point that the lesion cannot take
EFFACING_ML = 12.0  # from this volume on a lesion closes the folds around it
_PUSH_NOTHING = frozenset({"subarachnoid", "intraventricular"})  # films in folds, and blood in ventricles


@dataclass(frozen=True)
class Bleeds:
    """Bleeds at N cavity points. `subtype`: uint8[N], 0 for none, else 1 + index in SUBTYPES. `hu`: f32[N]."""

    subtype: npt.NDArray[np.uint8]
    hu: Floats


def shift_points(lesions: tuple[Lesion, ...], points: Points, gap: Floats) -> Points:
    """Computes the mass effect: the place of each point's tissue before large lesions pushed it aside.

    The midline moves away from a lesion by up to 12 mm, growing with its volume and fading toward the bone. `gap`:
    f32[N], distance to the bone in mm.
    """
    x, y, z = points
    push = np.zeros_like(x)
    for lesion in lesions:
        # Films in folds and blood in ventricles push nothing aside.
        if lesion.subtype in _PUSH_NOTHING or lesion.ml < 6:
            continue
        amount = min(12.0, 0.13 * (lesion.ml - 4)) * -np.sign(lesion.center_mm[0])
        away = ((y - lesion.center_mm[1]) / 55) ** 2 + ((z - lesion.center_mm[2]) / 50) ** 2
        push += (amount * np.exp(-away)).astype(np.float32)
    limit = np.float32(12.0)
    return x - np.clip(push, -limit, limit) * np.clip(gap / 30, 0, 1), y, z


def grow(lesions: tuple[Lesion, ...], head: Head, points: Points, brain: Brain, point_ml: Floats) -> Bleeds:
    """Paints all lesions in their order into the brain's HU. A point belongs to the first lesion that takes it.

    `point_ml`: f32[N], volume of each point.
    """
    subtype = np.zeros(len(brain.hu), dtype=np.uint8)
    hu = brain.hu.copy()
    for lesion in lesions:
        # Points that an earlier lesion holds are out of reach: lesions grow around each other.
        score = np.where(subtype == 0, _SCORES[lesion.style](lesion, head, points, brain), FAR)
        taken, edge = _fill(score, point_ml, lesion.ml)
        subtype[taken] = SUBTYPES.index(lesion.subtype) + 1
        grain = head.tile.at((points[0][taken], points[1][taken], points[2][taken]), 2.5, 21)
        hu[taken] = lesion.hu + 2.5 * grain
        if lesion.style == "level" and len(taken):
            # Cells sink and plasma floats: the dependent part of a fluid level is denser.
            depth = points[1][taken] - points[1][taken].min()
            hu[taken] += 14 * (depth / max(1.0, float(depth.max())) - 0.6)
        # The rim is white matter only, the next few millimeters of the same score.
        if lesion.edema_mm and len(taken):
            rim = (score >= edge) & (score < edge + lesion.edema_mm) & (brain.tissue == Tissue.WHITE)
            hu[rim] = np.minimum(hu[rim], HU[Tissue.WHITE] - 9.0)
        if lesion.ml > EFFACING_ML and lesion.subtype not in _PUSH_NOTHING:
            _efface(lesion, points, brain, subtype, hu)
    return Bleeds(subtype, hu)


def _efface(lesion: Lesion, points: Points, brain: Brain, subtype: npt.NDArray[np.uint8], hu: Floats) -> None:
    """Closes the folds beside a large lesion: swollen brain leaves no room for fluid there."""
    near = np.sqrt(sum((axis - center) ** 2 for axis, center in zip(points, lesion.center_mm, strict=True)))
    reach = 28.0 + 12.0 * np.log(lesion.ml / EFFACING_ML)
    closed = (brain.tissue == Tissue.FLUID) & (subtype == 0) & (near < reach) & (points[2] > 5)
    hu[closed] = 0.75 * HU[Tissue.GRAY] + 0.25 * hu[closed]


def _fill(score: Floats, point_ml: Floats, ml: float) -> tuple[npt.NDArray[np.intp], float]:
    """Finds the points of lowest score that hold `ml`, and the score where they end."""
    typical = float(np.median(point_ml))
    free = np.flatnonzero(score < FAR)
    if not len(free):
        return free, 0.0
    # Sorting all points would be slow. Three times the expected number is enough, whatever their volumes.
    wanted = min(len(free) - 1, int(3 * ml / typical) + 8)
    near = free[np.argpartition(score[free], wanted)[: wanted + 1]]
    near = near[np.argsort(score[near], kind="stable")]
    count = int(np.searchsorted(np.cumsum(point_ml[near]), ml)) + 1
    taken = near[:count]
    return taken, float(score[taken[-1]])


def _along_bone(lesion: Lesion, points: Points, gap: Floats) -> Floats:
    """Computes the squared distance in mm from the lesion's anchor, measured along the bone."""
    x, y, z = points
    a, b, c = lesion.center_mm
    across = 0.45 if lesion.style == "convexity" else 0.7
    return np.asarray((across * (x - a)) ** 2 + (y - b) ** 2 + (lesion.flatness * (z - c)) ** 2, dtype=np.float32)


def _lens(lesion: Lesion, head: Head, points: Points, brain: Brain) -> Floats:
    """Scores a biconvex lens: depth < h s (1 - (g / G s)^2), solved for the size s, on one side of the midline."""
    high, wide = 12.0, 27.0
    lift = brain.gap_mm / high
    g2 = _along_bone(lesion, points, brain.gap_mm) / wide**2
    size = (lift + np.sqrt(lift * lift + 4 * g2)) / 2
    return _only(size, (points[0] * np.sign(lesion.center_mm[0]) > 4) & (points[2] > -30))


def _convexity(lesion: Lesion, head: Head, points: Points, brain: Brain) -> Floats:
    """Scores a crescent: a flat superellipsoid along the inner table."""
    wobble = 1 + 0.12 * head.tile.at(points, 12.0, 22)
    lift = brain.gap_mm / (7.5 * wobble)
    size = np.cbrt(lift**3 + (_along_bone(lesion, points, brain.gap_mm) / 52.0**2) ** 1.5)
    inside = (points[0] * np.sign(lesion.center_mm[0]) > 3) & (points[2] > tentorium_mm(points[0], points[1]) - 4)
    return _only(np.asarray(size, dtype=np.float32), inside)


def _falcine(lesion: Lesion, head: Head, points: Points, brain: Brain) -> Floats:
    x, y, z = points
    beside = np.abs(x) - 0.6
    g2 = (y - lesion.center_mm[1]) ** 2 + (1.4 * (z - lesion.center_mm[2])) ** 2
    size = np.cbrt((np.maximum(beside, 0) / 3.5) ** 3 + (g2 / 38.0**2) ** 1.5)
    return _only(size, (x * np.sign(lesion.center_mm[0]) > 0.4) & (brain.gap_mm < 38) & (z > 4))


def _tentorial(lesion: Lesion, head: Head, points: Points, brain: Brain) -> Floats:
    x, y, z = points
    above = z - tentorium_mm(x, y)
    g2 = (x - lesion.center_mm[0]) ** 2 + (y - lesion.center_mm[1]) ** 2
    size = np.cbrt((np.maximum(above, 0) / 3.0) ** 3 + (g2 / 26.0**2) ** 1.5)
    return _only(size, (above > -0.8) & (x * np.sign(lesion.center_mm[0]) > 2) & (y > 18))


def _film(lesion: Lesion, head: Head, points: Points, brain: Brain) -> Floats:
    """Scores a film in the fluid of folds and cisterns near the seed, thinning at its ends."""
    x, y, z = points
    a, b, c = lesion.center_mm
    away = np.sqrt((x - a) ** 2 + (y - b) ** 2 + (1.3 * (z - c)) ** 2)
    score = away * (1 + 0.15 * head.tile.at(points, 5.0, 23)) + 5 * np.maximum(brain.fluid_mm, 0)
    return _only(score, (brain.fluid_mm < 0.9) & (brain.ventricle_mm > 1.5) & (brain.tissue != Tissue.DURA))


def _lump(lesion: Lesion, head: Head, points: Points, brain: Brain) -> Floats:
    """Scores a lobulated clot in the tissue."""
    x, y, z = points
    a, b, c = lesion.center_mm
    away = np.sqrt((1.12 * (x - a)) ** 2 + (0.9 * lesion.flatness * (y - b)) ** 2 + (z - c) ** 2)
    radius = (3 * lesion.ml * 1000 / 4 / np.pi) ** (1 / 3)
    # Noise is read near the clot only.
    reach = away < 3 * radius + 14
    score = np.full(len(x), FAR, dtype=np.float32)
    near = np.flatnonzero(reach & (brain.gap_mm > 1.2) & (brain.tissue < Tissue.FLUID))
    lobes = head.tile.at((x[near], y[near], z[near]), max(2.2, 0.33 * radius), 24)
    score[near] = away[near] * (1 + 0.22 * lobes)
    return score


def _level(lesion: Lesion, head: Head, points: Points, brain: Brain) -> Floats:
    """Scores a fluid level. The patient lies on the back: blood settles at the back of a ventricle, not its floor."""
    x, y, z = points
    score = -y + 0.05 * np.abs(z) + 0.4 * head.tile.at(points, 4.0, 25) + 200
    inside = (brain.tissue == Tissue.VENTRICLE) & (x * np.sign(lesion.center_mm[0]) > 0.8) & (np.abs(x) > 5)
    return _only(score, inside)


def _cast(lesion: Lesion, head: Head, points: Points, brain: Brain) -> Floats:
    x, y, z = points
    a, b, c = lesion.center_mm
    away = np.sqrt((0.5 * (x - a)) ** 2 + (y - b) ** 2 + (z - c) ** 2)
    return _only(away * (1 + 0.1 * head.tile.at(points, 6.0, 26)), brain.tissue == Tissue.VENTRICLE)


def _only(score: Floats, where: Mask) -> Floats:
    return np.where(where, score, FAR).astype(np.float32)


# Two styles may share a shape: they differ by where `lesions` puts them.
_SCORES = {
    "lens": _lens,
    "convexity": _convexity,
    "falcine": _falcine,
    "tentorial": _tentorial,
    "sulcal": _film,
    "sylvian": _film,
    "basal": _film,
    "deep": _lump,
    "lobar": _lump,
    "hind": _lump,
    "level": _level,
    "cast": _cast,
}
