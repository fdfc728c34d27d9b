"""The patients of the simulated sites, from the phantom into the trainer's cache without DICOM files.

Training patients have labels as a site delivers them: with reader noise, and for half of site R's studies of the study
only. Test patients have the true labels. No patient is in two sets. The sets are the same for all seeds of training.
"""

import hashlib
import json
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from federation.labels import MISSING
from numpy.typing import NDArray

from deploy.simulation.settings import SITES, UNSEEN, VALIDATION_FRACTION, SimulationSettings
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.phantom.arrays import volume_of
from site_client.phantom.dataset import Order, Visit, visits
from site_client.phantom.delivery import noisy
from site_client.phantom.profiles import PROFILES
from site_client.phantom.streams import GENERATOR_VERSION, PhantomStreams
from site_client.phantom.study import Wishes, make_study
from site_client.training.cache import StudyCache
from site_client.training.data import split_patients

Purpose = Literal["training", "test"]
# Side of the scanner's image; the pipeline averages it to the image size of the settings.
_SCANNED_PX: Final = 128
_CACHE_MAX_BYTES: Final = 1 << 38  # nothing is ever evicted: every arm and seed needs every study


@dataclass(frozen=True)
class SimulatedSite:
    """The studies of a site. No patient is in two of the sets, and the unseen site has test studies only."""

    name: str
    training: tuple[StudyRecord, ...]
    validation: tuple[StudyRecord, ...]
    test: tuple[StudyRecord, ...]


@dataclass(frozen=True)
class _Set:
    """A phantom set: the generator's order, and the purpose of its studies."""

    profile: str
    purpose: Purpose
    order: Order


def make_sites(settings: SimulationSettings, cache: Path, pool: Executor) -> list[SimulatedSite]:
    """Make all studies that `cache` does not have yet.

    Args:
        settings: Of the simulation.
        cache: Folder of the prepared studies.
        pool: Where the phantom runs.

    Returns:
        The federated sites, then the unseen one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    sites = []
    for profile in (*SITES, UNSEEN):
        own = records_of(settings, wanted_set(settings, profile, "training"), cache, pool) if profile != UNSEEN else ()
        split = split_patients(own, VALIDATION_FRACTION)
        test = records_of(settings, wanted_set(settings, profile, "test"), cache, pool)
        sites.append(SimulatedSite(profile, split.training, split.validation, test))
    return sites


def study_cache(settings: SimulationSettings, cache: Path) -> StudyCache:
    """Return the cache of studies that `make_sites` has prepared."""
    return StudyCache(cache, _CACHE_MAX_BYTES, settings.image_size_px, settings.slices_max, _not_prepared)


def _not_prepared(series: SeriesRecord) -> Volume:
    raise FileNotFoundError(f"expected {series.series_key} in the cache, got none; remove the label files beside it")


def wanted_set(settings: SimulationSettings, profile: str, purpose: Purpose) -> _Set:
    """Return the phantom set of a profile."""
    training = purpose == "training"
    wishes = Wishes(
        size_px=_SCANNED_PX,
        prevalence=settings.prevalence if training else settings.test_prevalence,
        difficulty=settings.difficulty,
    )
    count = settings.studies if training else settings.test_studies
    # Even seeds for training, odd ones for tests: no two sets have a patient in common.
    return _Set(profile, purpose, Order(profile, count, 2 * settings.patients_seed + (not training), wishes))


def records_of(settings: SimulationSettings, wanted: _Set, cache: Path, pool: Executor) -> tuple[StudyRecord, ...]:
    """Return the studies of a set, made if needed.

    The labels of a set are one file beside the cache, written when all of its studies are in the cache.
    """
    set_visits = visits(wanted.order)
    path = cache / f"labels-{_digest(settings, wanted)}.npz"
    if not path.exists():
        jobs = [(settings, wanted, visit, cache) for visit in set_visits]
        made = list(pool.map(_prepare, jobs))
        draft = path.with_suffix(".new.npz")
        by_index = {str(visit.index): labels for visit, labels in zip(set_visits, made, strict=True)}
        np.savez(draft, allow_pickle=False, **by_index)
        draft.rename(path)
    with np.load(path, allow_pickle=False) as labels:
        return tuple(_record(wanted, visit, labels[str(visit.index)]) for visit in set_visits)


def _prepare(job: tuple[SimulationSettings, _Set, Visit, Path]) -> NDArray[np.int8]:
    """Put one study into the cache. Returns its labels int8[T+1,6], the last row for the study."""
    settings, wanted, visit, cache = job
    order, profile = wanted.order, PROFILES[wanted.profile]
    streams = PhantomStreams.of(order.profile, order.seed, visit.index)
    patient = PhantomStreams.of(order.profile, order.seed, visit.patient)
    study = make_study(streams, patient, profile.patients, profile.scanner, order.wishes, visit.days)
    volume = volume_of(study)
    size = (settings.image_size_px, settings.slices_max)
    StudyCache(cache, _CACHE_MAX_BYTES, *size, lambda _: volume).get(_series(wanted, visit))
    slices = study.truth.slice_labels
    if wanted.purpose == "test":
        return np.concatenate([slices, slices.max(axis=0, keepdims=True)]).astype(np.int8)
    random = streams.generator("labels")
    study_only = random.random() < profile.study_labels_only
    slices = noisy(random, slices, profile.label_noise)
    whole = slices.max(axis=0, keepdims=True)
    return np.concatenate([np.full_like(slices, MISSING) if study_only else slices, whole]).astype(np.int8)


def _record(wanted: _Set, visit: Visit, labels: NDArray[np.int8]) -> StudyRecord:
    name = f"{wanted.profile}-{wanted.purpose}"
    return StudyRecord(
        study_key=StudyKey(f"{name}-{visit.index}"),
        patient_key=PatientKey(f"{name}-{visit.patient}"),
        series=_series(wanted, visit),
        slice_labels=labels[:-1],
        study_labels=labels[-1],
    )


def _series(wanted: _Set, visit: Visit) -> SeriesRecord:
    """The record of a series without files: `content_hash` covers all that decides its pixels."""
    order = wanted.order
    content = [
        GENERATOR_VERSION,
        order.profile,
        order.seed,
        visit.index,
        visit.patient,
        visit.days,
        asdict(order.wishes),
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return SeriesRecord(SeriesKey(f"{wanted.profile}-{wanted.purpose}-{visit.index}"), digest, ())


def _digest(settings: SimulationSettings, wanted: _Set) -> str:
    content = [GENERATOR_VERSION, settings.image_size_px, settings.slices_max, wanted.purpose, asdict(wanted.order)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
