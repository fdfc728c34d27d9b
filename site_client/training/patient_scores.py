"""Scores of validation patients under the models that were evaluated last, so that two models are compared for nothing.

    <trainer folder>/patient_scores.bin     the newest KEPT models, each with loss and histograms of every patient

A round evaluates its base model once. Its scores stay here, and the next round compares its own base model with them:
no study passes through a network a second time. A patient counts where both models saw the same studies with the same
labels. The file never leaves this side, and the names in it are digests.

The file has the SHA-256 of what follows, and msgpack: a wrong bit compares nothing, rather than something else.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import structlog
from federation.encoding import HISTOGRAM_SHAPE
from federation.gate import SMALLEST_CLASS, Gate
from federation.labels import LABEL_WEIGHTS, MISSING
from numpy.typing import NDArray

from site_client.files import replace_file
from site_client.ingest.records import StudyRecord
from site_client.records import AucLoss, PredecessorComparison, RunId
from site_client.training.histogram_auc import auc_of_histogram
from site_client.typed_json import Digest
from site_client.untrusted_files import read_regular

KEPT: Final = 2
PATIENTS_MAX: Final = 8192  # of a model: 12 MiB before they are compressed, most of it zeros
_FILE: Final = "patient_scores.bin"
_FILE_BYTES_MAX: Final = 64 << 20
_CHECKSUM_BYTES: Final = hashlib.sha256().digest_size

_log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A model's scores of patients.

    Attributes:
        run_id: Of the round.
        model_digest: Of the model.
        compute: Device and precision: figures of another machine are not compared.
        patients: A digest of each patient's studies and their labels, ascending: with others it is another patient.
        losses: f64[patients], nats.
        histograms: u16[patients,6,2,64], slices by label, truth and bin of the logit.
    """

    run_id: RunId
    model_digest: Digest
    compute: str
    patients: tuple[str, ...]
    losses: NDArray[np.float64]
    histograms: NDArray[np.uint16]


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An EvaluatedModel in the file; arrays little-endian, `histograms` compressed."""

    run_id: bytes
    model_digest: bytes
    compute: str
    patients: tuple[str, ...]
    losses: bytes
    histograms: bytes


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


def by_patient(
    run_id: RunId,
    model_digest: Digest,
    compute: str,
    studies: Sequence[StudyRecord],
    losses: NDArray[np.float64],
    histograms: NDArray[np.int16],
) -> EvaluatedModel:
    """Average the losses of each patient's studies, and add up their histograms.

    Args:
        run_id: Of the round.
        model_digest: Of the model.
        compute: Device and precision.
        studies: The validation studies.
        losses: f64[studies], NaN for a study without a known label; it counts nowhere.
        histograms: int16[studies,6,2,64].
    """
    grouped: dict[str, list[int]] = {}
    for place in sorted(range(len(studies)), key=lambda place: studies[place].study_key):
        if not np.isnan(losses[place]):
            grouped.setdefault(studies[place].patient_key, []).append(place)
    named = {_name(key, [studies[place] for place in places]): places for key, places in grouped.items()}
    patients = tuple(sorted(named)[:PATIENTS_MAX])
    summed = np.zeros((len(patients), *HISTOGRAM_SHAPE), np.uint16)
    for row, patient in zip(summed, patients, strict=True):
        row += histograms[named[patient]].sum(axis=0).astype(np.uint16)
    means = np.array([losses[named[patient]].mean() for patient in patients], np.float64)
    return EvaluatedModel(run_id, model_digest, compute, patients, means, summed)


def compare_with_last(folder: Path, evaluated: EvaluatedModel, gate: Gate) -> PredecessorComparison | None:
    """Compare a model with the one that was evaluated before it in its run, and keep its scores for the next one.

    Args:
        folder: Of the trainer.
        evaluated: The model and its scores.
        gate: Of the plan.

    Returns:
        None when no other model of the run was evaluated here with the same patients.
    """
    path = folder / _FILE
    try:
        known = _read(path)
    except (OSError, ValueError) as error:
        # The candidate is then judged without this site; nothing else depends on the file.
        _log.warning("scores of the last model are not comparable", why=str(error))
        known = []
    others = [model for model in known if model.model_digest != evaluated.model_digest]
    _write(path, [*others, evaluated][-KEPT:])
    comparable = [model for model in others if (model.run_id, model.compute) == (evaluated.run_id, evaluated.compute)]
    return _comparison(comparable[-1], evaluated, gate) if comparable else None


def _comparison(earlier: EvaluatedModel, later: EvaluatedModel, gate: Gate) -> PredecessorComparison | None:
    place_of = {patient: place for place, patient in enumerate(earlier.patients)}
    pairs = [(place_of[patient], place) for place, patient in enumerate(later.patients) if patient in place_of]
    if not pairs:
        return None
    before, now = np.array(pairs).T
    differences = np.clip(later.losses[now] - earlier.losses[before], -gate.clip, gate.clip)
    histograms = [
        model.histograms[places].sum(axis=0, dtype=np.int64) for model, places in ((earlier, before), (later, now))
    ]
    return PredecessorComparison(
        earlier_digest=earlier.model_digest,
        difference_sum=float(differences.sum()),
        square_sum=float(differences @ differences),
        patients=len(pairs),
        labels=tuple(_auc_loss(*label) for label in zip(*histograms, strict=True)),
    )


def _auc_loss(before: NDArray[np.int64], now: NDArray[np.int64]) -> AucLoss:
    """Return a label's loss of AUC from two histograms of the same slices, int64[2,64] each."""
    if before.sum(axis=1).min() < SMALLEST_CLASS:
        return AucLoss()
    return AucLoss(auc_of_histogram(*before) - auc_of_histogram(*now), int(now[1].sum()))


def _name(key: str, studies: Sequence[StudyRecord]) -> str:
    digest = hashlib.sha256(key.encode())
    for study in studies:
        digest.update(b"\0" + study.study_key.encode() + b"\0" + study.series.content_hash.encode() + b"\0")
        digest.update(study.study_labels.tobytes() + study.slice_labels.tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> list[EvaluatedModel]:
    """Read the file; no model when there is none.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    try:
        data = read_regular(path, _FILE_BYTES_MAX)
    except FileNotFoundError:
        return []
    if data[:_CHECKSUM_BYTES] != hashlib.sha256(data[_CHECKSUM_BYTES:]).digest():
        raise ValueError("its checksum is not that of its content")
    try:
        stored = msgspec.msgpack.decode(data[_CHECKSUM_BYTES:], type=list[_Stored])
    except msgspec.DecodeError:  # of another version; the message could repeat a value
        raise ValueError("it is no list of scores") from None
    return [
        EvaluatedModel(
            run_id=RunId(model.run_id),
            model_digest=Digest(model.model_digest),
            compute=model.compute,
            patients=model.patients,
            losses=np.frombuffer(model.losses, "<f8"),
            histograms=np.frombuffer(zlib.decompress(model.histograms), "<u2").reshape(-1, *HISTOGRAM_SHAPE),
        )
        for model in stored
    ]


def _write(path: Path, models: Sequence[EvaluatedModel]) -> None:
    stored = [
        _Stored(
            run_id=bytes(model.run_id),
            model_digest=bytes(model.model_digest),
            compute=model.compute,
            patients=model.patients,
            losses=model.losses.astype("<f8").tobytes(),
            histograms=zlib.compress(model.histograms.astype("<u2").tobytes(), 1),
        )
        for model in models
    ]
    data = msgspec.msgpack.encode(stored)
    replace_file(path, hashlib.sha256(data).digest() + data)
