"""A whole set of studies on disk: the folder that a site would export, its label files, and the truth apart from it."""

import json
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from federation.labels import SUBTYPES

from site_client.errors import PhantomRefused
from site_client.phantom.arrays import write_arrays
from site_client.phantom.delivery import DeliveredStudy, map_rows, noisy, slice_ids, slice_rows, study_rows
from site_client.phantom.dicom import StudyIdentity
from site_client.phantom.faults import NO_FAULTS, Faults, Rates, draw_faults, write_study
from site_client.phantom.lesions import percent_of
from site_client.phantom.profiles import PROFILES, Patients, Scanner
from site_client.phantom.skew import skewed
from site_client.phantom.streams import GENERATOR_VERSION, PhantomStreams
from site_client.phantom.study import Study, Wishes, make_study

Format = Literal["dicom", "npz"]

SECOND_VISIT = 0.08  # share of patients with two studies, so that splitting by patient can be tested


@dataclass(frozen=True)
class Order:
    """The arguments of one set. With the generator's version they determine every byte of it.

    Of npz files they determine all but the ZIP headers, which follow Python's release.
    `render_as`: the profile whose scanner takes the images; None: the patients' own. `twins`: add a lesion-free twin of
    each positive study. `alpha`: label skew of the site, see `skew`. `faults`: shares of studies with each fault.
    """

    profile: str
    studies: int
    seed: int
    wishes: Wishes = field(default_factory=Wishes)
    render_as: str | None = None
    twins: bool = False
    alpha: float = math.inf
    faults: Rates = NO_FAULTS
    format: Format = "dicom"

    @property
    def patients(self) -> Patients:
        """The patients, with the percentages that hold for this set."""
        patients = PROFILES[self.profile].patients
        random = PhantomStreams.of(self.profile, self.seed, -1).generator("skew")
        return replace(patients, percent=skewed(random, percent_of(self.wishes.prevalence, patients), self.alpha))

    @property
    def scanner(self) -> Scanner:
        """The scanner that takes the images."""
        return PROFILES[self.render_as or self.profile].scanner

    def check(self) -> None:
        """Checks every argument.

        Raises:
            PhantomRefused: The set cannot be made.
        """
        for name in (self.profile, self.render_as or self.profile):
            if name not in PROFILES:
                raise PhantomRefused(f"expected a profile of {', '.join(PROFILES)}, got {name!r}")
        if not 1 <= self.studies <= 1_000_000:
            raise PhantomRefused(f"expected 1 to 1000000 studies, got {self.studies}")
        if not 64 <= self.wishes.size_px <= 512:
            raise PhantomRefused(f"expected 64 to 512 pixels a side, got {self.wishes.size_px}")
        if self.wishes.thickness_mm is not None and not 1.0 <= self.wishes.thickness_mm <= 10.0:
            raise PhantomRefused(f"expected slices of 1 to 10 mm, got {self.wishes.thickness_mm}")
        if not 0.2 <= self.wishes.difficulty <= 3.0:
            raise PhantomRefused(f"expected a difficulty of 0.2 to 3, got {self.wishes.difficulty}")
        if not self.alpha >= 0.01:
            raise PhantomRefused(f"expected a label skew alpha of 0.01 or more, or inf for none, got {self.alpha}")
        if not all(0 <= rate <= 1 for rate in vars(self.faults).values()):
            raise PhantomRefused("expected fault rates of 0 to 1, got another")
        if self.format == "npz" and self.faults != NO_FAULTS:
            raise PhantomRefused("expected no faults in the npz format, got some; faults are of DICOM files")


@dataclass(frozen=True)
class Visit:
    """One study of the set. `patient`: index of the patient's first study. `days`: since then."""

    index: int
    patient: int
    days: int


@dataclass(frozen=True)
class WrittenStudy:
    """A study on disk: its rows in the label files, and the digest of its files for the manifest."""

    delivered: DeliveredStudy
    sha256: str


def make_set(order: Order, out: Path, workers: int = 1, report: Callable[[int], None] = lambda done: None) -> None:
    """Writes a set. Equal orders give equal bytes, for any number of workers.

    Args:
        order: The arguments of the set.
        out: A folder that is new or empty.
        workers: Processes.
        report: Called with the number of studies that are done.

    Raises:
        PhantomRefused: The order cannot be filled, or the folder is not empty.
    """
    order.check()  # before the first file
    if out.exists() and any(out.iterdir()):
        raise PhantomRefused("the folder to write to is not empty; name a new one, or empty it first")
    for folder in (order.format, "hidden"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    written: list[WrittenStudy] = []
    for done, studies in enumerate(_write_studies(order, out, workers), start=1):
        written.extend(studies)
        report(done)
    delivered = [study.delivered for study in written]
    (out / "labels_slices.csv").write_text(slice_rows(delivered))
    (out / "slice_map.csv").write_text(map_rows(delivered))
    (out / "labels_studies.csv").write_text(study_rows(delivered))
    # Last: a set without a manifest is unfinished.
    (out / "manifest.json").write_text(_manifest(order, written))


def visits(order: Order) -> list[Visit]:
    """Assigns studies to patients: after one study in twelve the same patient comes once more."""
    planned: list[Visit] = []
    for index in range(order.studies):
        random = PhantomStreams.of(order.profile, order.seed, index).generator("visit")
        # Only after a first visit: no patient comes a third time.
        again = random.random() < SECOND_VISIT and planned and planned[-1].patient == planned[-1].index
        patient = planned[-1].patient if again else index
        planned.append(Visit(index, patient, int(random.integers(1, 30)) if again else 0))
    return planned


def _write_studies(order: Order, out: Path, workers: int) -> Iterator[list[WrittenStudy]]:
    jobs = [(order, visit, out) for visit in visits(order)]
    if workers <= 1:
        yield from map(_write_visit, jobs)
        return
    # spawn: a forked child would inherit locks that no thread of it could release.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_write_visit, jobs, chunksize=max(1, min(8, len(jobs) // (4 * workers))))


def _write_visit(job: tuple[Order, Visit, Path]) -> list[WrittenStudy]:
    """Writes one study, and its twin if one is ordered. One argument, because `map` passes one."""
    order, visit, out = job
    streams = PhantomStreams.of(order.profile, order.seed, visit.index)
    patient = PhantomStreams.of(order.profile, order.seed, visit.patient)
    wishes = replace(order.wishes, prevalence="profile")  # the mix is in order.patients
    arguments = (streams, patient, order.patients, order.scanner, wishes, visit.days)
    study = make_study(*arguments)
    written = [_write(order, visit, streams, patient, study, out)]
    if order.twins and study.truth.slice_labels.any():
        twin = make_study(*arguments, lesion_free=True)
        written.append(_write(order, visit, streams, patient, twin, out, part="twin"))
    return written


def _write(
    order: Order,
    visit: Visit,
    streams: PhantomStreams,
    patient: PhantomStreams,
    study: Study,
    out: Path,
    part: str = "",
) -> WrittenStudy:
    profile = PROFILES[order.profile]
    identity = StudyIdentity(f"PH{patient.name(10, 'patient').upper()}", study.age, visit.days, part)
    faults = draw_faults(streams.generator("faults"), order.faults, order.scanner, study.scan.slices)
    if order.format == "npz":
        series = write_arrays(streams, identity, study, out / "npz")
    else:
        series = write_study(streams, identity, order.scanner, study.scan, study.image, out / "dicom", faults)
    random = streams.generator("labels")
    # Drawn before the noise and for every site, so that one option moves no other.
    study_only = random.random() < profile.study_labels_only
    truth = study.truth.slice_labels
    labels = noisy(random, truth, profile.label_noise)
    other = streams.uid("study", "" if part else "twin") if order.twins and (part or truth.any()) else ""
    # After the noise was drawn for all slices: a lost slice must not change the labels of the others.
    kept = np.array([k for k in range(study.scan.slices) if k != faults.missing])
    _hide(out / "hidden" / f"{series.study_uid}.npz", study, kept, series.sop_uids, other, faults)
    ids = slice_ids(order.seed, 2 * visit.index + bool(part), study.scan.slices)
    delivered = DeliveredStudy(
        index=visit.index,
        patient_id=identity.patient_id,
        study_uid=series.study_uid,
        series_uid=series.series_uid,
        sop_uids=series.sop_uids,
        slice_ids=tuple(ids[k] for k in kept),
        slice_labels=None if study_only else labels[kept],
        study_labels=labels[kept].max(axis=0),
    )
    return WrittenStudy(delivered, series.sha256)


def _hide(
    path: Path, study: Study, kept: npt.NDArray[np.int64], sop_uids: tuple[str, ...], twin: str, faults: Faults
) -> None:
    """Writes the truth of the slices that are delivered. A bleed on lost slices only counts nowhere."""
    truth = study.truth
    # By name: a reader of the file needs no order of labels.
    masks = {
        f"mask_{name}": truth.masks[index][kept] for index, name in enumerate(SUBTYPES) if truth.masks[index].any()
    }
    np.savez_compressed(
        path,
        **masks,
        sop_uids=np.array(sop_uids),
        ml=truth.ml[kept],
        area_mm2=truth.area_mm2[kept],
        contrast_hu=truth.contrast_hu[kept],
        slice_labels=truth.slice_labels[kept],
        pixel_mm=np.float64(study.scan.pixel_mm),
        thickness_mm=study.scan.thickness_mm[kept],
        twin=np.array(twin),
        lesions=np.array(json.dumps([asdict(lesion) for lesion in study.lesions])),
        mimics=np.array(json.dumps([mimic.kind for mimic in study.mimics])),
        faults=np.array(json.dumps(faults.names)),
    )


def _manifest(order: Order, written: list[WrittenStudy]) -> str:
    content = {
        "version": GENERATOR_VERSION,
        "notice": "Synthetic patients. A result on them is never clinical evidence.",
        "arguments": asdict(order) | {"alpha": str(order.alpha)},  # JSON has no infinity
        "seed": order.seed,
        "studies": {study.delivered.study_uid: study.sha256 for study in written},
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
