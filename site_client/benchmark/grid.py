"""The grid of a benchmark: every arm at every number of training patients, in every fold, with every seed."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import click
from federation.manifest import Model

from site_client.benchmark.arms import BEGUN, Bench, run_arm
from site_client.benchmark.finished import FailedArm, FinishedArm, load_arm
from site_client.benchmark.results import ArmResult, Results, pool_folds
from site_client.benchmark.settings import BenchmarkSettings
from site_client.benchmark.slice_head import slice_head_of
from site_client.benchmark.trivial import HISTOGRAM, POSITION, trivial_rows
from site_client.errors import SiteError, TrainingFailed
from site_client.inference.intervals import estimate, weighted_log_loss
from site_client.inference.measures import Measure
from site_client.inference.patients import at_most, by_content, fold_of, limit_patients, read_folder, split_stratified
from site_client.inference.phantom_sets import read_series
from site_client.inference.scores import refuse_shared_patients
from site_client.ingest.records import PatientKey, StudyKey, StudyRecord
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.compute import Compute
from site_client.training.data import Loader, Split
from site_client.training.loop import Stopped
from site_client.training.prepare import prepare_all
from site_client.training.ranks import Ranks

_GIB: Final = 1 << 30
_STOPPED: Final = "stopped before its first evaluation"
Initial = tuple[tuple[str, Model], ...]


@dataclass(frozen=True)
class BenchmarkData:
    """Prepared studies: all of them, the number of slices of each, its patients' sites, and the loader."""

    studies: tuple[StudyRecord, ...]
    slices: Mapping[StudyKey, int]
    sites: Mapping[PatientKey, str]
    loader: Loader


def read_data(
    settings: BenchmarkSettings,
    folders: Sequence[Path],
    state: Path,
    compute: Compute,
    workers: int,
    cache_gib: float,
) -> BenchmarkData:
    """Index the folders and prepare their studies, once for all arms, seeds and folds.

    Args:
        settings: Of the benchmark.
        folders: Exports or datasets; the name of a folder is the name of its site.
        state: Folder for indexes, and for the cache of prepared studies.
        compute: Where the arms are trained.
        workers: Processes that prepare studies.
        cache_gib: The most that the cache holds.
    """
    cache = StudyCache(state / "cache", int(cache_gib * _GIB), settings.image_size_px, settings.slices_max, read_series)
    loader = Loader(cache, Augmentation(), compute.device, settings.slices_per_study)

    def prepare() -> tuple[tuple[StudyRecord, ...], dict[StudyKey, int], dict[PatientKey, str]]:
        site_of, read = {}, []
        for folder in folders:
            for study in read_folder(folder, state):
                site_of[study.series.content_hash] = folder.name
                read.append(study)
        studies: Sequence[StudyRecord] = by_content(read)
        if settings.slices:
            studies = at_most(studies, settings.slices, settings.split_seed)
        click.echo(f"preparing {len(studies)} studies")
        usable, _ = prepare_all(studies, loader, click.echo, workers)
        slices = {study.study_key: loader.prepare(study) for study in usable}
        return usable, slices, {study.patient_key: site_of[study.series.content_hash] for study in usable}

    return BenchmarkData(*compute.ranks.first(prepare), loader)


class Grid:
    """Every arm at every number of training patients, in every fold, with every seed."""

    def __init__(
        self,
        settings: BenchmarkSettings,
        seeds: Sequence[int],
        sizes: Sequence[int],
        data: BenchmarkData,
        compute: Compute,
        state: Path,
        log: Path,
        initial: Initial,
    ) -> None:
        self._seeds, self._data, self._ranks, self._log = seeds, data, compute.ranks, log
        self._stopped = False
        folds = range(settings.folds or 1)
        self._benches: dict[int, list[list[Bench]]] = {}  # by size: folds of seeds
        for size in sizes:
            of_size = [replace(settings, patients=size, fold=fold) for fold in folds]
            splits = [_split(own, data.studies) for own in of_size]
            trained = max(len({study.patient_key for study in split.training}) for split in splits)
            self._benches[trained] = [
                [self._bench(replace(own, seed=seed), split, compute, state, log, initial) for seed in seeds]
                for own, split in zip(of_size, splits, strict=True)
            ]

    def _bench(
        self,
        settings: BenchmarkSettings,
        split: Split,
        compute: Compute,
        state: Path,
        log: Path,
        initial: Initial,
    ) -> Bench:
        refuse_shared_patients(split.training, split.validation)
        digest = settings.digest(_data_hash(split))
        slices = sum(self._data.slices[study.study_key] for study in split.training)
        return Bench(settings, digest, split, self._data.loader, compute, state, slices, log, initial)

    @property
    def benches(self) -> Sequence[Bench]:
        """Those of the first seed at the largest number of training patients, by fold."""
        return [seeds[0] for seeds in self._benches[max(self._benches)]]

    def run(self, arms: Sequence[str], stopping: Callable[[], bool]) -> Results:
        """Train what is not finished yet. After a stop the results are those there are.

        Args:
            arms: Names of architectures.
            stopping: Whether to stop.
        """
        sizes: dict[int, list[ArmResult]] = {}
        failed: dict[str, FailedArm] = {}
        for size, folds in sorted(self._benches.items()):
            by_fold = [trivial_rows(seeds[0].split, self._data.loader) for seeds in folds]
            sizes[size] = [
                ArmResult(name, (self._pooled(folds, [rows[index] for rows in by_fold]),))
                for index, name in enumerate((POSITION, HISTOGRAM))
            ]
            if self._ranks.leads:
                self._record(sizes[size], size)
            for arm in arms:
                if self._stopped:
                    break
                result = self._arm(folds, arm, stopping) if arm not in failed else failed[arm]
                if isinstance(result, FailedArm):
                    failed[arm] = result
                else:
                    sizes[size] += [result, *self._slice_head(folds, arm)]
            if self._stopped:
                break
        return Results(sizes, list(failed.values()), self._sites(), self._stopped)

    def _record(self, rows: Sequence[ArmResult], size: int) -> None:
        """Log the trivial rows before the first arm: beside them the curve of an unfinished training says something."""
        with self._log.open("a") as log:
            for row in rows:
                measures = {
                    "auc": estimate(row.slices, Measure.AUC),
                    "auc_height": estimate(row.slices, Measure.AUC_HEIGHT),
                    "auc_study": estimate(row.studies, Measure.AUC),
                    "log_loss": weighted_log_loss(row.rows),
                }
                facts = {"event": "trivial row fitted", "arm": row.name, "patients": size}
                log.write(json.dumps(facts | {name: measure.value for name, measure in measures.items()}) + "\n")

    def _arm(self, folds: Sequence[Sequence[Bench]], arm: str, stopping: Callable[[], bool]) -> ArmResult | FailedArm:
        """One arm with every seed in every fold; the first failure ends it, and a stop ends it at what there is."""
        runs: list[FinishedArm] = []
        for benches in zip(*folds, strict=True):  # those of one seed
            finished = []
            for bench in benches:
                result = self._run_arm(bench, arm, stopping)
                if isinstance(result, FailedArm):
                    return ArmResult(arm, tuple(runs)) if self._stopped and runs else result
                finished.append(result)
                if self._stopped:
                    break
            if len(finished) == len(benches):
                runs.append(self._pooled(folds, finished))
            if self._stopped:
                break
        return ArmResult(arm, tuple(runs)) if runs else FailedArm(arm, _STOPPED)

    def _slice_head(self, folds: Sequence[Sequence[Bench]], arm: str) -> list[ArmResult]:
        """The row of a trained arm's slice head; none for an arm without a recurrence, or unfinished."""
        if self._stopped:
            return []
        runs: list[FinishedArm] = []
        for benches in zip(*folds, strict=True):
            heads = [head for bench in benches if (head := slice_head_of(bench, arm)) is not None]
            if heads:
                runs.append(self._pooled(folds, heads))
        return [ArmResult(runs[0].name, tuple(runs))] if runs else []

    def _pooled(self, folds: Sequence[Sequence[Bench]], finished: Sequence[FinishedArm]) -> FinishedArm:
        return pool_folds(finished, [len(_patients(seeds[0].split.validation)) for seeds in folds])

    def _sites(self) -> list[str]:
        keys = [key for bench in self.benches for key in _patients(bench.split.validation)]
        return [self._data.sites[key] for key in keys]

    def _run_arm(self, bench: Bench, arm: str, stopping: Callable[[], bool]) -> FinishedArm | FailedArm:
        try:
            return run_arm(bench, arm, say_of(self._ranks), stopping)
        except Stopped:
            self._stopped = True
            begun = load_arm(bench.path(arm, BEGUN)) if self._ranks.leads else None
            return begun or FailedArm(arm, _STOPPED)
        except (SiteError, RuntimeError, MemoryError, ValueError) as error:
            if self._ranks.world > 1 and not isinstance(error, TrainingFailed):
                raise  # the other processes do not know of it, so all have to end
            # torch reports a lack of memory and an impossible shape as RuntimeError. The other arms go on.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            say_of(self._ranks, err=True)(f"{arm}: failed: {reason}")
            return FailedArm(arm, reason)


def _split(settings: BenchmarkSettings, studies: Sequence[StudyRecord]) -> Split:
    seed = settings.split_seed
    if settings.folds:
        split = fold_of(studies, settings.folds, settings.fold, seed)
    else:
        split = split_stratified(studies, settings.validation_fraction, seed)
    if settings.patients:
        split = Split(limit_patients(split.training, settings.patients, seed), split.validation)
    return split


def _patients(studies: Sequence[StudyRecord]) -> list[PatientKey]:
    """The patients in the order of their numbers in scores."""
    return list(dict.fromkeys(study.patient_key for study in studies))


def _data_hash(split: Split) -> str:
    def rows(studies: Sequence[StudyRecord]) -> list[list[str]]:
        return [[s.study_key, s.slice_labels.tobytes().hex(), s.study_labels.tobytes().hex()] for s in studies]

    text = json.dumps([rows(split.training), rows(split.validation)])
    return hashlib.sha256(text.encode()).hexdigest()


def say_of(ranks: Ranks, *, err: bool = False) -> Callable[[str], None]:
    """The output of the leading process; the others print nothing."""
    return partial(click.echo, err=err) if ranks.leads else lambda _: None
