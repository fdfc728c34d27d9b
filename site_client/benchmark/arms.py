"""One arm: trained by the production loop, judged after every epoch, kept on disk when it is finished."""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
from federation.labels import ANY
from federation.manifest import Model, save_model

from site_client.benchmark.settings import BenchmarkSettings
from site_client.calibration.fit import prior_offsets
from site_client.calibration.model import CalibratedNet
from site_client.files import remove, replace_file
from site_client.inference.answers import Answers, answer, clock_of
from site_client.inference.metrics import Measure, Scored, accuracy, measure, weighted_log_loss
from site_client.model.network import Network, SequenceNet
from site_client.model.registry import build, model_of
from site_client.training.array_cache import ArrayCache
from site_client.training.checkpoint import CheckpointIdentity, Checkpoints
from site_client.training.compute import Compute
from site_client.training.data import Loader, Split
from site_client.training.loop import TrainingProgress, train
from site_client.training.stages import Stages, train_in_stages
from site_client.training.streams import RandomStreams

_EMBEDDINGS_BYTES = 16 << 30  # far beyond what a million slices of 1024 features take in float32


@dataclass(frozen=True)
class Epoch:
    """Judged on the validation patients after `number` passes. train_loss: mean over the pass, augmented and with half
    of the studies positive; validation_loss: the same loss, unaugmented, on the patients as they come, of answers
    corrected for that share. accuracy, auc (of `any`) and log_loss (weighted): per slice, or per study where the arm
    answers for nothing else; None where the labels do not allow it.
    """

    number: int
    train_loss: float
    validation_loss: float
    accuracy: float | None
    auc: float | None
    log_loss: float | None


@dataclass(frozen=True)
class Done:
    """A finished arm. training_slices_per_s, inference_ms_per_slice: processor seconds per thread on a CPU."""

    arm: str
    parameters: int
    epochs: tuple[Epoch, ...]
    training_slices_per_s: float
    inference_ms_per_slice: float
    digest: str
    slices: Scored = field(repr=False)
    studies: Scored = field(repr=False)

    @property
    def rows(self) -> Scored:
        """What it is judged by: slices, or studies where it answers for nothing else."""
        return self.slices if len(self.slices.patients) else self.studies


@dataclass(frozen=True)
class Failed:
    """An arm that could not be trained here; the others go on."""

    arm: str
    reason: str


@dataclass(frozen=True)
class Bench:
    """What all arms share. `digest`: of settings and patients; `training_slices`: of all its studies."""

    settings: BenchmarkSettings
    digest: str
    split: Split
    loader: Loader
    compute: Compute
    folder: Path
    training_slices: int

    def slices_a_pass(self, in_pieces: bool) -> int:
        """What training reads in one, if every study is longer than a piece and has all labels."""
        piece = self.settings.slices_per_study if in_pieces else 0
        return min(self.training_slices, piece * len(self.split.training)) if piece else self.training_slices

    def path(self, arm: str, ending: str) -> Path:
        return self.folder / f"{self.digest}-{self.compute.kind}" / f"{arm}{ending}"


def run_arm(bench: Bench, arm: str, say: Callable[[str], None], stopping: Callable[[], bool]) -> Done:
    """From disk when it is finished there, else trained; what was begun goes on. Raises Stopped after a checkpoint."""
    found = load(bench, arm)
    if found is not None:
        say(f"{arm}: finished before")
        return found
    net = bench.compute.place(build(arm, bench.settings.seed))
    stages = bench.settings.stages_of(net)
    judge = _Judge(bench, arm, net, bench.settings.epochs if stages is None else stages.epochs, say)
    _teach(bench, arm, net, stages, judge, stopping)

    def finish() -> Done:
        model = model_of(net)
        done = _finished(bench, arm, model, judge.begun, judge.last_answers(), alike=stages is None)
        _save(bench, done, model)
        for left in bench.path(arm, "").parent.glob(f"{arm}.*"):
            if left.suffix in (".checkpoints", ".embeddings"):
                remove(left)
        judge.begun.path.unlink(missing_ok=True)
        return done

    return bench.compute.ranks.first(finish)


def _teach(
    bench: Bench, arm: str, net: Network, stages: Stages | None, judge: "_Judge", stopping: Callable[[], bool]
) -> None:
    plan, studies, compute = bench.settings.training(), bench.split.training, bench.compute
    config = hashlib.sha256(f"{bench.digest}|{compute.name}".encode()).hexdigest()
    streams = RandomStreams(bytes.fromhex(bench.digest).ljust(16, b"\0"), 0, "benchmark")
    loader = bench.loader.for_training(net)

    def checkpoints(stage: str) -> Checkpoints:
        folder = bench.path(arm, f".{stage}.checkpoints")
        return Checkpoints(folder, CheckpointIdentity("train", "", 0, arm, bench.digest, config))

    if stages is None or not isinstance(net, SequenceNet):
        train(net, plan, studies, loader, streams, compute, checkpoints("whole"), judge.look, stopping)
        return
    shelf = ArrayCache(bench.path(arm, ".embeddings"), _EMBEDDINGS_BYTES)
    before = {"backbone": 0, "reader": stages.backbone, "end-to-end": stages.backbone + stages.reader}

    def look(stage: str, at: TrainingProgress) -> None:
        judge.look(at, before[stage])

    train_in_stages(net, plan, stages, studies, loader, shelf, streams, compute, checkpoints, look, stopping)


class _Judge:
    """Looks at an arm after every step, judges it after every epoch, and says how it stands."""

    def __init__(self, bench: Bench, arm: str, net: Network, epochs: int, say: Callable[[str], None]) -> None:
        self._bench, self._arm, self._net, self._epochs, self._say = bench, arm, net, epochs, say
        self._judged = CalibratedNet(net, prior_offsets(bench.split.training))
        self._steps_an_epoch = math.ceil(len(bench.split.training) / bench.settings.studies_per_step)
        self._clock = clock_of(bench.compute)
        self._since, self._steps = self._clock(), 0
        self._last: Answers | None = None
        self.begun = _Begun(bench.path(arm, ".begun.json"))

    def look(self, at: TrainingProgress, epochs_before: int = 0) -> None:
        self._steps += 1
        if at.step % self._steps_an_epoch:
            return
        # Fewer steps than an epoch has: going on after a stop.
        seconds = (self._clock() - self._since) * self._steps_an_epoch / self._steps
        self._last = self._answers()
        epoch = _epoch(epochs_before + at.step // self._steps_an_epoch, at.loss, self._last)
        self._net.train()
        self.begun.add(epoch, seconds)
        left = (self._epochs - epoch.number) * seconds
        self._say(
            f"{self._arm}: epoch {epoch.number} of {self._epochs}, training loss {epoch.train_loss:.4f}, "
            f"validation loss {epoch.validation_loss:.4f}; about {left:.0f} processor seconds to go"
        )
        self._since, self._steps = self._clock(), 0

    def last_answers(self) -> Answers:
        """Those of the end: given just now, unless a stop came between the last step and its judgement."""
        return self._last or self._answers()

    def _answers(self) -> Answers:
        return answer(self._judged, self._bench.split.validation, self._bench.loader, self._bench.compute)


class _Begun:
    """Epochs judged so far, in a file: an arm that goes on from a checkpoint keeps its curve.

    A stop between a checkpoint at an epoch's end and that epoch's judgement loses the one point, never the arm.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.exists() else []
        self.epochs = {entry["epoch"]["number"]: (Epoch(**entry["epoch"]), float(entry["seconds"])) for entry in known}

    def add(self, epoch: Epoch, seconds: float) -> None:
        self.epochs[epoch.number] = (epoch, seconds)
        known = [{"epoch": asdict(epoch), "seconds": seconds} for epoch, seconds in self.epochs.values()]
        replace_file(self.path, json.dumps(known).encode())


def _epoch(number: int, train_loss: float, found: Answers) -> Epoch:
    rows = found.slices if len(found.slices.patients) else found.studies
    return Epoch(
        number,
        train_loss,
        found.loss,
        accuracy(rows)[0].value,
        measure(rows.column(ANY), Measure.AUC).value,
        weighted_log_loss(rows).value,
    )


def _finished(bench: Bench, arm: str, model: Model, begun: _Begun, last: Answers, *, alike: bool) -> Done:
    """`alike`: every epoch did the same."""
    epochs = [epoch for _, (epoch, _) in sorted(begun.epochs.items())]
    seconds = sorted(seconds for _, seconds in begun.epochs.values())
    slices = bench.slices_a_pass(in_pieces=len(last.slices.patients) > 0)
    return Done(
        arm,
        model.manifest.size,
        tuple(epochs),
        slices / (seconds[len(seconds) // 2] if alike else fmean(seconds)),  # the first pass also warms up
        last.ms_per_slice,
        model.digest.hex(),
        last.slices,
        last.studies,
    )


# --- on disk ------------------------------------------------------------------------------------------------------

_ARRAYS = ("chances", "labels", "patients")


def _save(bench: Bench, done: Done, model: Model) -> None:
    """The model first, the answers last: where they are, everything is."""
    save_model(bench.path(done.arm, ".safetensors"), model)
    facts = {key: value for key, value in vars(done).items() if key not in ("epochs", "slices", "studies")}
    facts["epochs"] = [asdict(epoch) for epoch in done.epochs]
    arrays = {
        f"{level}/{name}": getattr(getattr(done, level), name) for level in ("slices", "studies") for name in _ARRAYS
    }
    draft = bench.path(done.arm, ".unfinished.npz")
    np.savez(draft, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
    draft.rename(bench.path(done.arm, ".npz"))


def load(bench: Bench, arm: str) -> Done | None:
    """A finished arm; None when it is not, or when its file is damaged."""
    try:
        # Opened here: numpy leaves a file that it cannot read open.
        with bench.path(arm, ".npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            slices, studies = (
                Scored(*(file[f"{level}/{name}"] for name in _ARRAYS)) for level in ("slices", "studies")
            )
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError):
        return None
    facts["epochs"] = tuple(Epoch(**epoch) for epoch in facts["epochs"])
    return Done(**facts, slices=slices, studies=studies)
