"""Mimics of blood: calcium, dense vessels, tumors, infarcts, operations, injuries without a bleed.

Drawn from the patient's mimics stream, for positives and negatives alike, so that density alone never tells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from site_client.phantom.brain import Brain, Tissue
from site_client.phantom.head import Head
from site_client.phantom.lesions import Lesion
from site_client.phantom.noise import Floats, Mask, Points
from site_client.phantom.profiles import Patients

Kind = Literal[
    "pineal",
    "choroid",
    "falx_plaque",
    "ganglia",
    "dense_artery",
    "dense_sinus",
    "dense_dura",
    "contrast",
    "meningioma",
    "infarct",
    "gas",
    "shunt",
    "edema",
    "cyst",
    "colloid",
    "scalp_hematoma",
    "fracture",
    "craniotomy",
    "clip",
]
# One of these at most, with chance `Patients.mimics`; the others have chances of their own.
RARE: tuple[Kind, ...] = (
    "dense_artery",
    "dense_sinus",
    "dense_dura",
    "contrast",
    "meningioma",
    "edema",
    "cyst",
    "colloid",
    "falx_plaque",
    "scalp_hematoma",
)


@dataclass(frozen=True)
class Mimic:
    """One look-alike. `hu`: of its core, or, for an infarct, the change of HU."""

    kind: Kind
    center_mm: tuple[float, float, float]
    size_mm: float
    hu: float


def draw_mimics(
    random: np.random.Generator, patients: Patients, age: float, lesions: tuple[Lesion, ...]
) -> tuple[Mimic, ...]:
    """Draws one patient's mimics. An epidural bleed brings its fracture (80 %), which its lesion-free twin keeps."""
    side = float(random.choice([-1.0, 1.0]))
    j = random.normal(0, 1, 8)
    # All at once: one mimic's chance must not shift another one's numbers.
    chance = random.random(8)
    # Calcium comes with age.
    grown = min(1.0, max(0.0, (age - 12) / 30))
    mimics: list[Mimic] = []
    calcified = patients.calcification
    if chance[0] < 0.9 * grown:
        mimics.append(Mimic("pineal", (0.8 * j[0], 28 + j[1], 2.0), 1.6 + abs(0.7 * j[2]), 90 + 70 * chance[1]))
    if chance[1] < 1.2 * calcified * grown:
        mimics.append(Mimic("choroid", (24 + j[3], 40 + j[4], 9.0), 2.2 + abs(1.2 * j[5]), 90 + 150 * chance[2]))
    if chance[2] < 0.35 * calcified:
        mimics.append(Mimic("ganglia", (21 + j[6], -4 + 2 * j[7], 2.0), 3 + abs(1.5 * j[0]), 60 + 50 * chance[3]))
    if chance[3] < patients.mimics:
        mimics.append(_rare(random, side))
    if chance[4] < patients.infarct:
        mimics.append(
            Mimic("infarct", (side * 48, 4 + 18 * j[1], 16 + 12 * j[2]), 20 + 12 * chance[5], -6 - 8 * chance[6])
        )
    if chance[5] < patients.postoperative:
        mimics.extend(_operation(random, side, chance[6] < 0.35))
    if chance[6] < patients.metal:
        mimics.append(Mimic("clip", (10 * j[3], -6 + 6 * j[4], -13.0), 1.6, 3000.0))
    if chance[7] < patients.fracture:
        mimics.append(Mimic("fracture", (side * 60, 10 + 25 * j[5], 15 + 15 * j[6]), 0.5 + 0.25 * abs(j[7]), -50.0))
    # Drawn for every patient: a study with a bleed and its twin must read the same stream.
    broken = random.random()
    for lesion in lesions:
        if lesion.subtype == "epidural" and broken < 0.8:
            mimics.append(Mimic("fracture", lesion.center_mm, 0.7, -50.0))
            break  # one blow, one fracture
    return tuple(mimics)


def _rare(random: np.random.Generator, side: float) -> Mimic:
    kind = RARE[int(random.integers(len(RARE)))]
    j = random.normal(0, 1, 3)
    # One number places, sizes and shades the mimic: so the stream stays in step whatever kind was drawn.
    far = random.random()
    center = {
        "dense_artery": (side, 0.0, 0.0),
        "meningioma": (side * (30 + 30 * far), -50 + 80 * far, 45 - 20 * far),
        "cyst": (side * 45, -18.0, -22.0),
        "colloid": (0.5 * j[0], -13.0, 11.0),
        "falx_plaque": (0.0, -40 + 12 * j[1], 35 + 8 * j[2]),
        "scalp_hematoma": (side * (40 + 20 * far), -60 + 120 * far, 20 + 12 * j[2]),
    }.get(kind, (0.0, 0.0, 0.0))
    size = {"meningioma": 9 + 8 * far, "cyst": 10 + 9 * far, "colloid": 3 + 2.5 * far, "scalp_hematoma": 6 + 7 * far}
    hu = {"dense_artery": 64 + 12 * far, "dense_sinus": 62 + 12 * far, "dense_dura": 57 + 8 * far, "contrast": 95.0}
    hu |= {"meningioma": 45 + 9 * far, "colloid": 60.0, "falx_plaque": 160 + 120 * far, "scalp_hematoma": 55.0}
    x, y, z = (float(c) for c in center)
    return Mimic(kind, (x, y, z), float(size.get(kind, 6.0)), float(hu.get(kind, 0.0)))


def _operation(random: np.random.Generator, side: float, shunted: bool) -> list[Mimic]:
    place = (side * 56, float(random.normal(-10, 22)), float(random.normal(28, 8)))
    traces = [Mimic("craniotomy", place, float(random.uniform(22, 34)), -60.0)]
    if random.random() < 0.5:
        traces.append(Mimic("gas", (side * 30, -62.0, 40.0), float(random.uniform(3, 7)), -900.0))
    if shunted:
        traces.append(Mimic("shunt", (side * 13, 20.0, 18.0), 1.4, 320.0))
    return traces


def paint_brain(mimics: tuple[Mimic, ...], head: Head, points: Points, brain: Brain) -> None:
    """Changes the HU of brain points in place."""
    for mimic in mimics:
        if mimic.kind in _LOCAL:
            # A few points instead of the whole brain.
            near = np.flatnonzero(_near(mimic, points))
            if len(near):
                part = brain.part(near)
                x, y, z = points
                _LOCAL[mimic.kind](mimic, head, (x[near], y[near], z[near]), part)
                brain.hu[near] = part.hu
        elif mimic.kind in _SPREAD:
            _SPREAD[mimic.kind](mimic, head, points, brain)


def _near(mimic: Mimic, points: Points) -> Mask:
    """Marks the points that a local mimic can change, those of its mirror image included."""
    (x, y, z), (a, b, c) = points, mimic.center_mm
    reach = 2 * mimic.size_mm + 14
    return np.asarray((np.abs(np.abs(x) - abs(a)) < reach) & (np.abs(y - b) < reach) & (np.abs(z - c) < reach))


def paint_skull(mimics: tuple[Mimic, ...], points: Points, depth: Floats, hu: Floats) -> None:
    """Changes the HU of scalp and skull in place: fractures, bone flaps, swellings under the skin.

    `depth`: f32, mm below the inner table, negative in skull and scalp.
    """
    for mimic in mimics:
        if mimic.kind in ("fracture", "craniotomy", "scalp_hematoma"):
            away = _away(mimic, points)
            if mimic.kind == "scalp_hematoma":
                hu[(away < 3.2 * mimic.size_mm) & (depth < 0) & (hu > -200) & (hu < 100)] = mimic.hu
                continue
            # Bone of the vault only: the face has no craniotomy.
            bone = (hu > 200) & (depth > -14) & (depth < 0)
            if mimic.kind == "fracture":
                slanted = points[2] - mimic.center_mm[2] + 0.6 * (points[1] - mimic.center_mm[1])
                line = np.abs(slanted + 1.5 * np.sin(points[1] / 4)) < mimic.size_mm
                hu[bone & line & (away < 42)] = mimic.hu
            else:
                hu[bone & (np.abs(away - mimic.size_mm) < 0.9)] = mimic.hu


def _away(mimic: Mimic, points: Points) -> Floats:
    """Computes the distance to a mimic's center in mm."""
    (x, y, z), (a, b, c) = points, mimic.center_mm
    return np.asarray(np.sqrt((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2), dtype=np.float32)


def _spot(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    ragged = _away(mimic, points) - mimic.size_mm
    brain.hu[ragged < 0.6 * head.tile.at(points, 1.6, 41)] = mimic.hu


def _pair(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    """Paints the same spot on both sides."""
    x, y, z = points
    ragged = _away(mimic, (np.abs(x), y, z)) - mimic.size_mm
    brain.hu[ragged < 1.1 * head.tile.at(points, 1.6, 42)] = mimic.hu


def _plaque(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    near = (_away(mimic, points) < 9) & (brain.tissue == Tissue.DURA)
    brain.hu[near & (head.tile.at(points, 2.5, 43) > -0.3)] = mimic.hu


def _artery(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    """Paints a middle cerebral artery full of clot: a dense thread in the Sylvian fissure."""
    x, y, z = points
    along = x * np.float32(mimic.center_mm[0])
    thread = np.hypot(y + 8 + 2 * np.sin(along / 5), z + 13 - 0.28 * along) < 1.5
    brain.hu[thread & (along > 7) & (along < 36)] = mimic.hu


def _of_tissue(tissue: Tissue) -> "_Painter":
    def paint(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
        brain.hu[brain.tissue == tissue] = mimic.hu

    return paint


def _contrast(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    """Paints given contrast: bright sinuses and dura, arteries of the base on both sides, a warmer cortex."""
    x, y, z = points
    brain.hu[brain.tissue == Tissue.VEIN] = mimic.hu + 25
    brain.hu[brain.tissue == Tissue.DURA] = 70.0
    brain.hu[brain.tissue == Tissue.GRAY] += 3.0
    side = np.abs(x)
    thread = np.hypot(y + 8 + 2 * np.sin(side / 5), z + 13 - 0.28 * side) < 1.6
    brain.hu[thread & (side > 6) & (side < 40)] = mimic.hu + 40


def _meningioma(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    inside = _away(mimic, points) < mimic.size_mm + 1.2 * head.tile.at(points, 6.0, 44)
    brain.hu[inside] = mimic.hu + 1.5 * head.tile.at(points, 2.5, 45)[inside]


def _infarct(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    """Darkens a territory, gray and white matter alike."""
    reach = _away(mimic, points) - mimic.size_mm - 4 * head.tile.at(points, 8.0, 46)
    inside = (reach < 0) & (brain.tissue <= Tissue.NUCLEUS)
    # Darkest in the middle, fading to the rim of the territory.
    brain.hu[inside] += np.maximum(mimic.hu, 0.8 * reach[inside]).astype(np.float32)


def _shunt(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    x, y, z = points
    out = (x - mimic.center_mm[0]) * np.sign(mimic.center_mm[0])
    tube = np.hypot(y - mimic.center_mm[1] - 0.5 * out, z - mimic.center_mm[2] - 0.35 * out) < mimic.size_mm
    brain.hu[tube & (out > 0)] = mimic.hu


def _gas(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    """Paints a bubble under the frontal bone: gas rises, and the patient lies on the back."""
    x, y, _ = points
    brain.hu[(brain.gap_mm < mimic.size_mm) & (y < -55) & (x * np.sign(mimic.center_mm[0]) > 4)] = mimic.hu


def _edema(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    """Paints diffuse swelling: dark brain beside lost fluid spaces, so that the rest looks like blood."""
    brain.hu[brain.tissue <= Tissue.NUCLEUS] -= 7.0
    brain.hu[(brain.tissue == Tissue.FLUID) & (points[2] < 10)] = 33.0


def _cyst(mimic: Mimic, head: Head, points: Points, brain: Brain) -> None:
    brain.hu[_away(mimic, points) < mimic.size_mm] = 6.0


_Painter = Callable[[Mimic, Head, Points, Brain], None]
# Mimics within a few centimeters.
_LOCAL: dict[Kind, _Painter] = {
    "pineal": _spot,
    "colloid": _spot,
    "clip": _spot,
    "choroid": _pair,
    "ganglia": _pair,
    "falx_plaque": _plaque,
    "meningioma": _meningioma,
    "infarct": _infarct,
    "cyst": _cyst,
}
# Mimics that reach far, and so see the whole brain.
_SPREAD: dict[Kind, _Painter] = {
    "dense_artery": _artery,
    "dense_sinus": _of_tissue(Tissue.VEIN),
    "dense_dura": _of_tissue(Tissue.DURA),
    "contrast": _contrast,
    "shunt": _shunt,
    "gas": _gas,
    "edema": _edema,
}


def clips_of(mimics: tuple[Mimic, ...]) -> tuple[Mimic, ...]:
    """Selects the mimics of metal, which streak."""
    return tuple(m for m in mimics if m.kind == "clip")
