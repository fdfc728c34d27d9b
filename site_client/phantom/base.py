"""The base of the head: the floor of the skull with its three fossae, and the face and neck under it.

The floor's height is a function of x and y alone, tabulated once a head with its slope. Each fossa is a basin whose
walls rise toward the lines it shares with its neighbors: the lesser wings, the petrous ridges, the clivus.
"""

from dataclasses import dataclass, field

import numpy as np

from site_client.phantom.noise import Floats, Mask, NoiseTile, Points

STEP_MM = 0.5
REACH_MM = (100.0, 130.0)

MUSCLE, FAT, AIR, BONE = 56.0, -92.0, -970.0, 950.0


@dataclass(frozen=True)
class FloorMap:
    """The floor over a grid of x and y, flattened.

    `height`: f32, mm. `steep`: f32, factor from the height above the floor to the distance from it. `top_mm`: the
    highest point under the brain.
    """

    height: Floats = field(repr=False)
    steep: Floats = field(repr=False)
    top_mm: float

    @classmethod
    def of(cls, tile: NoiseTile, size: float) -> "FloorMap":
        """Tabulates the floor of one head. `size`: of the head, 1 for an average one."""
        across = (np.arange(round(2 * REACH_MM[0] / STEP_MM)) * STEP_MM - REACH_MM[0]).astype(np.float32)
        along = (np.arange(round(2 * REACH_MM[1] / STEP_MM)) * STEP_MM - REACH_MM[1]).astype(np.float32)
        x, y = np.meshgrid(across, along)
        height = np.asarray(_floor(tile, x, y) * size, dtype=np.float32)
        down, right = np.gradient(height, STEP_MM)
        # Limited: beside a wall the height alone would say nothing.
        steep = (1 / np.sqrt(1 + np.minimum(down**2 + right**2, 60))).astype(np.float32)
        inner = height[(np.abs(x) < 70) & (np.abs(y) < 85)]
        # The foramen magnum: no floor there.
        hole = (x / 14) ** 2 + ((y - 33) / 16.5) ** 2 < 1
        height[hole], steep[hole] = -300.0, 1.0
        return cls(height.ravel(), steep.ravel(), float(inner.max()))

    def clearance(self, points: Points) -> Floats:
        """Approximates the distance in mm to the floor at N points: f32[N], negative below it."""
        x, y, z = points
        width = round(2 * REACH_MM[0] / STEP_MM)
        cell = np.clip((y + REACH_MM[1]) / STEP_MM, 0, 2 * REACH_MM[1] / STEP_MM - 1).astype(np.int32) * width
        cell += np.clip((x + REACH_MM[0]) / STEP_MM, 0, width - 1).astype(np.int32)
        gap = (z - self.height[cell]) * self.steep[cell]
        return np.asarray(gap, dtype=np.float32)


def _floor(tile: NoiseTile, x: Floats, y: Floats) -> Floats:
    side = np.abs(x)
    wave = tile.at((x, y, 0 * x), 7.0, 31)
    behind_wing = np.asarray(y + 24 + 0.45 * (side - 10) + 0.6 * wave, dtype=np.float32)
    before_ridge = np.asarray((2 + 0.62 * (side - 12) - y + 0.6 * wave) / 1.18, dtype=np.float32)
    roofs = 9 * np.exp(-(((side - 29) / 14) ** 2) - ((y + 52) / 18) ** 2)
    front = -17 + roofs - 5 * np.exp(-((side / 6) ** 2)) + 0.8 * np.maximum(0, -y - 66) + 1.6 * wave
    front = front + 20 * _wall(-behind_wing, 4)
    middle = -39 + 5 * ((side - 40) / 22) ** 2 + 1.2 * wave
    middle = middle + 22 * (_wall(behind_wing, 5) + _wall(before_ridge, 6) + _wall(side - 15, 4))
    back = -61 + 26 * (side / 50) ** 2 + 45 * np.maximum(0, (y - 38) / 44) ** 2
    back = back + 44 * _wall(-before_ridge, 8) + 46 * _wall(y + 4, 13) * np.exp(-((side / 24) ** 4))
    saddle = -17 + 0.36 * np.maximum(0, side - 9) - 6 * np.exp(-((x / 7) ** 2) - ((y + 11) / 6) ** 2)
    saddle = saddle + 6 * np.exp(-(((side - 10) / 3) ** 2) - ((y + 20) / 4) ** 2)
    saddle = saddle + 5 * np.exp(-((x / 7) ** 4) - ((y + 2) / 2.5) ** 2)
    # The lowest of the fossae at each point: a wall belongs to the deeper one.
    return np.asarray(np.minimum(np.minimum(front, middle), np.minimum(back, saddle)), dtype=np.float32)


def _wall(distance: Floats, length: float) -> Floats:
    return np.asarray(np.exp(-np.maximum(distance, -0.6 * length) / length), dtype=np.float32)


def fill_base(tile: NoiseTile, pneumatized: bool, points: Points, gap: Floats) -> Floats:
    """Computes HU below the floor at N points, f32[N]. Later parts lie in front of earlier ones.

    `gap`: f32[N], distance to the floor in mm, negative below it.
    """
    x, y, z = points
    # Faces are symmetric: fields are read at |x|, with a little that is not.
    coarse = tile.at((np.abs(x), y, z), 6.5, 5)
    fine = tile.at(points, 1.7, 6)
    lean = x + 0.8 * tile.at(points, 14.0, 38)
    side = np.abs(lean)
    hu = _soft_parts(tile, side, y, z, coarse)
    _face(hu, lean, side, y, z, coarse, fine)
    _floor_bone(hu, side, y, z, gap, coarse, fine, pneumatized)
    _orbits(hu, side, y, z)
    return hu


def _soft_parts(tile: NoiseTile, side: Floats, y: Floats, z: Floats, coarse: Floats) -> Floats:
    """Fills with fat, and sets the muscles of mastication and of the neck into it."""
    hu = np.full(side.shape, FAT, dtype=np.float32)
    ragged = 0.12 * coarse
    for center, half in (
        ((47, -30, -48), (9, 17, 40)),  # temporalis and masseter
        ((58, -22, -66), (5, 20, 22)),
        ((28, -14, -52), (13, 13, 16)),  # pterygoids
        ((14, 2, -58), (13, 8, 30)),  # before the spine
        ((22, 22, -70), (9, 9, 30)),
        ((52, 22, -70), (8, 14, 26)),  # behind the mastoid
    ):
        hu[_ball(side, y, z, center, half, ragged)] = MUSCLE
    hu[_ball(side, y, z, (56, 4, -62), (9, 12, 18), ragged)] = -15.0  # parotid
    # The neck: layers around the spine, parted by thin fat.
    around = np.hypot(side, 1.1 * (y - 26)) + 2.2 * coarse
    layer = np.abs(np.mod(around, 13) - 6.5)
    neck = (y > 24 + 0.2 * side) & (around < 72) & (layer > 0.9) & (side > 1.0 + 0.3 * coarse)
    hu[neck] = MUSCLE + 2
    thin = tile.at((side, y, 0.3 * z), 3.0, 7)
    hu[neck & (np.abs(thin) < 0.12)] = -20.0
    return hu


def _face(hu: Floats, x: Floats, side: Floats, y: Floats, z: Floats, coarse: Floats, fine: Floats) -> None:
    """Sets in jaws, cheek bones, nose with its sinuses, throat and spine."""
    ramus = (np.abs(side - 49 - 0.1 * (y + 12)) < 3.2) & (np.abs(y + 14) < 12) & (z < -52)
    condyle = _ball(side, y, z, (50, -5, -47), (9, 5, 6))
    hu[ramus | condyle] = 1000.0
    bow = 64 - 0.011 * np.maximum(0, -(y + 5)) ** 1.75
    arch = (np.abs(side - bow) < 2.2) & (np.abs(z + 45) < 4) & (y < 4) & (y > -66)
    cheek = _ball(side, y, z, (43, -64, -48), (11, 9, 12), 0.15 * coarse)
    hu[arch | cheek] = 850.0
    _hollow(hu, side, y, z, (24, -54, -58), (12, 14, 15), 0.1 * coarse, 1.4)
    nose = (side < 12 - 0.05 * (z + 50)) & (y < -36) & (z < -20)
    hu[nose & (y > -92)] = AIR
    shelf = np.abs(side - 8 - 1.6 * np.sin(z / 3.5 + 0.15 * y)) < 1.8
    hu[nose & shelf & (y > -80) & (z < -34)] = 45.0
    hu[nose & (np.abs(x - 1.0 * coarse) < 1.1)] = 180.0
    hu[(np.abs(side - 12 + 0.05 * (z + 50)) < 1.0) & (y < -36) & (y > -84) & (z < -20)] = 500.0
    cells = (side < 13) & (y < -36) & (y > -76) & (z > -38)
    hu[cells & (np.abs(fine) < 0.32)] = 260.0
    _hollow(hu, x - 3, y, z, (0, -20, -31), (13, 13, 9), 0.08 * coarse, 1.5)
    hu[(np.abs(x - 2) < 0.8) & (np.abs(y + 20) < 13) & (np.abs(z + 31) < 9)] = 500.0
    hu[_ball(x, y, z, (0, -14, -66), (13, 8, 22), 0.15 * coarse)] = AIR
    hu[(np.abs(side - 17 - 0.25 * (y + 28)) < 1.2) & (np.abs(y + 22) < 8) & (z < -42)] = 700.0
    canal = np.hypot(x, y - 32)
    spine = (z < -66) & (canal > 13.5) & (canal < 20 + 2.5 * coarse)
    hu[spine] = 750.0
    hu[_ball(side, y, z, (24, 26, -72), (9, 8, 9))] = 700.0
    hu[_ball(x, y, z, (0, 14, -74), (5, 5, 16))] = 800.0


def _floor_bone(
    hu: Floats, side: Floats, y: Floats, z: Floats, gap: Floats, coarse: Floats, fine: Floats, pneumatized: bool
) -> None:
    """Sets in the plate under the brain, petrous pyramids, mastoids with their cells, and ear canals."""
    plate = 3.4 + 0.9 * coarse + 3.5 * np.exp(-((side / 14) ** 2) - ((y - 6) / 14) ** 2)
    under = (gap < 0) & (gap > -plate)
    hu[under] = np.where(gap[under] > -1.3, 1000.0, 650 + 160 * fine[under])
    slant = y - (8 + 0.62 * (side - 16))
    pyramid = ((side - 34) / 24) ** 2 + (slant / 9) ** 2 + ((z + 30) / 12) ** 2 < 1 + 0.15 * coarse
    hu[pyramid & (gap < 0)] = 1250 + 120 * fine[pyramid & (gap < 0)]
    mastoid = _ball(side, y, z, (55, 29, -40), (11, 15, 20), 0.15 * coarse)
    hu[mastoid & (gap < 0)] = 850.0
    if pneumatized:
        core = _ball(side, y, z, (55, 29, -38), (9, 13, 17), 0.2 * coarse) & (gap < -1.5)
        hu[core & (np.abs(fine) > 0.42)] = -850.0
    hu[(np.hypot(y - 11, z + 33) < 3.0) & (side > 46)] = -900.0
    hu[_ball(side, y, z, (43, 13, -31), (4, 4, 5)) & (gap < -1)] = -700.0
    hu[_ball(side, y, z, (33, 17, -31), (4, 2, 3)) & (gap < -2)] = 80.0


def _orbits(hu: Floats, side: Floats, y: Floats, z: Floats) -> None:
    """Sets in the orbits: cones of bone filled with fat, with muscles, nerve, globe and lens."""
    along = np.clip((-28.0 - y) / 46.0, 0, 1.3)
    off = np.hypot(side - (13 + 18 * along), 1.05 * (z + 28.0))
    reach = 5 + 14.5 * np.minimum(along, 1)
    front = (y < -28) & (y > -84 + 0.35 * np.maximum(0, side - 26))
    hu[front & (off >= reach) & (off < reach + 1.6)] = 620.0
    hu[front & (off < reach)] = FAT
    belly = 1.0 + 1.3 * np.sin(np.pi * np.clip(along / 0.9, 0, 1))
    ring = (np.abs(off - 0.7 * reach) < belly) & (along < 0.85)
    wheel = np.abs(np.abs(side - 13 - 18 * along) - np.abs(z + 28)) > 0.52 * off
    hu[front & ring & wheel] = 48.0
    hu[front & (np.hypot(side - 13 - 18 * along - np.sin(along * 5), z + 28) < 2.1) & (along < 0.8)] = 36.0
    globe = np.sqrt((side - 31) ** 2 + (y + 75) ** 2 + (z + 28) ** 2)
    hu[globe < 12.6] = 45.0
    hu[globe < 11.3] = 10.0
    hu[(side - 31) ** 2 + ((y + 84.5) * 2) ** 2 + (z + 28) ** 2 < 20] = 80.0


def _hollow(
    hu: Floats,
    side: Floats,
    y: Floats,
    z: Floats,
    center: tuple[float, float, float],
    half: tuple[float, float, float],
    ragged: Floats,
    wall_mm: float,
) -> None:
    """Sets in an air space in a thin shell of bone."""
    wide = (half[0] + wall_mm, half[1] + wall_mm, half[2] + wall_mm)
    hu[_ball(side, y, z, center, wide, ragged)] = 600.0
    hu[_ball(side, y, z, center, half, ragged)] = AIR


def _ball(
    side: Floats,
    y: Floats,
    z: Floats,
    center: tuple[float, float, float],
    half: tuple[float, float, float],
    ragged: Floats | float = 0.0,
) -> Mask:
    near = ((side - center[0]) / half[0]) ** 2 + ((y - center[1]) / half[1]) ** 2 + ((z - center[2]) / half[2]) ** 2
    return np.asarray(near < 1 + ragged)
