"""The head around the brain: vault, scalp and cavity, as functions of points in head space.

Everything is analytic in continuous coordinates, so the same patient can be put through any scanner. HU are standard
ranges: fat -100, muscle and skin 50, skull tables 1000, diploe 700-800, air -1000. `base` has floor and face.
"""

from dataclasses import dataclass

import numpy as np

from site_client.phantom.base import FloorMap, fill_base
from site_client.phantom.noise import Floats, Mask, NoiseTile, Points

AIR_HU = -1000.0


@dataclass(frozen=True)
class Head:
    """One patient's anatomy, drawn once.

    `atrophy`: 0 (young) to 1 (very old), widens every CSF space. `half_mm`: half extents of the inner skull. `egg`,
    `bumps`: its deviations from a superellipsoid. `bone`: factor on the HU of the vault. `fat`: share of fat in the
    scalp, about 1. `muscle`: factor on the temporalis. `hematocrit`: factor on the HU of blood in vessels.
    `ventricles`: factor of their radius. `frontal_sinus`: size, 0 to 1.
    """

    age: float
    atrophy: float
    half_mm: tuple[float, float, float]
    egg: float
    bumps: tuple[float, ...]
    skull_mm: float
    bone: float
    scalp_mm: float
    fat: float
    muscle: float
    hematocrit: float
    ventricles: float
    asymmetry: float
    pneumatized: bool
    frontal_sinus: float
    gray_hu: float
    tile: NoiseTile
    floor: FloorMap

    @classmethod
    def draw(cls, random: np.random.Generator, age: float) -> "Head":
        """Draws the anatomy of a patient of this age in years."""
        # A head of a newborn is 16 % smaller; growth ends at 12.
        child = 1.0 - 0.16 * max(0.0, 1.0 - age / 12.0)
        half = np.array([66.5, 82.5, 71.0]) * child * random.normal(1.0, [0.03, 0.03, 0.025])
        atrophy = float(np.clip((age - 35.0) / 55.0 + random.normal(0, 0.12), 0.0, 1.1))
        tile = NoiseTile.draw(random)
        return cls(
            age=age,
            atrophy=atrophy,
            half_mm=(float(half[0]), float(half[1]), float(half[2])),
            egg=float(random.uniform(0.03, 0.1)),
            bumps=tuple(float(b) for b in random.normal(0.0, 0.018, 6)),
            skull_mm=float(random.uniform(4.2, 9.5) * (0.55 + 0.45 * min(1.0, age / 16.0))),
            bone=float(random.normal(1.0, 0.11) * (0.75 + 0.25 * min(1.0, age / 16.0)) - 0.06 * atrophy),
            scalp_mm=float(random.uniform(3.2, 9.0)),
            fat=float(random.uniform(0.4, 1.6)),
            muscle=float(random.lognormal(0.0, 0.45) * (1.0 - 0.35 * atrophy)),
            hematocrit=float(random.normal(1.0, 0.12)),
            ventricles=float((0.95 + 0.75 * atrophy) * random.lognormal(0.0, 0.12)),
            asymmetry=float(random.normal(0.0, 0.06)),
            pneumatized=bool(random.random() < 0.85),
            frontal_sinus=float(random.uniform(0, 1) * min(1.0, age / 18.0)),
            gray_hu=float(random.normal(0.0, 1.4)),
            tile=tile,
            floor=FloorMap.of(tile, float(half[2]) / 71.0),
        )


@dataclass(frozen=True)
class Shell:
    """The outer head at each point, arrays f32 of one shape.

    `depth`: mm below the vault's smooth inner table, negative in skull and scalp. `gap`: mm to the nearest inner bone,
    floor and ridges included, negative outside the cavity. `u`, `v`, `w`: coordinates relative to the vault, about 1 at
    the inner table.
    """

    depth: Floats
    gap: Floats
    u: Floats
    v: Floats
    w: Floats


def shell_at(head: Head, points: Points) -> Shell:
    """Computes the vault's implicit surface, an asymmetric superellipsoid with low-order bumps, and the floor below."""
    x, y, z = points
    a, b, c = head.half_mm
    v = (y - 2.0) / b
    u = x / (a * (1 + head.egg * np.clip(v, -1.2, 1.2)))
    # Below the origin the vault is longer: the floor cuts it off.
    height = np.where(z > 0, np.float32(c), np.float32(1.75 * c))
    w = np.asarray(z / height, dtype=np.float32)
    uu, vv, ww = u * u, v * v, w * w
    k = head.bumps
    rho2 = uu + vv + ww - 0.2 * uu * vv - 0.12 * ww * (uu + vv)
    rho2 += k[0] * u * v + k[1] * u * w + k[2] * v * w + k[3] * (uu - vv) * w + k[4] * u * uu + k[5] * v * vv
    rho = np.sqrt(np.maximum(rho2, np.float32(1e-3)))
    # Distance is the implicit function over its gradient, to first order.
    slope = np.sqrt(uu / (a * a) + vv / (b * b) + ww / (height * height)) / rho
    depth = np.asarray((1 - rho) / np.maximum(slope, np.float32(0.5 / b)), dtype=np.float32)
    gap = depth - _ridges(head, points, depth)
    if float(z.min()) < head.floor.top_mm:  # most slabs lie above the whole floor
        np.minimum(gap, head.floor.clearance(points), out=gap)
    return Shell(depth, gap, u, v, w)


def _ridges(head: Head, points: Points, depth: Floats) -> Floats:
    """Computes how far bone stands into the cavity: impressions of gyri, frontal and occipital crest."""
    out = np.zeros(depth.shape, dtype=np.float32)
    # Ridges rise 9 mm at most: elsewhere no noise is read.
    near = np.flatnonzero((np.abs(depth) < 9).ravel())
    px, py, pz = (axis.ravel()[near] for axis in points)
    crest = np.exp(-((px / 4) ** 2) - np.abs(py - 80) / 25 - ((pz + 12) / 22) ** 2) * 6.5
    crest += np.exp(-((px / 3) ** 2) - np.abs(py + 80) / 18 - ((pz - 2) / 26) ** 2) * 5
    out.ravel()[near] = 0.55 * head.tile.at((px, py, pz), 6.5, 33) + 0.5 * head.tile.at((px, py, pz), 16, 34) + crest
    return out


def cavity_of(shell: Shell) -> Mask:
    """Marks the points of the brain, its fluid and its coverings."""
    return np.asarray(shell.gap > 0)


def skull_mm(head: Head, points: Points, shell: Shell) -> Floats:
    """Computes the thickness of the vault in mm: thick at forehead and occiput, thin at the temples."""
    temple = np.exp(-((shell.v + 0.1) ** 2) / 0.12 - (shell.w + 0.25) ** 2 / 0.1) * np.clip(np.abs(shell.u), 0, 1)
    wave = 0.09 * np.sin(5 * shell.u + 3 * shell.w + 40 * head.bumps[0]) + 0.05 * np.sin(9 * shell.v - 4 * shell.w)
    thickness = 0.82 + 0.4 * shell.v * shell.v + wave - 0.45 * temple
    return np.asarray(head.skull_mm * np.maximum(0.3, thickness), dtype=np.float32)


def fill_head(head: Head, points: Points, shell: Shell) -> Floats:
    """Computes HU of every point outside the cavity; cavity points hold 0 until the brain is painted."""
    skull = skull_mm(head, points, shell)
    temple = np.exp(-((shell.v + 0.25) ** 2) / 0.1 - (shell.w + 0.28) ** 2 / 0.05)
    side = np.clip(2 * np.abs(shell.u) - 0.8, 0, 1)
    muscle = np.asarray(8.5 * head.muscle * temple * side, dtype=np.float32)
    scalp = np.asarray(head.scalp_mm * (1 + 0.3 * shell.v) + muscle, dtype=np.float32)
    if float(points[2].min()) < 0:  # a nose and a nape are below the brow only
        scalp += _profile(points)
    out = -shell.depth
    hu = np.full(shell.depth.shape, AIR_HU, dtype=np.float32)
    inside = out < skull + scalp
    under = inside & ~cavity_of(shell)
    hu[inside] = 0.0
    # Scalp, vault, then base and face: each fills the points that are left.
    _soft_shell(head, hu, under & (out > skull), points, out - skull, scalp, muscle)
    # The vault ends on a slope from the brows to the nape; below it lie the face and the neck.
    edge = -16.0 - 0.28 * (points[1] + 80.0) + 0.63 * np.maximum(0, points[1] - 22)
    vault = under & (out <= skull) & (points[2] > edge) & (out > -9)
    _bone_shell(head, hu, vault, points, out / skull)
    rest = np.flatnonzero((under & (out <= skull) & ~vault).ravel())
    if len(rest):
        flat = (points[0].ravel()[rest], points[1].ravel()[rest], points[2].ravel()[rest])
        hu.ravel()[rest] = fill_base(head.tile, head.pneumatized, flat, shell.gap.ravel()[rest])
    _ears(hu, points, out - skull - scalp)
    return hu


def _profile(points: Points) -> Floats:
    """Computes additional scalp in mm: the nose, and a nape and cheeks that fall back below the skull."""
    x, y, z = points
    low = np.clip(-z - 28, 0, 50)
    nose = 26 * np.clip((-z - 22) / 45, 0, 1) * np.exp(-((x / (6 + 0.12 * low)) ** 2)) * (y < -60)
    nape = -0.12 * low * np.clip((y - 20) / 50, 0, 1)
    cheeks = -0.05 * low * np.clip((-y - 30) / 40, 0, 1)
    return np.asarray(nose + nape + cheeks, dtype=np.float32)


def _ears(hu: Floats, points: Points, outside: Floats) -> None:
    """Sets in two folded shells beside the head."""
    _, y, z = points
    if float(z.min()) > 4:
        return
    near = np.flatnonzero(((outside > -3) & (outside < 18) & (np.abs(y - 16) < 20) & (z < 4) & (z > -52)).ravel())
    flat_y, flat_z = y.ravel()[near], z.ravel()[near]
    off = outside.ravel()[near]
    rim = 11 * np.sqrt(np.clip(1 - ((flat_z + 24) / 27) ** 2, 0, 1))
    along = flat_y - (6 + 1.3 * off + 1.5 * np.sin(off / 2.0 + 0.15 * flat_z))
    shell = (np.abs(along) < 1.5) & (off < rim)
    helix = np.hypot(along - 1.5, off - rim + 2) < 2.6
    hu.ravel()[near[(shell | helix) & (hu.ravel()[near] < -500)]] = 5.0


def _soft_shell(
    head: Head, hu: Floats, where: Mask, points: Points, above: Floats, scalp: Floats, muscle: Floats
) -> None:
    """Fills the scalp with skin, fat and galea; at the temples muscle takes the lower part."""
    height, top, deep = above[where], scalp[where], muscle[where]
    flat = (points[0][where], points[1][where], points[2][where])
    strand = head.tile.at(flat, 3.5, 35)
    meat = (0.42 - 0.18 * head.fat) * np.minimum(top, 9) + 0.75 * deep + 0.5 * strand
    nape = (flat[1] > 30) & (flat[2] < -25)
    fat = np.where(strand > 1.7, 10.0, -98.0)
    hu[where] = np.where(height > top - 1.7, 42.0, np.where((height < meat) | (nape & (height < 0.7 * top)), 54.0, fat))


def _bone_shell(head: Head, hu: Floats, where: Mask, points: Points, share: Floats) -> None:
    """Fills the vault with two tables and the diploe between them, cut by sutures; some heads have a frontal sinus."""
    place = share[where]
    x, y, z = flat = (points[0][where], points[1][where], points[2][where])
    grain = head.tile.at(flat, 2.2, 3)
    table = np.minimum(1, 2.2 * np.maximum(0, np.abs(place - 0.5) - 0.2) / 0.3)
    spongy = 620 + 130 * grain + 160 * head.tile.at(flat, 8.0, 36)
    bone = (spongy + (1180 - spongy) * table) * np.float32(head.bone)
    wiggle = 1.6 * grain + 2.2 * head.tile.at(flat, 5.0, 32)
    # Sutures wander: a straight gap would look like a fracture.
    coronal = np.abs(y + 18 + 0.12 * (z - 60) + wiggle) < 0.8
    lambdoid = np.abs(y - 62 + 0.45 * (z - 20) + 0.25 * np.abs(x) + wiggle) < 0.8
    bone[(coronal | lambdoid) & (np.abs(z - 30) < 45)] = 250.0
    # Pacchionian pits and venous lakes beside the vertex.
    bone[(grain > 1.9) & (place < 0.6) & (z > 45) & (np.abs(x) < 35)] = 120.0
    size = head.frontal_sinus
    lobes = 1 + 0.35 * head.tile.at((x, 0 * y, z), 6.0, 37)
    sinus = (x / (5 + 20 * size)) ** 2 + ((z + 8) / (6 + 15 * size)) ** 2 < lobes
    bone[sinus & (y < -60) & (np.abs(place - 0.5) < 0.3) & (np.abs(x - 3 + wiggle) > 0.8)] = -900.0
    hu[where] = bone
