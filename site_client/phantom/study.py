"""One study from its streams: patient, lesions, anatomy, scan, image, truth."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from site_client.phantom.bleeds import grow, shift_points
from site_client.phantom.brain import Brain, brain_at, joined
from site_client.phantom.head import Head, cavity_of, fill_head, shell_at
from site_client.phantom.lattice import Lattice, Scan
from site_client.phantom.lesions import Lesion, Prevalence, draw_lesions, percent_of
from site_client.phantom.noise import Floats
from site_client.phantom.profiles import Patients, Scanner
from site_client.phantom.scanner import add_noise, blur, full_image, lay_out
from site_client.phantom.streams import Streams
from site_client.phantom.truth import Truth, judge


@dataclass(frozen=True)
class Wishes:
    """What the caller asks of every study."""

    size_px: int = 256
    thickness_mm: float | None = None
    prevalence: Prevalence = "profile"
    difficulty: float = 1.0


@dataclass(frozen=True)
class Study:
    """image: HU f32[T, H, W] as the scanner reconstructs it, before quantization; truth: what is really there."""

    scan: Scan
    age: float
    lesions: tuple[Lesion, ...]
    image: Floats = field(repr=False)
    truth: Truth = field(repr=False)


def make_study(
    streams: Streams,
    patient: Streams,
    patients: Patients,
    scanner: Scanner,
    wishes: Wishes,
    days: int = 0,
    lesion_free: bool = False,
) -> Study:
    """Make one study. Anatomy and lesion come from the patient's streams, all else from the study's own.

    `days` ages the bleeds since the patient's first study; `lesion_free` makes the study's twin: the same in everything
    but the lesion.
    """
    anatomy = patient.generator("anatomy")
    age = draw_age(anatomy, patients)
    head = Head.draw(anatomy, age)
    percent = percent_of(wishes.prevalence, patients)
    lesions = draw_lesions(patient.generator("lesion"), percent, patients.chronic_subdural, wishes.difficulty)
    lesions = () if lesion_free else tuple(_aged(lesion, days) for lesion in lesions)
    physics = streams.generator("physics")
    scan = lay_out(physics, scanner, wishes.size_px, wishes.thickness_mm, head.half_mm)
    lattice = Lattice.of(scan)
    tissue, subtype, brain = _tissue(_swollen(head, lesions), lesions, lattice)
    image = blur(full_image(scan, lattice.box, lattice.averaged(tissue)), scan, scanner.kernel)
    truth = judge(scan, lattice, subtype, image, lattice.averaged(brain))
    return Study(scan, age, lesions, add_noise(physics, image, scan, scanner), truth)


def _aged(lesion: Lesion, days: int) -> Lesion:
    """Clots lose about 1 HU a day, down to chronic blood."""
    return replace(lesion, hu=max(min(lesion.hu, 18.0), lesion.hu - 1.1 * days))


def draw_age(random: np.random.Generator, patients: Patients) -> float:
    """Age in years: one of the profile's groups, normal within it."""
    edges = np.cumsum([share for share, _, _ in patients.ages])
    _, median, spread = patients.ages[int(np.searchsorted(edges, random.random() * edges[-1] * (1 - 1e-12)))]
    return float(np.clip(random.normal(median, spread), 1.0, 98.0))


def _swollen(head: Head, lesions: tuple[Lesion, ...]) -> Head:
    """Blood in the ventricles widens them: at least enough to hold it."""
    inside = sum(lesion.ml for lesion in lesions if lesion.subtype == "intraventricular")
    return replace(head, ventricles=max(head.ventricles, float(np.sqrt(inside / 16.0))))


def _tissue(head: Head, lesions: tuple[Lesion, ...], lattice: Lattice) -> tuple[Floats, npt.NDArray[np.uint8], Floats]:
    """HU, lesion subtype and share of cavity of every point of the lattice."""
    hu = np.empty(lattice.x.shape, dtype=np.float32)
    cavity = np.empty(lattice.x.shape, dtype=np.bool_)
    gaps: list[Floats] = []
    brains: list[Brain] = []
    for slab in lattice.slabs():
        points = (lattice.x[slab], lattice.y[slab], lattice.z[slab])
        shell = shell_at(head, points)
        hu[slab] = fill_head(head, points, shell)
        cavity[slab] = cavity_of(shell)
        here = cavity[slab]
        gaps.append(np.minimum(shell.depth[here], 0.85 * shell.gap[here]))
        x, y, z = (axis[here] for axis in points)
        brains.append(brain_at(head, shift_points(lesions, (x, y, z), gaps[-1]), gaps[-1]))
    inside = np.flatnonzero(cavity.ravel())
    x, y, z = (axis.ravel()[inside] for axis in (lattice.x, lattice.y, lattice.z))
    plane = int(np.prod(hu.shape[1:]))
    bleeds = grow(lesions, head, (x, y, z), joined(brains), lattice.voxel_ml[inside // plane])
    subtype = np.zeros(hu.size, dtype=np.uint8)
    subtype[inside] = bleeds.subtype
    hu.ravel()[inside] = bleeds.hu
    return hu, subtype.reshape(hu.shape), cavity.astype(np.float32)
