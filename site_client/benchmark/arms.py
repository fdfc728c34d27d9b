"""One arm: trained by the production loop, evaluated along the way, kept on disk when it is finished."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Final

from federation.description import ModelDescription
from federation.labels import ANY
from federation.manifest import Model, save_model

from site_client.benchmark.finished import Epoch, FinishedArm, load_arm, save_arm
from site_client.benchmark.settings import BenchmarkSettings
from site_client.calibration.fit import prior_offsets
from site_client.calibration.model import CalibratedNet, Calibrations
from site_client.files import remove, replace_file
from site_client.inference.intervals import accuracy, estimate, weighted_log_loss
from site_client.inference.measures import Measure
from site_client.inference.scoring import ScoredStudies, clock_of, score_studies
from site_client.model.inputs import PIPELINE_VERSION
from site_client.model.network import Network, SequenceNet
from site_client.model.registry import build, load_weights, model_of
from site_client.training.array_cache import ArrayCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import Compute
from site_client.training.data import Loader, Split
from site_client.training.early_stop import with_early_stop
from site_client.training.loop import TrainingProgress, train
from site_client.training.stages import Stages, train_in_stages
from site_client.training.streams import RandomStreams

BEGUN: Final = ".begun.npz"  # ending of the file of an unfinished arm, as it was evaluated last
_EMBEDDINGS_BYTES: Final = 16 << 30  # far more than a million slices of 1024 features in float32


@dataclass(frozen=True)
class Bench:
    """All that the arms of one seed and one split share.

    Attributes:
        settings: Of this seed and split.
        digest: Of settings and patients.
        split: Training and validation studies.
        loader: Of their pixels.
        compute: Device, precision, processes.
        folder: For work in progress and finished arms.
        training_slices: Slices of all training studies.
        log: A JSONL file that gets a line for every evaluation; None for none.
        initial: Model files of initial weights, by architecture; fresh ones without.
    """

    settings: BenchmarkSettings
    digest: str
    split: Split
    loader: Loader
    compute: Compute
    folder: Path
    training_slices: int
    log: Path | None = None
    initial: tuple[tuple[str, Model], ...] = ()

    def path(self, arm: str, ending: str) -> Path:
        """Return the path of an arm's file."""
        return self.folder / f"{self.digest}-{self.compute.kind}" / f"{arm}{ending}"

    def network(self, arm: str) -> Network:
        """Return the network of an arm with its initial weights, on the device."""
        net = build(arm, self.settings.seed)
        for architecture, model in self.initial:
            if architecture == arm:
                load_weights(net, model.named())
        return self.compute.place(net)

    @property
    def slices_per_epoch(self) -> int:
        """Slices that training reads in an epoch; fewer if some studies are shorter than a slab."""
        in_slabs = self.settings.slices_per_study * len(self.split.training)
        return min(self.training_slices, in_slabs) if in_slabs else self.training_slices


def run_arm(bench: Bench, arm: str, say: Callable[[str], None], stopping: Callable[[], bool]) -> FinishedArm:
    """Return a finished arm: from disk, or trained now, from its last checkpoint if there is one.

    Args:
        bench: See `Bench`.
        arm: Name of its architecture.
        say: Called with a sentence after every evaluation.
        stopping: Whether to stop.

    Raises:
        Stopped: `stopping` returned true; a checkpoint is written.
    """
    finished = load_arm(bench.path(arm, ".npz"))
    if finished is not None:
        say(f"{arm}: finished before")
        return finished
    net = bench.network(arm)
    stages = bench.settings.stages_of(net)
    evaluator = _Evaluator(bench, arm, net, stages, say)
    _train_arm(bench, arm, net, stages, evaluator, stopping)

    def finish() -> FinishedArm:
        model = model_of(net)
        finished = evaluator.arm(model, evaluator.score(net))
        _save(bench, finished, model, evaluator.offsets, staged=stages is not None)
        for leftover in bench.path(arm, "").parent.glob(f"{arm}.*"):
            if leftover.suffix in (".checkpoints", ".embeddings"):
                remove(leftover)
        for path in (evaluator.journal.path, bench.path(arm, BEGUN)):
            path.unlink(missing_ok=True)
        return finished

    return bench.compute.ranks.first(finish)


def _train_arm(
    bench: Bench, arm: str, net: Network, stages: Stages | None, evaluator: "_Evaluator", stopping: Callable[[], bool]
) -> None:
    plan, compute, loader = bench.settings.training(), bench.compute, bench.loader
    studies, early_stop = with_early_stop(plan, bench.split.training, loader, compute)
    config = hashlib.sha256(f"{bench.digest}|{compute.name}".encode()).hexdigest()
    streams = RandomStreams(bytes.fromhex(bench.digest).ljust(16, b"\0"), 0, "benchmark")

    def checkpoints(stage: str) -> Checkpoints:
        folder = bench.path(arm, f".{stage}.checkpoints")
        return Checkpoints(folder, CheckpointIdentity("train", "", 0, arm, bench.digest, config))

    if stages is None or not isinstance(net, SequenceNet):
        source, after = loader.for_training(net, studies), evaluator.after_step
        train(net, plan, studies, source, streams, compute, checkpoints("whole"), after, stopping, early_stop)
        return
    slab_offsets = prior_offsets(bench.split.training, loader, net.slicewise())
    embeddings = ArrayCache(bench.path(arm, ".embeddings"), _EMBEDDINGS_BYTES)
    epochs_before = {
        "backbone": 0,
        "sequence-head": stages.backbone,
        "end-to-end": stages.backbone + stages.sequence_head,
    }

    def after_step(stage: str, at: TrainingProgress) -> None:
        # A stage trains a part of `net`; the whole of it is evaluated. In the first no recurrence is trained.
        evaluator.after_step(at, epochs_before[stage], net, slab_offsets if stage == "backbone" else None)

    train_in_stages(net, plan, stages, studies, loader, embeddings, streams, compute, checkpoints, after_step, stopping)


class _Evaluator:
    """Evaluates an arm after its first epoch, every `evaluate_every` epochs and the last, and reports how far it is."""

    def __init__(self, bench: Bench, arm: str, net: Network, stages: Stages | None, say: Callable[[str], None]) -> None:
        self._bench, self._arm, self._say, self._staged = bench, arm, say, stages is not None
        self._epochs = bench.settings.epochs if stages is None else stages.epochs
        # The stage that trains the sequence head reads whole studies.
        loader = bench.loader if stages is None else bench.loader.of_whole_studies()
        self.offsets = prior_offsets(bench.split.training, loader, net)
        studies, _ = with_early_stop(bench.settings.training(), bench.split.training, bench.loader, bench.compute)
        self._steps_per_epoch = math.ceil(len(studies) / bench.settings.studies_per_step)
        self._clock = clock_of(bench.compute)
        self._start, self._steps = self._clock(), 0
        self.journal = _EpochJournal(bench.path(arm, ".begun.json"))

    def after_step(
        self,
        at: TrainingProgress,
        epochs_before: int = 0,
        net: Network | None = None,
        offsets: Calibrations | None = None,
    ) -> None:
        self._steps += 1
        number = epochs_before + at.step // self._steps_per_epoch
        due = number in (1, self._epochs) or number % self._bench.settings.evaluate_every == 0
        if at.step % self._steps_per_epoch or not due:
            return
        # Since the last evaluation or the last stop any number of steps was timed.
        seconds = (self._clock() - self._start) * self._steps_per_epoch / self._steps
        net = at.net if net is None else net
        scored = self.score(net, offsets)
        epoch = self._epoch(number, at.loss, scored)
        self.journal.add(epoch, seconds)
        save_arm(self._bench.path(self._arm, BEGUN), self.arm(model_of(net), scored))
        self._record(epoch, seconds)
        left = (self._epochs - epoch.number) * seconds
        auc = "" if epoch.auc_height is None else f", AUC at equal height {epoch.auc_height:.3f}"
        self._say(
            f"{self._arm}: epoch {epoch.number} of {self._epochs}, training loss {epoch.train_loss:.4f}, "
            f"validation loss {epoch.validation_loss:.4f}{auc}; about {left:.0f} processor seconds to go"
        )
        self._start, self._steps = self._clock(), 0

    def score(self, net: Network, offsets: Calibrations | None = None) -> ScoredStudies:
        corrected = CalibratedNet(net, offsets or self.offsets)
        return score_studies(corrected, self._bench.split.validation, self._bench.loader, self._bench.compute)

    def arm(self, model: Model, scored: ScoredStudies) -> FinishedArm:
        """The arm with these weights and scores, and with all evaluations so far."""
        epochs = [epoch for _, (epoch, _) in sorted(self.journal.epochs.items())]
        seconds = [seconds for _, seconds in self.journal.epochs.values()]
        # A network without slice outputs reads whole studies.
        slices = self._bench.slices_per_epoch if len(scored.slices.patients) else self._bench.training_slices
        # The median leaves out the first epoch's warm-up; the epochs of stages differ, so there it is the mean.
        seconds_per_epoch = fmean(seconds) if self._staged else median(seconds)
        return FinishedArm(
            self._arm,
            model.manifest.size,
            tuple(epochs),
            slices / seconds_per_epoch,
            scored.ms_per_slice,
            model.digest.hex(),
            scored.slices,
            scored.studies,
        )

    def _epoch(self, number: int, train_loss: float, scored: ScoredStudies) -> Epoch:
        rows = scored.slices if len(scored.slices.patients) else scored.studies
        return Epoch(
            number,
            number * self._steps_per_epoch,
            number * self._bench.slices_per_epoch,
            train_loss,
            scored.loss,
            accuracy(rows)[0].value,
            estimate([rows.column(ANY)], Measure.AUC).value,
            estimate([rows.column(ANY)], Measure.AUC_HEIGHT).value,
            estimate([scored.studies.column(ANY)], Measure.AUC).value,
            weighted_log_loss([rows]).value,
        )

    def _record(self, epoch: Epoch, seconds: float) -> None:
        if self._bench.log is None:
            return
        settings = self._bench.settings
        facts = {"arm": self._arm, "seed": settings.seed, "fold": settings.fold, "patients": settings.patients}
        event = {"event": "epoch ended", **facts, **asdict(epoch), "seconds": round(seconds, 1)}
        with self._bench.log.open("a") as log:
            log.write(json.dumps(event) + "\n")


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


def _save(bench: Bench, arm: FinishedArm, model: Model, offsets: Calibrations, *, staged: bool) -> None:
    settings = bench.settings
    description = ModelDescription(
        arm.name,
        settings.image_size_px,
        settings.slices_max,
        0 if staged else settings.slices_per_study,  # by it `calibrate` computes the offsets
        PIPELINE_VERSION,
        origin=f"benchmark {bench.digest}, seed {settings.seed}",
        calibration=Calibrations(offsets.slices, offsets.studies, model.digest.hex()).to_json(),
    )
    # Order: the scores come last, so where they are the model is.
    save_model(bench.path(arm.name, ".safetensors"), model, description=description)
    save_arm(bench.path(arm.name, ".npz"), arm)
