"""The patients of the simulated sites, from the phantom straight into the trainer's cache; no DICOM in between.

Training patients come as a site delivers them: labels with the readers' noise, half of site R's studies with labels of
the study only. Test patients carry the truth. No patient is in two sets, and no set depends on the seed of a training.
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
# Pixels the scanner delivers; the pipeline averages them to the image size asked for.
_SCANNED_PX: Final = 128
_CACHE_MAX_BYTES: Final = 1 << 38  # all of it: what is made once is shared by every arm and seed


@dataclass(frozen=True)
class SimulatedSite:
    """training and validation share no patient; test shares none with either. The unseen site has test studies only."""

    name: str
    training: tuple[StudyRecord, ...]
    validation: tuple[StudyRecord, ...]
    test: tuple[StudyRecord, ...]


@dataclass(frozen=True)
class _Set:
    """Which phantom set: what `Order` needs, and what the studies are for."""

    profile: str
    purpose: Purpose
    order: Order


def make_sites(settings: SimulationSettings, cache: Path, pool: Executor) -> list[SimulatedSite]:
    """The federated sites and then the unseen one, every study prepared in `cache`. What is there is not made again."""
    cache.mkdir(parents=True, exist_ok=True)
    sites = []
    for profile in (*SITES, UNSEEN):
        mine = records_of(settings, wanted_set(settings, profile, "training"), cache, pool) if profile != UNSEEN else ()
        split = split_patients(mine, VALIDATION_FRACTION)
        test = records_of(settings, wanted_set(settings, profile, "test"), cache, pool)
        sites.append(SimulatedSite(profile, split.training, split.validation, test))
    return sites


def study_cache(settings: SimulationSettings, cache: Path) -> StudyCache:
    return StudyCache(cache, _CACHE_MAX_BYTES, settings.image_size_px, settings.slices_max, _not_prepared)


def _not_prepared(series: SeriesRecord) -> Volume:
    raise FileNotFoundError(f"expected {series.series_key} in the cache, got none; remove the label files beside it")


def wanted_set(settings: SimulationSettings, profile: str, purpose: Purpose) -> _Set:
    training = purpose == "training"
    wishes = Wishes(
        size_px=_SCANNED_PX,
        prevalence=settings.prevalence if training else settings.test_prevalence,
        difficulty=settings.difficulty,
    )
    count = settings.studies if training else settings.test_studies
    return _Set(profile, purpose, Order(profile, count, 2 * settings.patients_seed + (not training), wishes))


def records_of(settings: SimulationSettings, wanted: _Set, cache: Path, pool: Executor) -> tuple[StudyRecord, ...]:
    """The labels are kept beside the cache in one file a set, written when all of its studies are in the cache."""
    found = visits(wanted.order)
    path = cache / f"labels-{_digest(settings, wanted)}.npz"
    if not path.exists():
        jobs = [(settings, wanted, visit, cache) for visit in found]
        made = list(pool.map(_prepare, jobs))
        draft = path.with_suffix(".new.npz")
        np.savez(draft, allow_pickle=False, **{str(visit.index): each for visit, each in zip(found, made, strict=True)})
        draft.rename(path)
    with np.load(path, allow_pickle=False) as labels:
        return tuple(_record(wanted, visit, labels[str(visit.index)]) for visit in found)


def _prepare(job: tuple[SimulationSettings, _Set, Visit, Path]) -> NDArray[np.int8]:
    """Puts one study into the cache; its labels int8[T+1, 6], the last row for the study."""
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
    """`content_hash` is over what decides the pixels, since there are no files to hash."""
    order = wanted.order
    what = [GENERATOR_VERSION, order.profile, order.seed, visit.index, visit.patient, visit.days, asdict(order.wishes)]
    content = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return SeriesRecord(SeriesKey(f"{wanted.profile}-{wanted.purpose}-{visit.index}"), content, ())


def _digest(settings: SimulationSettings, wanted: _Set) -> str:
    what = [GENERATOR_VERSION, settings.image_size_px, settings.slices_max, wanted.purpose, asdict(wanted.order)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
