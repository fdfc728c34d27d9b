"""Losses of validation patients under the models that were evaluated last, so that two models are compared for nothing.

    <trainer folder>/patient_losses.json     the newest KEPT models, each with the loss of every validation patient

A round evaluates its base model once. Its losses stay here, and the next round compares its own base model with them:
no study passes through a network a second time. A patient counts where both models saw the same studies with the same
labels. The file never leaves this side, and the names in it are digests.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import structlog
from federation.gate import Gate
from federation.labels import LABEL_WEIGHTS, MISSING
from msgspec import Meta
from numpy.typing import NDArray

from site_client.errors import StateRefused
from site_client.files import replace_file
from site_client.ingest.records import StudyRecord
from site_client.records import LossComparison, RunId
from site_client.typed_json import Digest, encode_state, read_state

KEPT: Final = 2
PATIENTS_MAX: Final = 8192  # of a model: the file stays below 1 MiB
_FILE: Final = "patient_losses.json"

_log = structlog.get_logger()
PatientHex = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]


@dataclass(frozen=True)
class EvaluatedModel:
    """The losses of one model, in nats, by patient."""

    run_id: RunId
    model_digest: Digest
    compute: str  # device and precision: figures of another machine are not compared
    losses: dict[PatientHex, float]


def study_loss(logits: NDArray[np.float32], labels: NDArray[np.int8]) -> float:
    """Compute the weighted cross-entropy of a study's scores over its known labels.

    Args:
        logits: f32[T,6].
        labels: int8[T,6]; 0, 1, -1 missing.

    Returns:
        Nats; NaN without a known label. Source: the challenge's metric, see `federation.labels.LABEL_WEIGHTS`.
    """
    weights = np.broadcast_to(np.array(LABEL_WEIGHTS), labels.shape) * (labels != MISSING)
    if not weights.any():
        return float("nan")
    signed = np.where(labels == 1, -logits.astype(np.float64), logits.astype(np.float64))
    return float((np.logaddexp(0.0, signed) * weights).sum() / weights.sum())


def losses_by_patient(studies: Sequence[StudyRecord], losses: NDArray[np.float64]) -> dict[PatientHex, float]:
    """Average the losses of each patient's studies.

    Args:
        studies: The validation studies.
        losses: f64[studies], NaN for a study without a known label.

    Returns:
        By a digest over the patient's studies and their labels: other studies or labels are another patient.
    """
    grouped: dict[str, list[tuple[StudyRecord, float]]] = {}
    for study, loss in sorted(zip(studies, losses.tolist(), strict=True), key=lambda pair: pair[0].study_key):
        if not np.isnan(loss):
            grouped.setdefault(study.patient_key, []).append((study, loss))
    named = {
        _patient(key, [study for study, _ in pairs]): float(np.mean([loss for _, loss in pairs]))
        for key, pairs in grouped.items()
    }
    return dict(sorted(named.items())[:PATIENTS_MAX])


def compare_with_last(folder: Path, evaluated: EvaluatedModel, gate: Gate) -> LossComparison | None:
    """Compare a model with the one that was evaluated before it in its run, and keep its losses for the next one.

    Args:
        folder: Of the trainer.
        evaluated: The model and its losses.
        gate: Of the plan.

    Returns:
        None when no other model of the run was evaluated here with the same patients.
    """
    path = folder / _FILE
    try:
        known = read_state(list[EvaluatedModel], path, "nothing is to be done") or []
    except StateRefused as error:
        # The candidate is then judged without this site; nothing else depends on the file.
        _log.warning("losses of the last model are not comparable", why=str(error))
        known = []
    others = [model for model in known if model.model_digest != evaluated.model_digest]
    replace_file(path, encode_state([*others, evaluated][-KEPT:]))
    comparable = [model for model in others if (model.run_id, model.compute) == (evaluated.run_id, evaluated.compute)]
    return _comparison(comparable[-1], evaluated.losses, gate) if comparable else None


def _comparison(earlier: EvaluatedModel, losses: Mapping[PatientHex, float], gate: Gate) -> LossComparison | None:
    both = [(losses[patient], earlier.losses[patient]) for patient in losses if patient in earlier.losses]
    if not both:
        return None
    differences = np.clip([later - before for later, before in both], -gate.clip, gate.clip)
    squares = float(differences @ differences)
    return LossComparison(earlier.model_digest, float(differences.sum()), squares, len(both))


def _patient(key: str, studies: Sequence[StudyRecord]) -> PatientHex:
    digest = hashlib.sha256(key.encode())
    for study in studies:
        digest.update(b"\0" + study.study_key.encode() + b"\0" + study.series.content_hash.encode() + b"\0")
        digest.update(study.study_labels.tobytes() + study.slice_labels.tobytes())
    return digest.hexdigest()[:16]
