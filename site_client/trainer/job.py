"""One round's job at a site: judge the base model, train from it, hand over the update. The heart of the worker."""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch
from federation.encoding import clip
from federation.manifest import Model, load_model
from federation.plan import TrainingPlan
from federation.v1.plan_pb2 import SignedPlan

from site_client.config import SiteSettings
from site_client.errors import DatasetGone, SeriesUnreadable, TrainingFailed, UnknownArchitecture
from site_client.files import replace_file
from site_client.ingest.catalog.catalog import open_catalog
from site_client.ingest.records import Dataset, StudyRecord
from site_client.ingest.series.volume import read_volume
from site_client.model.network import Network
from site_client.model.registry import build, load_weights, manifest_of, weights_of
from site_client.records import Histograms
from site_client.spool import Job, TrainerSide, Update, histograms_of
from site_client.trainer.worker_messages import Tell, WorkerMessage, job_folder
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import Compute, choose
from site_client.training.data import Loader, Split, split_patients
from site_client.training.loop import Stopped, TrainingPosition, TrainingProgress, train
from site_client.training.ranks import Ranks
from site_client.training.score_histograms import slice_histograms
from site_client.training.streams import RandomStreams

_log = structlog.get_logger()


def scan(settings: SiteSettings) -> int:
    """Brings the catalog up to date; the number of studies that could be trained on."""
    with closing(open_catalog(settings)) as catalog:
        report = catalog.scan(settings.folders.export, settings.folders.labels)
        _log.info("export scanned", **{key: value for key, value in report.as_json().items() if isinstance(value, int)})
        return len(catalog.dataset().studies)


def carry_out(
    settings: SiteSettings,
    job: Job,
    spool: TrainerSide,
    tell: Tell,
    stopping: Callable[[], bool],
    gather: Callable[[], AbstractContextManager[None]],
) -> Update:
    """Does the job and delivers its update; `gather` has the other processes that `training.processes` asks for.

    What this hospital cannot do is declined with its reason, which is an outcome. Raises Stopped after a checkpoint.
    """
    plan, base = _read(job)
    declined = Update(job.run_id, job.round, job.base_model_digest, "declined", None, 0, 0.0, 0, False)
    try:
        net = _network(plan, base)
        dataset = _dataset(settings, job)
    except (UnknownArchitecture, DatasetGone, TrainingFailed) as error:
        _log.error("job declined", error=str(error))
        return spool.deliver(replace(declined, reason="TRAINING_FAILED"))
    if not dataset.studies:
        return spool.deliver(replace(declined, reason="NO_LABELS"))
    work = _prepare(settings, job, plan, dataset, tell, stopping)
    needed = max(settings.policy.studies_min, plan.training.studies_min)
    if len(work.split.training) < needed:
        _log.info("job declined", expected_studies=needed, got=len(work.split.training))
        return spool.deliver(replace(declined, reason="TOO_FEW_STUDIES"))
    work.compute.place(net)
    histograms = work.judge(net, tell, stopping)
    if job.evaluation_only:
        judged = replace(declined, outcome="evaluated", studies=len(work.split.training), histograms=histograms)
        return spool.deliver(judged)
    return _train(job, plan, base, net, work, histograms, spool, tell, stopping, gather)


def help_out(settings: SiteSettings, job: Job, ranks: Ranks, stopping: Callable[[], bool]) -> None:
    """What a process beside the first does: its share of the job's training, of studies that the first has prepared."""
    plan, base = _read(job)
    net = _network(plan, base)
    compute, loader = _tools(settings, plan, ranks)
    split, identity = ranks.first(_made_elsewhere)
    work = _Work(split, loader, compute, job_folder(settings, job), identity)
    work.train(compute.place(net), plan, lambda at: None, stopping)


def _made_elsewhere() -> tuple[Split, CheckpointIdentity]:
    raise AssertionError("only the first process makes it")


@dataclass(frozen=True)
class _Work:
    """What judging and training share."""

    split: Split
    loader: Loader
    compute: Compute
    folder: Path
    identity: CheckpointIdentity

    def checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.folder, replace(self.identity, stage=stage))

    @property
    def count(self) -> int:
        return len(self.split.training) + len(self.split.validation)

    def judge(self, net: Network, tell: Tell, stopping: Callable[[], bool]) -> Histograms:
        def report(done: int, of: int) -> None:
            tell(WorkerMessage("SITE_PREPARING", 0, done, of, None, self.count))

        stage = self.checkpoints("evaluate")
        counts = slice_histograms(net, self.split.validation, self.loader, self.compute, stage, report, stopping)
        return histograms_of(counts)

    def train(
        self, net: Network, plan: TrainingPlan, report: Callable[[TrainingProgress], None], stopping: Callable[[], bool]
    ) -> TrainingPosition:
        streams = RandomStreams(plan.run_id, self.identity.round, self.identity.config_hash)
        loader, checkpoints = self.loader.for_training(net, self.split.training), self.checkpoints("train")
        studies = self.split.training
        return train(net, plan.training, studies, loader, streams, self.compute, checkpoints, report, stopping)


def _train(
    job: Job,
    plan: TrainingPlan,
    base: Model,
    net: Network,
    work: _Work,
    histograms: Histograms,
    spool: TrainerSide,
    tell: Tell,
    stopping: Callable[[], bool],
    gather: Callable[[], AbstractContextManager[None]],
) -> Update:
    def report(at: TrainingProgress) -> None:
        tell(WorkerMessage("SITE_TRAINING", 100 * at.step // at.steps, at.step, at.steps, at.loss, work.count))

    with gather():
        work.compute.ranks.first(lambda: (work.split, work.identity))
        place = work.train(net, plan, report, stopping)
    trained = base.manifest.flatten(weights_of(net))
    delta, clipped = clip(trained - base.weights, plan.encoding.clip_norm)
    update = Update(
        run_id=job.run_id,
        round=job.round,
        base_model_digest=job.base_model_digest,
        outcome="trained",
        reason=None,
        studies=len(work.split.training),
        loss_sum=place.loss_sum,
        example_count=place.position,
        clipped=clipped,
        histograms=histograms,
    )
    return spool.deliver(update, delta)


def _read(job: Job) -> tuple[TrainingPlan, Model]:
    """The agent has verified the plan's signature; that these are the plan and the model it meant is checked here."""
    plan = TrainingPlan.from_bytes(SignedPlan.FromString(job.plan_file.read_bytes()).plan)
    base = load_model(job.base_file)
    if plan.digest != job.plan_digest or base.digest != job.base_model_digest:
        raise TrainingFailed("expected the plan and base model that job.json names, got others; withdraw the job")
    return plan, base


def _network(plan: TrainingPlan, base: Model) -> Network:
    net = build(plan.architecture, seed=0)
    if manifest_of(net) != plan.manifest or base.manifest != plan.manifest:
        raise TrainingFailed(
            f"the plan's tensors are not those of {plan.architecture!r} in this version; update hemofed"
        )
    load_weights(net, base.manifest.unflatten(base.weights))
    return net


def _dataset(settings: SiteSettings, job: Job) -> Dataset:
    """The dataset this job began with, after a crash too; a fresh scan's when it begins."""
    pin = job_folder(settings, job) / "dataset"
    with closing(open_catalog(settings)) as catalog:
        if pin.exists():
            return catalog.dataset(pin.read_text())
        catalog.scan(settings.folders.export, settings.folders.labels)
        dataset = catalog.dataset()
    pin.parent.mkdir(parents=True, exist_ok=True)
    replace_file(pin, dataset.hash.encode())
    return dataset


def _prepare(
    settings: SiteSettings, job: Job, plan: TrainingPlan, dataset: Dataset, tell: Tell, stopping: Callable[[], bool]
) -> _Work:
    """Every study once through the image pipeline into the cache; what cannot be read is left out and counted."""
    compute, loader = _tools(settings, plan, Ranks(0, settings.training.processes))
    split = split_patients(dataset.studies, settings.training.validation_fraction)
    readable = Split(
        _readable(split.training, loader, tell, stopping), _readable(split.validation, loader, tell, stopping)
    )
    identity = CheckpointIdentity(
        stage="",
        run_id=job.run_id.hex(),
        round=job.round,
        base_model_digest=job.base_model_digest.hex(),
        dataset_hash=dataset.hash,
        config_hash=_config_hash(settings, plan, compute, readable),
    )
    return _Work(readable, loader, compute, job_folder(settings, job), identity)


def _tools(settings: SiteSettings, plan: TrainingPlan, ranks: Ranks) -> tuple[Compute, Loader]:
    compute = choose(settings.training.device, settings.training.threads, plan.inputs.image_size_px, ranks)
    cache = StudyCache(
        settings.folders.cache,
        settings.training.cache_max_bytes,
        plan.inputs.image_size_px,
        plan.inputs.slices_max,
        read_volume,
    )
    return compute, Loader(cache, Augmentation(), compute.device, plan.training.slices_per_study)


def _readable(
    studies: tuple[StudyRecord, ...], loader: Loader, tell: Tell, stopping: Callable[[], bool]
) -> tuple[StudyRecord, ...]:
    found = []
    for number, study in enumerate(studies, 1):
        if stopping():  # what is prepared stays in the cache
            raise Stopped
        try:
            loader.prepare(study)
            found.append(study)
        except SeriesUnreadable as error:
            _log.warning("study left out", study=study.study_key, code=error.code)
        tell(WorkerMessage("SITE_PREPARING", 0, number, len(studies), None, len(found)))
    return tuple(found)


def _config_hash(settings: SiteSettings, plan: TrainingPlan, compute: Compute, split: Split) -> str:
    """Over whatever else decides the numbers, so that a checkpoint of other circumstances is refused."""
    parts = {
        "site": settings.name,
        "plan": plan.digest.hex(),
        "compute": compute.name,
        "training": [study.study_key for study in split.training],
        "validation": [study.study_key for study in split.validation],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def one_thread_at_a_time() -> None:
    """Inter-operator threads cannot be set twice in a process; the worker sets them once, first thing."""
    torch.set_num_interop_threads(1)
