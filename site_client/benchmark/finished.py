"""A trained and evaluated arm, in memory and on disk."""

import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from site_client.inference.scores import Scored

_ARRAYS: Final = ("probabilities", "labels", "patients", "heights")


@dataclass(frozen=True)
class Epoch:
    """An evaluation on the validation patients, at the end of an epoch.

    Attributes:
        number: From 1.
        steps: Optimizer steps so far.
        slices: Slices read in training so far.
        train_loss: Mean reported loss over the epoch, augmented and with half of the studies positive.
        validation_loss: The same loss, not augmented, on the patients at their own prevalence. The outputs are
            corrected for the training's prevalence.
        accuracy: At a threshold of .5, per slice, or per study for an arm without slice outputs; None if undefined.
        auc: Of `any`, likewise.
        auc_height: Of `any` at equal height, of slices.
        auc_study: Of `any`, of studies.
        log_loss: Weighted log loss, likewise.
    """

    number: int
    steps: int
    slices: int
    train_loss: float
    validation_loss: float
    accuracy: float | None
    auc: float | None
    auc_height: float | None
    auc_study: float | None
    log_loss: float | None


@dataclass(frozen=True)
class FinishedArm:
    """A trained and evaluated arm; or a trivial row, which has no epochs.

    Attributes:
        name: Of its architecture.
        parameters: Their number.
        epochs: Those at whose end it was evaluated, in order.
        training_slices_per_s: By processor time per thread on a CPU.
        inference_ms_per_slice: Likewise.
        digest: Of the last weights, in hex.
        slices: Scores of the validation slices.
        studies: Scores of the validation studies.
    """

    name: str
    parameters: int
    epochs: tuple[Epoch, ...]
    training_slices_per_s: float | None
    inference_ms_per_slice: float | None
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


def save_arm(path: Path, arm: FinishedArm) -> None:
    """Write an arm with its scores, whole or not at all."""
    facts = {key: value for key, value in vars(arm).items() if key not in ("epochs", "slices", "studies")}
    facts["epochs"] = [asdict(epoch) for epoch in arm.epochs]
    arrays = {
        f"{level}/{name}": getattr(getattr(arm, level), name) for level in ("slices", "studies") for name in _ARRAYS
    }
    draft = path.with_suffix(".unfinished.npz")
    np.savez(draft, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
    draft.rename(path)


def load_arm(path: Path) -> FinishedArm | None:
    """Read an arm; None if it is not finished, or if its file is damaged."""
    try:
        # Opened here because numpy leaves a file open that it cannot read.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            slices, studies = (
                Scored(*(file[f"{level}/{name}"] for name in _ARRAYS)) for level in ("slices", "studies")
            )
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError):
        return None
    facts["epochs"] = tuple(Epoch(**epoch) for epoch in facts["epochs"])
    return FinishedArm(**facts, slices=slices, studies=studies)
