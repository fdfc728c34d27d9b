"""One study from its streams: patient, lesions, anatomy, scan, image, truth."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from site_client.phantom.artifacts import blur_by_motion, harden, miscalibrate, overshoot, scale_kvp, streak
from site_client.phantom.bleeds import grow, shift_points
from site_client.phantom.brain import Brain, brain_at, joined
from site_client.phantom.head import Head, cavity_of, fill_head, shell_at
from site_client.phantom.lattice import Lattice, Scan
from site_client.phantom.lesions import Lesion, Prevalence, draw_lesions, percent_of
from site_client.phantom.mimics import Mimic, clips_of, draw_mimics, paint_brain, paint_skull
from site_client.phantom.noise import Floats
from site_client.phantom.profiles import Patients, Scanner
from site_client.phantom.scanner import add_noise, blur, full_image, lay_out
from site_client.phantom.streams import PhantomStreams
from site_client.phantom.truth import Truth, truth_of


@dataclass(frozen=True)
class Wishes:
    """Options of every study of a set."""

    size_px: int = 256
    thickness_mm: float | None = None
    prevalence: Prevalence = "profile"
    difficulty: float = 1.0


@dataclass(frozen=True)
class Study:
    """One study. `image`: HU f32[T, H, W] as reconstructed, before quantization. `truth`: of its bleeds."""

    scan: Scan
    age: float
    lesions: tuple[Lesion, ...]
    mimics: tuple[Mimic, ...]
    image: Floats = field(repr=False)
    truth: Truth = field(repr=False)


@dataclass(frozen=True)
class Matter:
    """A scan's slices before any physics, f32[T, h, w] of the lattice's box.

    `hu`: of everything. `bone`: HU above water outside the brain, which hardens a beam and which no bleed changes.
    `brain`: share of a pixel's thickness inside the skull. `subtype`: lesion map uint8[S, h, w] of the lattice.
    """

    hu: Floats
    bone: Floats
    brain: Floats
    subtype: npt.NDArray[np.uint8]


def make_study(
    streams: PhantomStreams,
    patient: PhantomStreams,
    patients: Patients,
    scanner: Scanner,
    wishes: Wishes,
    days: int = 0,
    lesion_free: bool = False,
) -> Study:
    """Makes one study.

    Args:
        streams: Of the study; everything comes from them but anatomy, lesion and mimics.
        patient: Streams of the patient's first study.
        patients: Of the site.
        scanner: Takes the images.
        wishes: Options of the set.
        days: Since the patient's first study; they age the bleeds.
        lesion_free: Makes the study's twin, which is the same in everything but the lesion. The twin keeps the fracture
            that came with a bleed, and the width of the ventricles.
    """
    anatomy = patient.generator("anatomy")
    age = draw_age(anatomy, patients)
    drawn = draw_lesions(
        patient.generator("lesion"),
        percent_of(wishes.prevalence, patients),
        patients.chronic_subdural,
        wishes.difficulty,
    )
    head = Head.draw(anatomy, age)
    # Blood in the ventricles widens them, at least enough to hold it. By the drawn lesions, also for a twin: the width
    # of the ventricles must not tell the twin from its study.
    inside_ml = sum(lesion.ml for lesion in drawn if lesion.subtype == "intraventricular")
    head = replace(head, ventricles=max(head.ventricles, float(np.sqrt(inside_ml / 16.0))))
    mimics = draw_mimics(patient.generator("mimics"), patients, age, drawn)
    lesions = () if lesion_free else tuple(_aged(lesion, days) for lesion in drawn)
    # From here on the study's own streams: another scanner must not change the patient.
    physics = streams.generator("physics")
    scan = lay_out(physics, scanner, wishes.size_px, wishes.thickness_mm, head.half_mm)
    lattice = Lattice.of(scan)
    matter = _fill(head, lesions, mimics, lattice)
    image = blur(full_image(scan, scanner, lattice.box, matter.hu), scan, scanner.kernel)
    # Before noise and artifacts: a label must not depend on chance.
    truth = truth_of(scan, lattice, matter.subtype, image, matter.brain)
    accidents = streams.generator("accidents")
    bone = np.zeros(image.shape, dtype=np.float32)
    bone[:, lattice.box[0], lattice.box[1]] = matter.bone
    scale_kvp(image, scanner.kvp)
    harden(accidents, image, bone, scan)
    overshoot(image, scan, scanner.kernel)
    blur_by_motion(accidents, image, scan, patients.motion)
    streak(accidents, image, scan, [scan.seen_at(clip.center_mm) for clip in clips_of(mimics)])
    image = add_noise(physics, image, bone, scan, scanner)
    miscalibrate(physics, image)
    return Study(scan, age, lesions, mimics, image, truth)


def _aged(lesion: Lesion, days: int) -> Lesion:
    """Ages a clot, which loses about 1 HU a day, down to chronic blood."""
    # A bleed that was chronic from the start stays as dark as it is.
    return replace(lesion, hu=max(min(lesion.hu, 18.0), lesion.hu - 1.1 * days))


def draw_age(random: np.random.Generator, patients: Patients) -> float:
    """Draws an age in years: one of the profile's groups, and a normal distribution within it."""
    edges = np.cumsum([share for share, _, _ in patients.ages])
    _, median, spread = patients.ages[int(np.searchsorted(edges, random.random() * edges[-1] * (1 - 1e-12)))]
    return float(np.clip(random.normal(median, spread), 1.0, 98.0))


def _fill(head: Head, lesions: tuple[Lesion, ...], mimics: tuple[Mimic, ...], lattice: Lattice) -> Matter:
    """Asks the anatomy at every point of the lattice, slab by slab, then lets the bleeds grow in the whole brain."""
    hu = np.empty(lattice.x.shape, dtype=np.float32)
    cavity = np.empty(lattice.x.shape, dtype=np.bool_)
    brains: list[Brain] = []
    # Slabs keep the temporary arrays in the processor's cache.
    for slab in lattice.slabs():
        points = (lattice.x[slab], lattice.y[slab], lattice.z[slab])
        shell = shell_at(head, points)
        hu[slab] = fill_head(head, points, shell)
        paint_skull(mimics, points, shell.depth, hu[slab])
        here = cavity[slab] = cavity_of(shell)
        gap = shell.gap[here]
        x, y, z = (axis[here] for axis in points)
        moved = shift_points(lesions, (x, y, z), gap)
        # The brain is painted at the places from which its tissue was pushed.
        brains.append(brain_at(head, moved, gap))
        paint_brain(mimics, head, moved, brains[-1])
    # Before the bleeds grow: blood must not harden the beam, or the image would tell of it far away.
    bone = lattice.averaged(np.where(cavity, np.float32(0), np.maximum(hu, 0)))
    inside = np.flatnonzero(cavity.ravel())
    x, y, z = (axis.ravel()[inside] for axis in (lattice.x, lattice.y, lattice.z))
    plane = int(np.prod(hu.shape[1:]))
    bleeds = grow(lesions, head, (x, y, z), joined(brains), lattice.voxel_ml[inside // plane])
    subtype = np.zeros(hu.size, dtype=np.uint8)
    subtype[inside] = bleeds.subtype
    hu.ravel()[inside] = bleeds.hu
    brain = lattice.averaged(cavity.astype(np.float32))
    return Matter(lattice.averaged(hu), bone, brain, subtype.reshape(hu.shape))
