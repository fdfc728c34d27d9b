"""One arm: trained by the production loop, evaluated after every epoch, kept on disk when it is finished."""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Final

import numpy as np
from federation.labels import ANY
from federation.manifest import Model, save_model

from site_client.benchmark.settings import BenchmarkSettings
from site_client.calibration.fit import prior_offsets
from site_client.calibration.model import CalibratedNet
from site_client.files import remove, replace_file
from site_client.inference.metrics import Measure, Scored, accuracy, estimate, weighted_log_loss
from site_client.inference.scoring import ScoredStudies, clock_of, score_studies
from site_client.model.network import Network, SequenceNet
from site_client.model.registry import build, model_of
from site_client.training.array_cache import ArrayCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import Compute
from site_client.training.data import Loader, Split
from site_client.training.loop import TrainingProgress, train
from site_client.training.stages import Stages, train_in_stages
from site_client.training.streams import RandomStreams

_EMBEDDINGS_BYTES: Final = 16 << 30  # far more than a million slices of 1024 features in float32


@dataclass(frozen=True)
class Epoch:
    """The evaluation on the validation patients after an epoch.

    Attributes:
        number: From 1.
        train_loss: Mean reported loss over the epoch, augmented and with half of the studies positive.
        validation_loss: The same loss, not augmented, on the patients at their own prevalence. The outputs are
            corrected for the training's prevalence.
        accuracy: At a threshold of .5, per slice, or per study for an arm without slice outputs; None if undefined.
        auc: Of `any`, likewise.
        log_loss: Weighted log loss, likewise.
    """

    number: int
    train_loss: float
    validation_loss: float
    accuracy: float | None
    auc: float | None
    log_loss: float | None


@dataclass(frozen=True)
class FinishedArm:
    """A trained and evaluated arm.

    Attributes:
        name: Of its architecture.
        parameters: Their number.
        epochs: In order.
        training_slices_per_s: By processor time per thread on a CPU.
        inference_ms_per_slice: Likewise.
        digest: Of the last weights, in hex.
        slices: Scores of the validation slices.
        studies: Scores of the validation studies.
    """

    name: str
    parameters: int
    epochs: tuple[Epoch, ...]
    training_slices_per_s: float
    inference_ms_per_slice: float
    digest: str
    slices: Scored = field(repr=False)
    studies: Scored = field(repr=False)

    @property
    def rows(self) -> Scored:
        """The scores by which the arm is evaluated: of slices, or of studies for an arm without slice outputs."""
        return self.slices if len(self.slices.patients) else self.studies


@dataclass(frozen=True)
class FailedArm:
    """An arm that could not be trained here. The other arms are not affected."""

    name: str
    reason: str


@dataclass(frozen=True)
class Bench:
    """All that the arms share.

    Attributes:
        settings: Of the benchmark.
        digest: Of settings and patients.
        split: Training and validation studies.
        loader: Of their pixels.
        compute: Device, precision, processes.
        folder: For work in progress and finished arms.
        training_slices: Slices of all training studies.
    """

    settings: BenchmarkSettings
    digest: str
    split: Split
    loader: Loader
    compute: Compute
    folder: Path
    training_slices: int

    def path(self, arm: str, ending: str) -> Path:
        """Return the path of an arm's file."""
        return self.folder / f"{self.digest}-{self.compute.kind}" / f"{arm}{ending}"


def run_arm(bench: Bench, arm: str, say: Callable[[str], None], stopping: Callable[[], bool]) -> FinishedArm:
    """Return a finished arm: from disk, or trained now, from its last checkpoint if there is one.

    Args:
        bench: See `Bench`.
        arm: Name of its architecture.
        say: Called with a sentence after every epoch.
        stopping: Whether to stop.

    Raises:
        Stopped: `stopping` returned true; a checkpoint is written.
    """
    finished = load(bench, arm)
    if finished is not None:
        say(f"{arm}: finished before")
        return finished
    net = bench.compute.place(build(arm, bench.settings.seed))
    stages = bench.settings.stages_of(net)
    evaluator = _Evaluator(bench, arm, net, bench.settings.epochs if stages is None else stages.epochs, say)
    _train_arm(bench, arm, net, stages, evaluator, stopping)

    def finish() -> FinishedArm:
        model = model_of(net)
        finished = _finished(bench, arm, model, evaluator, staged=stages is not None)
        _save(bench, finished, model)
        for leftover in bench.path(arm, "").parent.glob(f"{arm}.*"):
            if leftover.suffix in (".checkpoints", ".embeddings"):
                remove(leftover)
        evaluator.journal.path.unlink(missing_ok=True)
        return finished

    return bench.compute.ranks.first(finish)


def _train_arm(
    bench: Bench, arm: str, net: Network, stages: Stages | None, evaluator: "_Evaluator", stopping: Callable[[], bool]
) -> None:
    plan, studies, compute = bench.settings.training(), bench.split.training, bench.compute
    config = hashlib.sha256(f"{bench.digest}|{compute.name}".encode()).hexdigest()
    streams = RandomStreams(bytes.fromhex(bench.digest).ljust(16, b"\0"), 0, "benchmark")

    def checkpoints(stage: str) -> Checkpoints:
        folder = bench.path(arm, f".{stage}.checkpoints")
        return Checkpoints(folder, CheckpointIdentity("train", "", 0, arm, bench.digest, config))

    if stages is None or not isinstance(net, SequenceNet):
        source = bench.loader.for_training(net, studies)
        train(net, plan, studies, source, streams, compute, checkpoints("whole"), evaluator.after_step, stopping)
        return
    embeddings = ArrayCache(bench.path(arm, ".embeddings"), _EMBEDDINGS_BYTES)
    epochs_before = {
        "backbone": 0,
        "sequence-head": stages.backbone,
        "end-to-end": stages.backbone + stages.sequence_head,
    }

    def after_step(stage: str, at: TrainingProgress) -> None:
        evaluator.after_step(at, epochs_before[stage])

    train_in_stages(
        net, plan, stages, studies, bench.loader, embeddings, streams, compute, checkpoints, after_step, stopping
    )


class _Evaluator:
    """Evaluates an arm after every epoch, and reports how far it is."""

    def __init__(self, bench: Bench, arm: str, net: Network, epochs: int, say: Callable[[str], None]) -> None:
        self._bench, self._arm, self._net, self._epochs, self._say = bench, arm, net, epochs, say
        self._corrected = CalibratedNet(net, prior_offsets(bench.split.training, bench.loader, net))
        self._steps_per_epoch = math.ceil(len(bench.split.training) / bench.settings.studies_per_step)
        self._clock = clock_of(bench.compute)
        self._start, self._steps = self._clock(), 0
        self._last: ScoredStudies | None = None
        self.journal = _EpochJournal(bench.path(arm, ".begun.json"))

    def after_step(self, at: TrainingProgress, epochs_before: int = 0) -> None:
        self._steps += 1
        if at.step % self._steps_per_epoch:
            return
        # After a stop fewer steps than those of an epoch were timed here.
        seconds = (self._clock() - self._start) * self._steps_per_epoch / self._steps
        self._last = self._score()
        epoch = _epoch(epochs_before + at.step // self._steps_per_epoch, at.loss, self._last)
        self._net.train()
        self.journal.add(epoch, seconds)
        left = (self._epochs - epoch.number) * seconds
        self._say(
            f"{self._arm}: epoch {epoch.number} of {self._epochs}, training loss {epoch.train_loss:.4f}, "
            f"validation loss {epoch.validation_loss:.4f}; about {left:.0f} processor seconds to go"
        )
        self._start, self._steps = self._clock(), 0

    def last_scores(self) -> ScoredStudies:
        """The scores after the last epoch. They are computed here if a stop came before that evaluation."""
        return self._last or self._score()

    def _score(self) -> ScoredStudies:
        return score_studies(self._corrected, self._bench.split.validation, self._bench.loader, self._bench.compute)


class _EpochJournal:
    """The epochs evaluated so far, in a file: an arm that resumes from a checkpoint keeps its curve.

    A stop between the checkpoint at an epoch's end and its evaluation loses that one point.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = json.loads(path.read_text()) if path.exists() else []
        self.epochs = {
            entry["epoch"]["number"]: (Epoch(**entry["epoch"]), float(entry["seconds"])) for entry in entries
        }

    def add(self, epoch: Epoch, seconds: float) -> None:
        self.epochs[epoch.number] = (epoch, seconds)
        entries = [{"epoch": asdict(epoch), "seconds": seconds} for epoch, seconds in self.epochs.values()]
        replace_file(self.path, json.dumps(entries).encode())


def _epoch(number: int, train_loss: float, scored: ScoredStudies) -> Epoch:
    rows = scored.slices if len(scored.slices.patients) else scored.studies
    return Epoch(
        number,
        train_loss,
        scored.loss,
        accuracy(rows)[0].value,
        estimate(rows.column(ANY), Measure.AUC).value,
        weighted_log_loss(rows).value,
    )


def _finished(bench: Bench, arm: str, model: Model, evaluator: _Evaluator, *, staged: bool) -> FinishedArm:
    scores = evaluator.last_scores()
    epochs = [epoch for _, (epoch, _) in sorted(evaluator.journal.epochs.items())]
    seconds = [seconds for _, seconds in evaluator.journal.epochs.values()]
    slices = bench.training_slices
    if bench.settings.slices_per_study and len(scores.slices.patients):  # a network without slice outputs reads all
        slices = min(slices, bench.settings.slices_per_study * len(bench.split.training))
    # The median leaves out the first epoch's warm-up; the epochs of stages differ, so there it is the mean.
    seconds_per_epoch = fmean(seconds) if staged else median(seconds)
    return FinishedArm(
        arm,
        model.manifest.size,
        tuple(epochs),
        slices / seconds_per_epoch,
        scores.ms_per_slice,
        model.digest.hex(),
        scores.slices,
        scores.studies,
    )


# --- on disk ------------------------------------------------------------------------------------------------------

_ARRAYS: Final = ("probabilities", "labels", "patients")


def _save(bench: Bench, arm: FinishedArm, model: Model) -> None:
    # Order: the scores come last, so where they are the model is.
    save_model(bench.path(arm.name, ".safetensors"), model)
    facts = {key: value for key, value in vars(arm).items() if key not in ("epochs", "slices", "studies")}
    facts["epochs"] = [asdict(epoch) for epoch in arm.epochs]
    arrays = {
        f"{level}/{name}": getattr(getattr(arm, level), name) for level in ("slices", "studies") for name in _ARRAYS
    }
    draft = bench.path(arm.name, ".unfinished.npz")
    np.savez(draft, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
    draft.rename(bench.path(arm.name, ".npz"))


def load(bench: Bench, arm: str) -> FinishedArm | None:
    """Read a finished arm; None if it is not finished, or if its file is damaged."""
    try:
        # Opened here because numpy leaves a file open that it cannot read.
        with bench.path(arm, ".npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            slices, studies = (
                Scored(*(file[f"{level}/{name}"] for name in _ARRAYS)) for level in ("slices", "studies")
            )
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError):
        return None
    facts["epochs"] = tuple(Epoch(**epoch) for epoch in facts["epochs"])
    return FinishedArm(**facts, slices=slices, studies=studies)
