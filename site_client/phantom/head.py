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
            bumps=tuple(float(b) for b in random.normal(0.0, 0.012, 6)),
            skull_mm=float(random.uniform(5.0, 7.5) * (0.55 + 0.45 * min(1.0, age / 16.0))),
            scalp_mm=float(random.uniform(4.5, 7.5)),
            ventricles=float((0.8 + 0.75 * atrophy) * random.lognormal(0.0, 0.12)),
            asymmetry=float(random.normal(0.0, 0.06)),
            pneumatized=bool(random.random() < 0.75),
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
    return Shell(depth, z - floor_mm(head, x, y), u, v, w)


def floor_mm(head: Head, x: Floats, y: Floats) -> Floats:
    """Height of the cranial floor: orbital roofs, middle and posterior fossae; ridges arise where two cups meet."""
    side = np.abs(x)
    s = np.float32(head.half_mm[2] / 71.0)
    front = np.float32(-15.0) + 5 * np.exp(-(((side - 30) / 13) ** 2)) * (y < -25) + np.maximum(0, -y - 70) * 0.6
    middle = np.float32(-37.0) + 15 * ((side - 37) / 21) ** 2 + 15 * ((y + 8) / 27) ** 2
    back = np.float32(-62.0) + 26 * (side / 50) ** 2 + 30 * ((y - 40) / 40) ** 2
    clivus = np.float32(-16.0) - np.maximum(0, y - 4) * 1.9 + np.maximum(0, side - 10) * 3.0
    rear = np.where(y > 0, clivus, np.float32(-15.0))
    floor = np.minimum(np.minimum(front, middle), np.minimum(back, np.maximum(rear, back)))
    hole = (x / 15) ** 2 + ((y - 32) / 17) ** 2 < 1
    return np.asarray(np.where(hole, np.float32(-140.0), floor * s), dtype=np.float32)


def cavity_of(shell: Shell) -> Mask:
    """Where the brain, its fluid and its coverings lie."""
    return np.asarray((shell.depth > 0) & (shell.gap > 0))


def skull_thickness(head: Head, shell: Shell) -> Floats:
    """Thickness of the vault in mm: thicker at forehead and occiput, thin at the temples."""
    temple = np.exp(-((shell.v + 0.1) ** 2) / 0.12 - (shell.w + 0.25) ** 2 / 0.1) * (np.abs(shell.u) > 0.5)
    thickness = 0.8 + 0.45 * shell.v * shell.v + 0.12 * np.sin(5 * shell.u + 3 * shell.w) - 0.4 * temple
    return np.asarray(head.skull_mm * thickness, dtype=np.float32)


def fill_head(head: Head, points: Points, shell: Shell) -> Floats:
    """HU of every point that is not in the cavity (cavity points hold 0 and are the brain's to fill)."""
    skull = skull_thickness(head, shell)
    muscle = 9 * np.exp(-((shell.v + 0.15) ** 2) / 0.1 - (shell.w + 0.25) ** 2 / 0.08) * (np.abs(shell.u) > 0.5)
    scalp = np.asarray(head.scalp_mm * (1 + 0.25 * shell.v) + muscle, dtype=np.float32)
    out = -shell.depth
    hu = np.full(shell.depth.shape, AIR_HU, dtype=np.float32)
    inside = out < skull + scalp
    under = inside & ~cavity_of(shell)
    hu[inside] = 0.0
    _soft_shell(hu, under & (out > skull), out - skull, scalp)
    vault = under & (out > 0) & (out <= skull) & (points[2] > _vault_edge(points[1]))
    _bone_shell(head, hu, vault, points, out / skull)
    rest = np.flatnonzero((under & (out <= skull) & ~vault).ravel())
    flat = (points[0].ravel()[rest], points[1].ravel()[rest], points[2].ravel()[rest])
    hu.ravel()[rest] = _base_and_face(head, flat, shell.gap.ravel()[rest], shell.depth.ravel()[rest])
    return hu


def _soft_shell(hu: Floats, where: Mask, above: Floats, scalp: Floats) -> None:
    height = above[where]
    top = scalp[where]
    hu[where] = np.where(height > top - 1.8, 45.0, np.where(height < 0.28 * top, 40.0, -95.0))
    deep = where & (scalp > 11) & (above < scalp - 4.5)
    hu[deep] = 55.0


def _bone_shell(head: Head, hu: Floats, where: Mask, points: Points, share: Floats) -> None:
    place = share[where]
    flat = (points[0][where], points[1][where], points[2][where])
    grain = head.tile.at(flat, 2.2, 3)
    table = np.maximum(0, np.abs(place - 0.5) - 0.22) / 0.28
    hu[where] = 560 + 110 * grain + 700 * np.minimum(1, 2.2 * table)


def _vault_edge(y: Floats) -> Floats:
    return np.asarray(-16.0 - 0.28 * (y + 80.0), dtype=np.float32)


def _base_and_face(head: Head, points: Points, gap: Floats, depth: Floats) -> Floats:
    """HU below the floor of the skull, story by story; later assignments lie in front of earlier ones."""
    x, y, z = points
    side = np.abs(x)
    coarse = head.tile.at(points, 5.0, 5)
    fine = head.tile.at(points, 1.8, 6)
    hu = np.where(coarse > 0.55, -85.0, 52.0).astype(np.float32)
    plate = 3.2 + 1.2 * coarse
    hu[(gap > -plate) & (gap <= 0)] = 950.0
    _cells(hu, _ellipsoid(side, y, z, (40, 14, -30), (24, 10, 11), slant=0.45), 1150.0, fine > 1.3, 300.0)
    if head.pneumatized:
        _cells(hu, _ellipsoid(side, y, z, (55, 30, -36), (11, 14, 17)), 700.0, fine > -0.25, -800.0)
    _cells(hu, (side < 13) & (y < -40) & (z < -18) & (z > -48) & (depth > 4), -900.0, np.abs(fine) < 0.22, 250.0)
    _cells(hu, (side < 14) & (np.abs(y + 22) < 14) & (z < -20) & (z > -38), -900.0, np.abs(fine) < 0.1, 500.0)
    _cells(hu, _ellipsoid(side, y, z, (27, -60, -62), (14, 17, 15)), -950.0, np.abs(fine) < 0.0, 0.0)
    _orbits(hu, side, y, z)
    return hu


def _cells(hu: Floats, where: Mask, value: float, other: Mask, other_value: float) -> None:
    hu[where] = value
    hu[where & other] = other_value


def _orbits(hu: Floats, side: Floats, y: Floats, z: Floats) -> None:
    along = np.clip((-28.0 - y) / 46.0, 0, 1.3)
    off = np.hypot(side - (13 + 18 * along), z + 26.0)
    reach = 5 + 14 * np.minimum(along, 1)
    front = (y < -28) & (y > -88)
    hu[front & (off < reach + 1.8)] = 800.0
    hu[front & (off < reach)] = -95.0
    hu[front & (np.abs(off - 0.62 * reach) < 1.3) & (along < 0.8)] = 50.0
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
