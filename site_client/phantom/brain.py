"""The brain inside the cavity: folded cortex, white matter, nuclei, ventricles, cisterns, falx, tentorium.

Works on flat arrays of cavity points, so that only brain is computed where brain is. HU: gray matter 37-41, white
matter 27-32, nuclei 36-40, CSF 2-10, dura 45-60, venous sinuses 50-65.
"""

import itertools
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from site_client.phantom.head import Head
from site_client.phantom.noise import Floats, Mask, Points, sheet_distance


class Tissue(IntEnum):
    """Tissues of a cavity point, in the order in which the brain is painted."""

    WHITE = 0
    GRAY = 1
    NUCLEUS = 2
    FLUID = 3
    VENTRICLE = 4
    DURA = 5
    VEIN = 6


HU = {
    Tissue.WHITE: 29.5,
    Tissue.GRAY: 38.5,
    Tissue.NUCLEUS: 38.0,
    Tissue.FLUID: 7.0,
    Tissue.VENTRICLE: 5.0,
    Tissue.DURA: 50.0,
    Tissue.VEIN: 56.0,
}


@dataclass(frozen=True)
class Brain:
    """The brain at N cavity points.

    `tissue`: uint8[N]. `gap_mm`, `fluid_mm`, `ventricle_mm`: f32[N], distances to the bone, to the fluid of folds and
    cisterns, and to the ventricles; the latter two are negative inside. `hu`: f32[N].
    """

    tissue: npt.NDArray[np.uint8]
    gap_mm: Floats
    fluid_mm: Floats
    ventricle_mm: Floats
    hu: Floats

    def part(self, indices: npt.NDArray[np.intp]) -> "Brain":
        """Copies some of the points."""
        return Brain(
            self.tissue[indices],
            self.gap_mm[indices],
            self.fluid_mm[indices],
            self.ventricle_mm[indices],
            self.hu[indices],
        )


def joined(parts: list[Brain]) -> Brain:
    """Joins parts of one brain, one after another."""
    return Brain(
        np.concatenate([part.tissue for part in parts]),
        np.concatenate([part.gap_mm for part in parts]),
        np.concatenate([part.fluid_mm for part in parts]),
        np.concatenate([part.ventricle_mm for part in parts]),
        np.concatenate([part.hu for part in parts]),
    )


# Lateral ventricle, right and left alike: (point, radius) along horn, body, atrium; then the temporal horn.
_HORNS = (
    ((14.5, -37.0, 9.0), 2.4),
    ((10.5, -30.0, 12.0), 3.9),
    ((6.5, -17.0, 16.0), 4.4),
    ((8.5, 2.0, 21.0), 4.4),
    ((13.0, 22.0, 20.0), 5.0),
    ((23.0, 36.0, 9.0), 6.2),
    ((25.0, 50.0, 5.0), 3.6),
    ((23.0, 64.0, 4.0), 1.9),
)
_TEMPORAL = (((25.0, 35.0, 4.0), 4.4), ((32.0, 20.0, -8.0), 2.0), ((30.0, -4.0, -17.0), 1.6))


def brain_at(head: Head, points: Points, gap: Floats) -> Brain:
    """Paints the cavity at N points. `gap`: f32[N], distance in mm to the bone around it."""
    x, y, z = points
    a = head.atrophy
    # Noise of 9 mm makes every border uneven: smooth borders would give the drawing away.
    coarse = head.tile.at(points, 9.0, 1)
    below = z < tentorium_mm(x, y)
    hind = below & (y > 6 + 0.45 * np.abs(x))
    space = np.asarray(0.9 + 2.2 * a + 0.4 * coarse, dtype=np.float32)  # the subarachnoid space, in mm
    fluid = _cortical_fluid(head, points, gap - space, hind)
    fluid = np.minimum(fluid, _fissures(head, points))
    fluid = np.minimum(fluid, _cisterns(head, points))
    # Also over the cerebellum and the poles: the subarachnoid space lies under all bone.
    fluid = np.minimum(fluid, gap - space)
    ventricle = ventricles_mm(head, points)
    tissue = np.where(fluid < 3.4 - 0.5 * a + 0.5 * coarse, np.uint8(Tissue.GRAY), np.uint8(Tissue.WHITE))
    tissue[_nuclei(points, coarse)] = Tissue.NUCLEUS
    tissue[_stem(points)] = Tissue.WHITE
    # Fluid and ventricles after the solid tissue, coverings last: later parts lie in front.
    tissue[fluid < 0] = Tissue.FLUID
    tissue[ventricle < 0] = Tissue.VENTRICLE
    _coverings(head, points, gap, tissue)
    flowing = {
        Tissue.VEIN: HU[Tissue.VEIN] * head.hematocrit,
        Tissue.DURA: HU[Tissue.DURA] * (0.6 + 0.4 * head.hematocrit),
    }
    hu = np.array([flowing.get(t, HU[t]) for t in Tissue], dtype=np.float32)[tissue]
    hu += (0.9 * coarse + head.gray_hu).astype(np.float32)
    # Old white matter is darker beside the ventricles.
    pale = 7.0 * max(0.0, a - 0.35) * np.exp(-np.maximum(ventricle, 0) / 6)
    hu -= np.where(tissue == Tissue.WHITE, pale, 0).astype(np.float32)
    return Brain(tissue, gap, fluid, ventricle, hu)


def tentorium_mm(x: Floats, y: Floats) -> Floats:
    """Computes the height of the tentorium in mm: highest at the incisura, falling to the transverse sinuses."""
    round_x = np.sqrt(x * x + 120) - 11
    return np.asarray(8.0 - 0.42 * round_x - 0.004 * np.maximum(0, y - 20) ** 1.75, dtype=np.float32)


def _cortical_fluid(head: Head, points: Points, depth: Floats, hind: Mask) -> Floats:
    """Computes the distance to sulcal CSF: zero sheets of a field that is carried inward, so that folds are upright."""
    x, y, z = points
    fluid = np.full(x.shape, 30.0, dtype=np.float32)
    # Folds reach 24 mm deep at most; the rest of the brain needs no noise.
    cortex = np.flatnonzero((depth < 24) & ~hind)
    px, py, pz = x[cortex], y[cortex], z[cortex]
    radius = np.sqrt(px * px + (0.8 * py) ** 2 + pz * pz) + 1
    outward = (np.minimum(1.6, (radius + depth[cortex]) / radius) * np.float32(0.9)).astype(np.float32)
    upright = (px * outward, py * outward, pz * outward)
    field = head.tile.at(upright, 3.1, 8)
    reach = 14 + 4 * head.tile.at(upright, 7.0, 9)
    width = (0.4 + 1.05 * head.atrophy) * np.clip(1.15 - depth[cortex] / reach, -3, 1)
    fluid[cortex] = sheet_distance(field, 3.1) - width + 2.2 * np.maximum(0, depth[cortex] / reach - 0.9)
    leaf = np.flatnonzero(hind & (depth < 16))
    # The cerebellum's folia are finer and lie flat.
    folia = head.tile.at((x[leaf] * 0.5, y[leaf] * 0.8, z[leaf] * 1.6), 2.6, 10)
    fluid[leaf] = sheet_distance(folia, 2.6) * 1.4 - (0.1 + 0.55 * head.atrophy) * (1.1 - depth[leaf] / 16)
    return fluid


def _fissures(head: Head, points: Points) -> Floats:
    """Computes the distance to the interhemispheric and Sylvian fissures."""
    x, y, z = points
    a = head.atrophy
    wave = head.tile.at(points, 6.0, 11)
    over_callosum = np.maximum(0, 26 - z + 0.004 * (y - 5) ** 2 * (np.abs(y) < 45)) * (np.abs(y + 2) < 44)
    mid = x + 0.9 * head.tile.at(points, 16.0, 14)
    between = np.abs(mid) - (0.45 + 0.25 * wave + 1.3 * a) + 0.25 * over_callosum
    between = np.where(z < -2 + 0.0 * y, between + 8, between)
    side = np.abs(x)
    height = 2 + 0.6 * (y + 12) + 2.0 * wave
    sheet = np.abs(z - height) - (0.4 + 1.2 * a) - 0.02 * np.maximum(0, side - 40)
    sylvian = np.maximum(sheet, np.maximum(np.maximum(36 - side, np.abs(y + 2) - 22), 0) * 0.7 - 0.1)
    bend = side - 38.5 - 1.8 * wave + 0.012 * (y + 2) ** 2 - 0.02 * z * z
    insula = np.maximum(np.abs(bend) - (0.4 + 1.3 * a), np.maximum(np.abs(y + 4) - 17, np.abs(z - 2) - 12))
    return np.asarray(np.minimum(between, np.minimum(sylvian, insula)), dtype=np.float32)


def _cisterns(head: Head, points: Points) -> Floats:
    """Computes the distance to the cisterns: suprasellar, ambient, quadrigeminal, prepontine, magna."""
    x, y, z = points
    a = head.atrophy
    side = np.abs(x)
    # The suprasellar cistern is a star of five points.
    turn = np.cos(5 * np.arctan2(x, -(y + 7)))
    stellate = np.sqrt((x / 1.2) ** 2 + (y + 7) ** 2 + ((z + 15) * 1.1) ** 2) - (6.3 + 2.2 * a) * (1 + 0.33 * turn)
    arms = np.maximum(np.abs(y + 9 - 0.35 * side) - (1.4 + a), np.maximum(side - 26, np.abs(z + 14) - 5))
    wave = head.tile.at((side, y, z), 5.0, 15)
    heart = np.sqrt((x * 0.95) ** 2 + (y - 13 - 0.12 * side) ** 2) + 1.4 * wave
    peduncles = 2.4 * np.exp(-(((side - 9) / 6) ** 2)) * (y < 13) - 3.0 * np.exp(-((x / 4) ** 2)) * (y < 13)
    around = np.abs(heart - 15.8 - peduncles) - (0.5 + 1.1 * a + 0.35 * wave)
    ambient = np.maximum(around, np.maximum(np.abs(z + 6) - 9, np.abs(y - 19) - 14))
    quad = np.sqrt((x / 1.5) ** 2 + ((y - 31) * 1.2) ** 2 + ((z - 1) / 1.2) ** 2) - (4.6 + 2 * a)
    pons = np.maximum(np.abs(np.sqrt(x * x + (y - 17) ** 2) + wave - 17) - 1.6, np.maximum(z + 16, y - 8))
    magna = np.sqrt((x / 1.5) ** 2 + (y - 62) ** 2 + ((z + 56) * 0.9) ** 2) - (7 + 3 * a)
    cord = np.maximum(9 - np.hypot(x, y - 30), z + 58)
    fluid = np.minimum(np.minimum(np.minimum(stellate, arms), np.minimum(ambient, quad)), np.minimum(pons, magna))
    return np.asarray(np.minimum(fluid, cord), dtype=np.float32)


def ventricles_mm(head: Head, points: Points) -> Floats:
    """Computes the signed distance to the ventricles in mm, negative inside."""
    x, y, z = points
    # Only where a ventricle can be: the other points need no noise and no tubes.
    near = np.flatnonzero((np.abs(x) < 46) & (np.abs(y - 14) < 66) & (np.abs(z + 4) < 46))
    distance = np.full(x.shape, 30.0, dtype=np.float32)
    px, py, pz = x[near], y[near], z[near]
    side = np.abs(px) * (1 + np.float32(head.asymmetry) * np.sign(px))
    wave = head.tile.at((px, py, pz), 6.0, 13)
    scale = head.ventricles
    lateral = np.maximum(_tube((side, py, pz), _HORNS, scale), 0.6 - side)
    temporal = _tube((side, py, pz), _TEMPORAL, 0.55 * scale + 0.2)
    slit = (0.9 + 1.7 * (scale - 0.6)) * np.clip(1.2 - ((py - 1) / 15) ** 2, 0.1, 1)
    third = np.maximum(np.maximum(np.abs(px) - slit, np.abs(py - 1) - 13), np.abs(pz + 2) - 10)
    fourth = np.sqrt((px / 1.5) ** 2 + (py - 37) ** 2 + ((pz + 30) / 1.7) ** 2) - 4.6 * (0.7 + 0.3 * scale)
    aqueduct = np.maximum(np.hypot(px, py - 24 - 0.55 * (-8 - pz)) - 1.0, np.abs(pz + 14) - 12)
    joined = np.minimum(np.minimum(lateral + 0.5 * wave, temporal), np.minimum(np.minimum(third, fourth), aqueduct))
    distance[near] = joined
    return distance


def _tube(points: Points, path: tuple[tuple[tuple[float, float, float], float], ...], scale: float) -> Floats:
    """Computes the signed distance to a tube of changing radius along a path, a little taller than wide."""
    x, y, z = points
    best = np.full(x.shape, 60.0, dtype=np.float32)
    for (start, r0), (end, r1) in itertools.pairwise(path):
        d = [e - s for s, e in zip(start, end, strict=True)]
        length2 = sum(c * c for c in d)
        t = ((x - start[0]) * d[0] + (y - start[1]) * d[1] + (z - start[2]) * d[2]) / length2
        # Beyond the ends the nearest end counts, so that neighbouring segments join.
        t = np.clip(t, 0, 1).astype(np.float32)
        dx, dy, dz = (c - s - t * e for c, s, e in zip((x, y, z), start, d, strict=True))
        off = np.sqrt((dx * 1.15) ** 2 + dy * dy + (dz * 0.9) ** 2) - scale * (r0 + t * (r1 - r0))
        best = np.minimum(best, off)
    return best


def _nuclei(points: Points, coarse: Floats) -> Mask:
    x, y, z = points
    # One formula for both sides; the noise keeps them from being mirror images.
    side = np.abs(x) + 0.8 * coarse
    lean = 0.28 * (y + 2)
    caudate = ((side - 13) / 5) ** 2 + ((y + 20) / 11) ** 2 + ((z - 11) / 10) ** 2
    lentiform = ((side - 25 - lean * 0.4) / 6.2) ** 2 + ((y + 3) / 17) ** 2 + ((z - 3) / 11) ** 2
    thalamus = ((side - 11 - lean * 0.25) / 8) ** 2 + ((y - 11) / 13) ** 2 + ((z - 6) / 10) ** 2
    return np.asarray(np.minimum(np.minimum(caudate, lentiform), thalamus) < 1)


def _stem(points: Points) -> Mask:
    x, y, z = points
    midbrain = (x * x + (y - 14) ** 2 < 210) & (np.abs(z + 6) < 9)
    pons = (x / 16) ** 2 + ((y - 18) / 14) ** 2 + ((z + 27) / 15) ** 2 < 1
    medulla = (np.hypot(x, y - 28) < 8) & (z < -36)
    return np.asarray(midbrain | pons | medulla)


def _coverings(head: Head, points: Points, gap: Floats, tissue: npt.NDArray[np.uint8]) -> None:
    x, y, z = points
    wave = head.tile.at(points, 16.0, 14)
    falx_depth = 26 + 0.12 * (y + 80)
    falx = (np.abs(x + 0.9 * wave) < 0.55 + 0.15 * head.atrophy) & (gap < falx_depth) & (z > -4 + 0.1 * y)
    leaf = np.abs(z - tentorium_mm(x, y))
    tent = (leaf < 0.9) & (y > 22) & (np.abs(x) > np.maximum(0, 16 - 0.4 * (y - 22)))
    tissue[falx | (tent & (gap < 60))] = Tissue.DURA
    # Venous sinuses after the dura in whose folds they lie.
    sagittal = (np.abs(x) + gap * 0.9 < 5.2) & (z > 0) & (y > -60)
    transverse = (leaf < 3.2) & (gap < 4.0) & (y > 30) & (np.abs(x) > 8)
    torcula = (np.abs(x) < 8) & (gap < 6) & (leaf < 6) & (y > 50)
    tissue[sagittal | transverse | torcula] = Tissue.VEIN
