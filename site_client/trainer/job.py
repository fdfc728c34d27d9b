"""One round's job at a site: evaluate the base model, train it on, hand over the update. The heart of the worker."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import structlog
import torch
from federation.encoding import clip
from federation.errors import FederationError
from federation.limits import MESSAGE_BYTES_MAX
from federation.manifest import Model, load_model
from federation.plan import TrainingPlan
from federation.privacy import Privacy
from federation.sealed_model import load_sealed_model
from federation.sealing import SealedKind, SealedName, sealed_size
from federation.v1.plan_pb2 import SignedPlan
from federation.vocabulary import Metric, Outcome, SiteState, StateReason
from federation.wire import parse

from site_client.config import SiteSettings
from site_client.errors import DatasetGone, SeriesUnreadable, TrainingFailed, UnknownArchitecture
from site_client.files import replace_file
from site_client.ingest.catalog.catalog import Catalog, ScanReport, open_catalog
from site_client.ingest.files.readers import shared_readers
from site_client.ingest.reasons import Reason
from site_client.ingest.records import Dataset, StudyRecord
from site_client.ingest.series.volume import read_volume
from site_client.model.network import Network
from site_client.model.parts import is_trainable, parts_of
from site_client.model.registry import build, load_weights, manifest_of, weights_of
from site_client.records import NO_HISTOGRAMS, PredecessorComparison
from site_client.spool import Job, TrainerSide, Update, UpdateSeal, histograms_of
from site_client.trainer.job_folders import job_folder
from site_client.trainer.worker_messages import SendMessage, WorkerMessage
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache, forget_others
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints, CheckpointSeal
from site_client.training.compute import Compute, choose
from site_client.training.data import Loader, Split, split_patients
from site_client.training.early_stop import with_early_stop
from site_client.training.loop import Stopped, TrainingProgress, train
from site_client.training.patient_scores import by_patient, compare_with_last
from site_client.training.private import PrivateStep, patient_histograms, patients_of, private_gradient
from site_client.training.ranks import ONE, Ranks
from site_client.training.score_histograms import ValidationScores, slice_histograms
from site_client.training.state import TrainingPosition
from site_client.training.streams import RandomStreams
from site_client.untrusted_files import open_regular, read_regular

_log = structlog.get_logger()
_DATASET_FILE: Final = "dataset"  # in the job's folder: the hash of the dataset that the job began with
_POLL_S: Final = 0.25

RankProcesses = Callable[[], AbstractContextManager[None]]


def scan(settings: SiteSettings, stopping: Callable[[], bool]) -> int:
    """Brings the catalog up to date; a second time when files are new, which count once two scans have seen them alike.

    Args:
        settings: Of this site.
        stopping: Asked while the second scan is waited for; True leaves it to the next job.

    Returns:
        The number of studies that a job could train on.

    Raises:
        IngestError: The export or the catalog cannot be read.
    """
    with closing(open_catalog(settings)) as catalog:
        report = _scan(catalog, settings)
        due_s = time.monotonic() + settings.ingest.settle_s
        while report.series_waiting and not stopping() and time.monotonic() < due_s:
            time.sleep(_POLL_S)
        if report.series_waiting and not stopping():
            report = _scan(catalog, settings)
        _log.info("labels matched", held=report.labels.held is not None, questions=len(report.questions))
        studies = catalog.dataset().studies
    # No job is in hand while the worker scans, so no job needs another study's images.
    forget_others(settings.folders.cache, [study.series for study in studies])
    return len(studies)


def _scan(catalog: Catalog, settings: SiteSettings) -> ScanReport:
    folders = settings.folders
    report = catalog.scan(folders.export, folders.labels, folders.opt_outs)
    _log.info("export scanned", **{key: value for key, value in report.as_json().items() if isinstance(value, int)})
    return report


@dataclass(frozen=True)
class PreparedStudies:
    """The studies that could be read, split by patient, and the identity of every checkpoint made from them."""

    split: Split
    identity: CheckpointIdentity

    @property
    def count(self) -> int:
        """Studies for training and validation together."""
        return len(self.split.training) + len(self.split.validation)


class JobInProgress:
    """A job in the hands of one process: the verified plan, the base model, and the tools that training needs.

    The worker calls `carry_out`. Each of its rank processes makes the same object and calls `train_share`.
    """

    def __init__(
        self,
        settings: SiteSettings,
        job: Job,
        stopping: Callable[[], bool],
        send: SendMessage = lambda message: None,
        ranks: Ranks = ONE,
        content_key: bytes | None = None,
    ) -> None:
        """Reads plan and base model from the job's folder.

        Args:
            settings: Of this site.
            job: From the spool. The agent has verified the plan's signature.
            stopping: Asked at every micro-batch; True ends the work after a checkpoint.
            send: Takes the messages about progress.
            ranks: This process among those that share the training.
            content_key: Of the job's plan and base model, where they are sealed.

        Raises:
            TrainingFailed: Plan or base model cannot be read, or is not the one that job.json names.
        """
        self.settings, self.job, self.ranks = settings, job, ranks
        self._stopping, self._send, self._content_key = stopping, send, content_key
        try:
            signed = parse(SignedPlan, read_regular(job.plan_file, MESSAGE_BYTES_MAX))
            self.plan = TrainingPlan.from_bytes(signed.plan)
            self.base: Model = self._read_base()
        except (OSError, ValueError, FederationError) as error:
            raise TrainingFailed(f"plan or base model of the job cannot be read ({error}); withdraw the job") from error
        # The spool is writable by the agent: the digests bind this job to the plan and the model that were announced.
        if self.plan.digest != job.plan_digest or self.base.digest != job.base_model_digest:
            raise TrainingFailed("expected the plan and base model that job.json names, got others; withdraw the job")

    def _read_base(self) -> Model:
        manifest, job = self.plan.manifest, self.job
        if self.plan.release is None:
            with open_regular(job.base_file, manifest.file_bytes_max) as file:
                # The file that was checked, by its descriptor: the name may lead to another one by now.
                return load_model(Path(f"/proc/self/fd/{file.fileno()}"))
        if self._content_key is None:
            raise ValueError("the plan's models are sealed, and the agent has lent no content key")
        with open_regular(job.sealed_file, sealed_size(manifest.file_bytes_max)) as file:
            return load_sealed_model(self._content_key, job.sealed_name, manifest, file)

    @property
    def _update_seal(self) -> UpdateSeal | None:
        if self._content_key is None:
            return None
        return UpdateSeal(self._content_key, self.job.plan_digest, self.job.base_model_digest)

    def carry_out(self, spool: TrainerSide, rank_processes: RankProcesses) -> Update:
        """Does the job and delivers its update.

        A job that this hospital cannot do is declined with its reason. That is an outcome and no error.

        Args:
            spool: Receives the update.
            rank_processes: Starts the other processes of the training; they live inside its block.

        Returns:
            The update as it lies in the spool.

        Raises:
            Stopped: The worker has to end; a checkpoint is written.
        """
        declined = Update(
            self.job.run_id, self.job.round, self.job.base_model_digest, Outcome.DECLINED, None, 0, 0.0, 0, False
        )
        try:
            net = self._network()
            dataset = self._dataset()
        except (UnknownArchitecture, DatasetGone, TrainingFailed) as error:
            _log.error("job declined", error=str(error))
            return spool.deliver(replace(declined, reason=StateReason.TRAINING_FAILED))
        if self.plan.privacy is not None:
            return self._carry_out_private(spool, net, self._prepare(dataset), self.plan.privacy)
        if not dataset.studies:
            return spool.deliver(replace(declined, reason=StateReason.NO_LABELS))
        prepared = self._prepare(dataset)
        # The stricter of both: policy can tighten a plan, never loosen it.
        needed = max(self.settings.policy.studies_min, self.plan.training.studies_min)
        if len(prepared.split.training) < needed:
            _log.info("job declined", expected_studies=needed, got=len(prepared.split.training))
            return spool.deliver(replace(declined, reason=StateReason.TOO_FEW_STUDIES))
        self._compute.place(net)
        # Before training, which changes the weights in place: the histograms are of the base model.
        evaluation = self._evaluate(net, prepared)
        histograms, comparison = histograms_of(evaluation.histograms), self._compare(prepared, evaluation)
        if self.job.evaluation_only:
            studies = len(prepared.split.training)
            evaluated = replace(declined, outcome=Outcome.EVALUATED, studies=studies)
            return spool.deliver(replace(evaluated, histograms=histograms, comparison=comparison))
        with rank_processes():
            self.ranks.first(lambda: prepared)
            position = self._train(net, prepared)
        trained = self.base.manifest.flatten(weights_of(net))
        # Clipped here as well as by the agent: the spool already holds a bounded update.
        delta, clipped = clip(self.plan.moving.take(trained - self.base.weights), self.plan.encoding.clip_norm)
        update = Update(
            run_id=self.job.run_id,
            round=self.job.round,
            base_model_digest=self.job.base_model_digest,
            outcome=Outcome.TRAINED,
            reason=None,
            studies=len(prepared.split.training),
            loss_sum=position.loss_sum,
            example_count=position.position,
            clipped=clipped,
            histograms=histograms,
            comparison=comparison,
        )
        return spool.deliver(update, delta, self._update_seal)

    def _carry_out_private(
        self, spool: TrainerSide, net: Network, prepared: PreparedStudies, privacy: Privacy
    ) -> Update:
        """Does the job of a private plan. It declines for no reason that lies in the data.

        One process does it: a patient's gradient does not spread over several.
        """
        self._compute.place(net)
        histograms = NO_HISTOGRAMS
        if Metric.HISTOGRAMS in self.plan.metrics and privacy.evaluates(self.job.round, self.plan.rounds):
            validation = patients_of(prepared.split.validation)
            histograms = histograms_of(patient_histograms(net, validation, self._loader, self._compute, self._stopping))
        update = Update(
            run_id=self.job.run_id,
            round=self.job.round,
            base_model_digest=self.job.base_model_digest,
            outcome=Outcome.EVALUATED if self.job.evaluation_only else Outcome.TRAINED,
            reason=None,
            studies=len(prepared.split.training),  # for the agent alone, which sends a constant in its place
            loss_sum=0.0,
            example_count=0,
            clipped=False,
            histograms=histograms,
        )
        if self.job.evaluation_only:
            return spool.deliver(update)

        def report(done: int, total: int) -> None:
            self._send(WorkerMessage(SiteState.TRAINING, 100 * done // total, done, total, None, prepared.count))

        step = PrivateStep(net, self.plan, self._loader.for_private_training(net), self._compute)
        checkpoints = self._checkpoints(prepared, "private")
        patients = patients_of(prepared.split.training)
        gradient = private_gradient(step, patients, checkpoints, report, self._stopping)
        return spool.deliver(update, gradient, self._update_seal)

    def train_share(self) -> None:
        """Computes this rank's share of the training, on studies that the worker has prepared.

        Raises:
            RanksApart: The worker failed, or is at another step.
            Stopped: The rank process has to end.
        """

        def leading_rank_only() -> PreparedStudies:
            raise AssertionError("Ranks.first calls this in rank 0 only, and rank 0 calls carry_out")

        net = self._network()
        compute = self._compute  # before the exchange: it selects this rank's GPU
        prepared = self.ranks.first(leading_rank_only)
        self._train(compute.place(net), prepared)

    # Made at their first use: a job that is declined needs neither a GPU nor a cache.

    @cached_property
    def _compute(self) -> Compute:
        training = self.settings.training
        return choose(training.device, training.threads, self.plan.inputs.image_size_px, self.ranks)

    @cached_property
    def _loader(self) -> Loader:
        inputs, folder = self.plan.inputs, self.settings.folders.cache
        cache_max_bytes = self.settings.training.cache_max_bytes
        cache = StudyCache(folder, cache_max_bytes, inputs.image_size_px, inputs.slices_max, read_volume)
        return Loader(cache, Augmentation(), self._compute.device, self.plan.training.slices_per_study)

    def _network(self) -> Network:
        """Builds the plan's network with the weights of the base model."""
        net = build(self.plan.architecture, seed=0)  # any seed: the base model replaces all weights
        if manifest_of(net) != self.plan.manifest or self.base.manifest != self.plan.manifest:
            raise TrainingFailed(
                f"the plan's tensors are not those of {self.plan.architecture!r} in this version; update hemofed"
            )
        trainable = self.plan.training.trainable
        moving = [place for place, part in enumerate(parts_of(net).values()) if is_trainable(part, trainable)]
        if self.plan.moving_tensors not in ((), tuple(moving)):
            raise TrainingFailed(
                f"the plan's moving tensors are not the {trainable.value} of {self.plan.architecture!r} here; update"
            )
        load_weights(net, self.base.manifest.unflatten(self.base.weights))
        return net

    def _dataset(self) -> Dataset:
        """Scans the export when the job begins; after a crash, recalls the dataset that the job began with.

        A resumed training must see the same studies: its checkpoint counts positions in their order.
        """
        pin = job_folder(self.settings, self.job) / _DATASET_FILE
        with closing(open_catalog(self.settings)) as catalog:
            if pin.exists():
                return catalog.dataset(pin.read_text())
            folders = self.settings.folders
            catalog.scan(folders.export, folders.labels, folders.opt_outs)
            dataset = catalog.dataset()
        forget_others(folders.cache, [study.series for study in dataset.studies])
        # After the scan and before any training: from here on the job is bound to these studies.
        pin.parent.mkdir(parents=True, exist_ok=True)
        replace_file(pin, dataset.hash.encode())
        return dataset

    def _prepare(self, dataset: Dataset) -> PreparedStudies:
        """Puts every study once through the image pipeline into the cache; leaves out what cannot be read."""
        split = split_patients(dataset.studies, self.settings.training.validation_fraction)
        split = Split(self._readable(split.training), self._readable(split.validation))
        # Training reads the cache: the processes that read the export would only hold memory.
        shared_readers().release()
        # Everything else that decides the numbers: a checkpoint of other circumstances is refused.
        circumstances = {
            "site": self.settings.name,
            "plan": self.plan.digest.hex(),
            "compute": self._compute.name,
            "training": [study.study_key for study in split.training],
            "validation": [study.study_key for study in split.validation],
        }
        identity = CheckpointIdentity(
            stage="",
            run_id=self.job.run_id.hex(),
            round=self.job.round,
            base_model_digest=self.job.base_model_digest.hex(),
            dataset_hash=dataset.hash,
            config_hash=hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest(),
        )
        return PreparedStudies(split, identity)

    def _readable(self, studies: tuple[StudyRecord, ...]) -> tuple[StudyRecord, ...]:
        readable = []
        for number, study in enumerate(studies, 1):
            if self._stopping():  # no checkpoint: the cache keeps what is prepared
                raise Stopped
            try:
                self._loader.prepare(study)
                readable.append(study)
            except SeriesUnreadable as error:
                # The code only: a traceback of DICOM code could quote a header.
                _log.warning("study left out", study=study.study_key, code=error.code)
                if error.code != Reason.Q_STORAGE.name:  # that is a fault of our disk, and none of the series
                    with closing(open_catalog(self.settings)) as catalog:
                        catalog.doubt(study.series.series_key)
            self._send(WorkerMessage(SiteState.PREPARING, 0, number, len(studies), None, len(readable)))
        return tuple(readable)

    def _compare(self, prepared: PreparedStudies, evaluation: ValidationScores) -> PredecessorComparison | None:
        """Compares the base model with the one evaluated before it, where the plan has a gate."""
        if self.plan.gate is None:
            return None
        evaluated = by_patient(
            self.job.run_id,
            self.job.base_model_digest,
            self._compute.name,
            prepared.split.validation,
            evaluation.losses,
            evaluation.by_study,
        )
        return compare_with_last(self.settings.folders.trainer, evaluated, self.plan.gate)

    def _evaluate(self, net: Network, prepared: PreparedStudies) -> ValidationScores:
        """Scores the slices of the validation patients with the base model."""

        def report(done: int, total: int) -> None:
            self._send(WorkerMessage(SiteState.PREPARING, 0, done, total, None, prepared.count))

        checkpoints = self._checkpoints(prepared, "evaluate")
        validation = prepared.split.validation
        return slice_histograms(net, validation, self._loader, self._compute, checkpoints, report, self._stopping)

    def _train(self, net: Network, prepared: PreparedStudies) -> TrainingPosition:
        """Trains `net` in place, with the other ranks."""

        def report(at: TrainingProgress) -> None:
            percent = 100 * at.step // at.steps
            self._send(WorkerMessage(SiteState.TRAINING, percent, at.step, at.steps, at.loss, prepared.count))

        studies, early_stop = with_early_stop(self.plan.training, prepared.split.training, self._loader, self._compute)
        # Every rank derives the same streams: they depend on run, round and circumstances, never on the process.
        streams = RandomStreams(self.plan.run_id, prepared.identity.round, prepared.identity.config_hash)
        return train(
            net,
            self.plan.training,
            studies,
            self._loader.for_training(net, studies),
            streams,
            self._compute,
            self._checkpoints(prepared, "train"),
            report,
            self._stopping,
            early_stop,
        )

    def _checkpoints(self, prepared: PreparedStudies, stage: str) -> Checkpoints:
        identity, seal = replace(prepared.identity, stage=stage), None
        if self._content_key is not None:
            name = SealedName(SealedKind.CHECKPOINT, self.job.plan_digest, self.job.base_model_digest)
            seal = CheckpointSeal(self._content_key, name)
        return Checkpoints(job_folder(self.settings, self.job), identity, seal=seal)


def limit_interop_threads() -> None:
    """Limits inter-operator threads to one. torch allows this once in a process, before its first parallel work."""
    torch.set_num_interop_threads(1)
