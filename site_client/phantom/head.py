"""The head around the brain: scalp, skull, base, face, as functions of points in head space.

Everything is analytic in continuous coordinates, so the same patient can be put through any scanner. HU are standard
ranges: fat -100, muscle and skin 50, skull tables 1000, diploe 700-800, vitreous 10, air -1000.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from site_client.phantom.noise import Floats, NoiseTile

Points = tuple[Floats, Floats, Floats]
Mask = npt.NDArray[np.bool_]

AIR_HU = -1000.0
FLOOR_TOP_MM = 12.0
"""No part of the cranial floor is higher."""


@dataclass(frozen=True)
class Head:
    """One patient's anatomy, drawn once. `atrophy` runs 0 (young) to 1 (very old) and widens every CSF space."""

    age: float
    atrophy: float
    half_mm: tuple[float, float, float]
    egg: float
    bumps: tuple[float, ...]
    skull_mm: float
    scalp_mm: float
    ventricles: float
    asymmetry: float
    pneumatized: bool
    frontal_sinus: float
    gray_hu: float
    tile: NoiseTile

    @classmethod
    def draw(cls, random: np.random.Generator, age: float) -> "Head":
        child = 1.0 - 0.16 * max(0.0, 1.0 - age / 12.0)
        half = np.array([65.0, 83.0, 71.0]) * child * random.normal(1.0, 0.025, 3)
        atrophy = float(np.clip((age - 35.0) / 55.0 + random.normal(0, 0.12), 0.0, 1.1))
        return cls(
            age=age,
            atrophy=atrophy,
            half_mm=(float(half[0]), float(half[1]), float(half[2])),
            egg=float(random.uniform(0.05, 0.13)),
            bumps=tuple(float(b) for b in random.normal(0.0, 0.015, 6)),
            skull_mm=float(random.uniform(5.0, 7.5) * (0.55 + 0.45 * min(1.0, age / 16.0))),
            scalp_mm=float(random.uniform(4.5, 7.5)),
            ventricles=float((0.95 + 0.75 * atrophy) * random.lognormal(0.0, 0.12)),
            asymmetry=float(random.normal(0.0, 0.06)),
            pneumatized=bool(random.random() < 0.75),
            frontal_sinus=float(random.uniform(0, 1) * min(1.0, age / 18.0)),
            gray_hu=float(random.normal(0.0, 0.8)),
            tile=NoiseTile.draw(random),
        )


@dataclass(frozen=True)
class Shell:
    """What the outer head says of each point: depth below the inner table (mm, negative in skull and scalp) and more.

    depth: depth below the vault's inner table; gap: height above the floor of the skull; u, v, w: coordinates relative
    to the vault (about 1 at the inner table).
    """

    depth: Floats
    gap: Floats
    u: Floats
    v: Floats
    w: Floats


def shell_at(head: Head, points: Points) -> Shell:
    """The vault's implicit surface: an asymmetric superellipsoid with low-order bumps."""
    x, y, z = points
    a, b, c = head.half_mm
    v = (y - np.float32(2.0)) / np.float32(b)
    u = x / (np.float32(a) * (1 + np.float32(head.egg) * np.clip(v, -1.2, 1.2)))
    height = np.where(z > 0, np.float32(c), np.float32(1.75 * c)).astype(np.float32)
    w = np.asarray(z / height, dtype=np.float32)
    uu, vv, ww = u * u, v * v, w * w
    k = head.bumps
    rho2 = uu + vv + ww - np.float32(0.24) * uu * vv - np.float32(0.12) * ww * (uu + vv)
    rho2 += np.float32(k[0]) * u * v + np.float32(k[1]) * u * w + np.float32(k[2]) * v * w
    rho2 += np.float32(k[3]) * (uu - vv) * w + np.float32(k[4]) * u * uu + np.float32(k[5]) * v * vv
    rho = np.sqrt(np.maximum(rho2, np.float32(1e-3)))
    slope = np.sqrt(uu / np.float32(a * a) + vv / np.float32(b * b) + ww / (height * height)) / rho
    depth = (1 - rho) / np.maximum(slope, np.float32(0.5 / b))
    gap = z - floor_mm(head, points) if float(z.min()) < FLOOR_TOP_MM else z + np.float32(15.0)
    return Shell(depth, gap, u, v, w)


def floor_mm(head: Head, points: Points) -> Floats:
    """Height of the cranial floor: orbital roofs, middle and posterior fossae; ridges arise where two cups meet."""
    x, y, _ = points
    side = np.abs(x)
    s = np.float32(head.half_mm[2] / 71.0)
    wave = 2.2 * head.tile.at((x, y, x), 11.0, 31)
    roofs = 6.5 * np.exp(-(((side - 30) / 15) ** 2) - ((y + 52) / 20) ** 2)
    front = np.float32(-19.0) + roofs + np.maximum(0, -y - 68) * 0.9 + wave
    middle = np.float32(-37.0) + 15 * ((side - 37) / 21) ** 2 + 15 * ((y + 8) / 27) ** 2 + wave
    back = np.float32(-62.0) + 26 * (side / 50) ** 2 + 30 * ((y - 40) / 40) ** 2 + 0.6 * wave
    wings = np.where((np.abs(y + 24) < 5) & (side > 8), np.float32(4.0), np.float32(0.0))
    floor = np.minimum(np.minimum(front + wings, middle), back)
    hole = (x / 15) ** 2 + ((y - 32) / 17) ** 2 < 1
    return np.asarray(np.where(hole, np.float32(-140.0), floor * s), dtype=np.float32)


def cavity_of(shell: Shell) -> Mask:
    """Where the brain, its fluid and its coverings lie."""
    return np.asarray((shell.depth > 0) & (shell.gap > 0))


def skull_mm(head: Head, shell: Shell) -> Floats:
    """Thickness of the vault in mm: thicker at forehead and occiput, thin at the temples."""
    temple = np.exp(-((shell.v + 0.1) ** 2) / 0.12 - (shell.w + 0.25) ** 2 / 0.1) * np.clip(np.abs(shell.u), 0, 1)
    thickness = 0.8 + 0.45 * shell.v * shell.v + 0.12 * np.sin(5 * shell.u + 3 * shell.w) - 0.42 * temple
    return np.asarray(head.skull_mm * np.maximum(0.3, thickness), dtype=np.float32)


def fill_head(head: Head, points: Points, shell: Shell) -> Floats:
    """HU of every point that is not in the cavity (cavity points hold 0 and are the brain's to fill)."""
    skull = skull_mm(head, shell)
    temple = np.exp(-((shell.v + 0.2) ** 2) / 0.09 - (shell.w + 0.25) ** 2 / 0.06)
    muscle = 11 * temple * np.clip(2 * np.abs(shell.u) - 0.7, 0, 1)
    scalp = np.asarray(head.scalp_mm * (1 + 0.25 * shell.v) + muscle, dtype=np.float32)
    out = -shell.depth
    hu = np.full(shell.depth.shape, AIR_HU, dtype=np.float32)
    inside = out < skull + scalp
    under = inside & ~cavity_of(shell)
    hu[inside] = 0.0
    _soft_shell(hu, under & (out > skull), out - skull, scalp, muscle)
    # The vault ends on a slope from the brows to the nape; below it lie the face and the neck.
    edge = -16.0 - 0.28 * (points[1] + 80.0)
    vault = under & (out > 0) & (out <= skull) & (points[2] > edge)
    _bone_shell(head, hu, vault, points, out / skull)
    rest = np.flatnonzero((under & (out <= skull) & ~vault).ravel())
    if len(rest):
        flat = (points[0].ravel()[rest], points[1].ravel()[rest], points[2].ravel()[rest])
        hu.ravel()[rest] = _base_and_face(head, flat, shell.gap.ravel()[rest], shell.depth.ravel()[rest])
    return hu


def _soft_shell(hu: Floats, where: Mask, above: Floats, scalp: Floats, muscle: Floats) -> None:
    """Skin, fat, galea; where the temporal muscle lies, muscle takes the lower part."""
    height, top, deep = above[where], scalp[where], muscle[where]
    hu[where] = np.where(height > top - 1.8, 45.0, np.where(height < 0.28 * top + 0.7 * deep, 52.0, -95.0))


def _bone_shell(head: Head, hu: Floats, where: Mask, points: Points, share: Floats) -> None:
    """Two tables and the diploe between them, sutures cut through; a frontal sinus in some."""
    place = share[where]
    x, y, z = flat = (points[0][where], points[1][where], points[2][where])
    grain = head.tile.at(flat, 2.2, 3)
    table = np.maximum(0, np.abs(place - 0.5) - 0.22) / 0.28
    bone = 560 + 110 * grain + 700 * np.minimum(1, 2.2 * table)
    wiggle = 1.6 * grain + 2.2 * head.tile.at(flat, 5.0, 32)
    coronal = np.abs(y + 18 + 0.12 * (z - 60) + wiggle) < 0.8
    lambdoid = np.abs(y - 62 + 0.45 * (z - 20) + 0.25 * np.abs(x) + wiggle) < 0.8
    bone[(coronal | lambdoid) & (np.abs(z - 30) < 45)] = 250.0
    sinus = (x / (6 + 20 * head.frontal_sinus)) ** 2 + ((z + 6) / (8 + 14 * head.frontal_sinus)) ** 2 < 1
    bone[sinus & (y < -60) & (np.abs(place - 0.5) < 0.3) & (np.abs(x - 3) > 0.7)] = -900.0
    hu[where] = bone


def _base_and_face(head: Head, points: Points, gap: Floats, depth: Floats) -> Floats:
    """HU below the floor of the skull, story by story; later assignments lie in front of earlier ones."""
    x, y, z = points
    side = np.abs(x)
    # Faces are symmetric: fields are read at |x|, with a little that is not.
    mirrored = (side, y, z)
    coarse = head.tile.at(mirrored, 6.5, 5)
    fine = head.tile.at(points, 1.8, 6)
    planes = head.tile.at((side, y, 0.4 * z), 4.0, 7)
    hu = np.where((np.abs(planes) < 0.3) | (coarse > 1.0), -80.0, 55.0).astype(np.float32)
    plate = 2.6 + 0.8 * coarse
    hu[(gap > -plate) & (gap <= 0)] = 850.0
    jaw = (np.abs(side - 46 - 0.1 * (y + 20)) < 3.0) & (np.abs(y + 22) < 13) & (z < -42)
    arch = (np.abs(side - 62 + 0.004 * (y + 35) ** 2) < 2.2) & (np.abs(z + 38) < 5) & (y < 0)
    hu[jaw | arch] = 900.0
    _cells(hu, _ellipsoid(side, y, z, (40, 14, -30), (24, 10, 11), slant=0.45), 1150.0, fine > 1.3, 300.0)
    if head.pneumatized:
        _cells(hu, _ellipsoid(side, y, z, (55, 30, -36), (11, 14, 17)), 700.0, fine > -0.25, -800.0)
    nose = (side < 11) & (y < -44) & (z < -20) & (z > -70) & (depth > 5)
    _cells(hu, nose, -950.0, (np.abs(fine) < 0.3) | (side < 0.9), 120.0)
    _cells(hu, _ellipsoid(x - 1.5 * coarse, y, z, (0, -21, -29), (13, 12, 9)), -950.0, np.abs(x - 2) < 0.7, 500.0)
    _cells(hu, _ellipsoid(side, y, z, (25, -60, -60), (14, 16, 15)), -950.0, np.abs(coarse) < 0.0, 0.0)
    hu[_ellipsoid(x, y, z, (0, -14, -66), (10, 8, 20))] = -980.0
    _orbits(hu, side, y, z)
    return hu


def _cells(hu: Floats, where: Mask, value: float, other: Mask, other_value: float) -> None:
    """A cavity or a block of bone with cells or septa of something else in it."""
    hu[where] = value
    hu[where & other] = other_value


def _orbits(hu: Floats, side: Floats, y: Floats, z: Floats) -> None:
    along = np.clip((-28.0 - y) / 46.0, 0, 1.3)
    off = np.hypot(side - (13 + 18 * along), z + 26.0)
    reach = 5 + 14 * np.minimum(along, 1)
    front = (y < -28) & (y > -88)
    hu[front & (off < reach + 1.8)] = 700.0
    hu[front & (off < reach)] = -95.0
    hu[front & (np.abs(off - 0.66 * reach) < 1.2) & (along < 0.8)] = 50.0
    hu[front & (off < 2.2) & (along < 0.8)] = 38.0
    globe = np.sqrt((side - 31) ** 2 + (y + 76) ** 2 + (z + 26) ** 2)
    hu[globe < 12.5] = 45.0
    hu[globe < 11.2] = 10.0
    hu[(side - 31) ** 2 + ((y + 85.5) * 2) ** 2 + (z + 26) ** 2 < 20] = 75.0


def _ellipsoid(
    side: Floats,
    y: Floats,
    z: Floats,
    center: tuple[float, float, float],
    half: tuple[float, float, float],
    slant: float = 0.0,
) -> Mask:
    straight = y - center[1] - slant * (side - center[0])
    total = ((side - center[0]) / half[0]) ** 2 + (straight / half[1]) ** 2 + ((z - center[2]) / half[2]) ** 2
    return np.asarray(total < 1)
