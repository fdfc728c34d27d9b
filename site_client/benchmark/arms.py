"""One arm: trained by the production loop, judged after every epoch, kept on disk when it is finished."""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from federation.manifest import Model, save_model

from site_client.benchmark.settings import Settings
from site_client.files import replace_file
from site_client.inference.answers import Answers, answer, clock_of
from site_client.inference.metrics import Measure, Scored, accuracy, measure, weighted_log_loss
from site_client.model.calibration import CalibratedNet
from site_client.model.labels import ANY
from site_client.model.registry import build, model_of
from site_client.training.calibrate import prior_offsets
from site_client.training.checkpoint import Checkpoints, Identity
from site_client.training.compute import Compute
from site_client.training.data import Loader, Split
from site_client.training.loop import Progress, train
from site_client.training.streams import Streams


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

    settings: Settings
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
    settings, plan = bench.settings, bench.settings.training()
    net = build(arm, settings.seed).to(bench.compute.device)
    judged = CalibratedNet(net, prior_offsets(bench.split.training))
    steps_an_epoch = math.ceil(len(bench.split.training) / plan.studies_per_step)
    begun = _Begun(bench.path(arm, ".begun.json"))
    clock = clock_of(bench.compute)
    since, steps = clock(), 0
    last: Answers | None = None

    def look(at: Progress) -> None:
        nonlocal since, steps, last
        steps += 1
        if at.step % steps_an_epoch:
            return
        seconds = (clock() - since) * steps_an_epoch / steps  # fewer steps than an epoch has: going on after a stop
        last = answer(judged, bench.split.validation, bench.loader, bench.compute)
        epoch = _epoch(at.step // steps_an_epoch, at.loss, last)
        net.train()
        begun.add(epoch, seconds)
        left = (plan.epochs - epoch.number) * seconds
        say(
            f"{arm}: epoch {epoch.number} of {plan.epochs}, training loss {epoch.train_loss:.4f}, "
            f"validation loss {epoch.validation_loss:.4f}; about {left:.0f} processor seconds to go"
        )
        since, steps = clock(), 0

    config = hashlib.sha256(f"{bench.digest}|{bench.compute.name}".encode()).hexdigest()
    checkpoints = Checkpoints(bench.path(arm, ".checkpoints"), Identity("train", "", 0, arm, bench.digest, config))
    streams = Streams(bytes.fromhex(bench.digest).ljust(16, b"\0"), 0, "benchmark")
    loader = bench.loader.teaching(net)
    train(net, plan, bench.split.training, loader, streams, bench.compute, checkpoints, look, stopping)

    def finish() -> Done:
        model = model_of(net)
        # Judged just now, unless a stop came between the last step and its judgement.
        done = _finished(
            bench, arm, model, begun, last or answer(judged, bench.split.validation, bench.loader, bench.compute)
        )
        _save(bench, done, model)
        checkpoints.clear()
        begun.path.unlink(missing_ok=True)
        return done

    return bench.compute.ranks.first(finish)


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


def _finished(bench: Bench, arm: str, model: Model, begun: _Begun, last: Answers) -> Done:
    epochs = [epoch for _, (epoch, _) in sorted(begun.epochs.items())]
    seconds = sorted(seconds for _, seconds in begun.epochs.values())
    slices = bench.slices_a_pass(in_pieces=len(last.slices.patients) > 0)
    return Done(
        arm,
        model.manifest.size,
        tuple(epochs),
        slices / seconds[len(seconds) // 2],  # the median pass; the first one also warms up
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
