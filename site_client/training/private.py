"""One step of a private run at a site: the sum of the clipped gradients of the patients that chance draws.

Whatever decides about one patient's part (whether it is drawn, how its slices are augmented, dropout) depends on a
secret of the operating system and on that patient alone. So one patient more changes the sum by its own part, at most
the clip norm. `docs/PRIVACY.md` builds on that.
"""

import hashlib
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
import torch
from federation.encoding import HISTOGRAM_SHAPE, bin_of
from federation.encoding.skellam import SecretStream
from federation.labels import LABELS, MISSING
from federation.plan import TrainingPlan
from federation.privacy import Privacy
from numpy.typing import NDArray

from site_client.ingest.records import StudyRecord
from site_client.model.network import Network, clamp_any
from site_client.model.parts import is_trainable, parts_of
from site_client.training.checkpoint import Checkpoints
from site_client.training.compute import Compute
from site_client.training.data import Loader, Source
from site_client.training.loop import Stopped
from site_client.training.loss import training_loss

Patient = tuple[StudyRecord, ...]  # the studies of one patient, by study key

_SECRET_BYTES: Final = 32
_SAMPLING: Final = 3  # purpose of a secret stream; 0 to 2 are those of `federation.encoding.noised`


@dataclass(frozen=True)
class PrivateStep:
    """The tools of one private step, the same for every patient.

    Attributes:
        net: Holds the base model, on the device of `compute`.
        plan: Of the run; it has privacy.
        source: Of samples. It draws a patient's slices without knowledge of other patients.
        compute: One process.
    """

    net: Network
    plan: TrainingPlan
    source: Source
    compute: Compute


def patients_of(studies: Sequence[StudyRecord]) -> list[Patient]:
    """Group studies by patient, both in the order of their keys."""
    ordered = sorted(studies, key=lambda study: (study.patient_key, study.study_key))
    return [tuple(group) for _, group in groupby(ordered, key=lambda study: study.patient_key)]


def private_gradient(
    step: PrivateStep,
    patients: Sequence[Patient],
    checkpoints: Checkpoints,
    report: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> NDArray[np.float32]:
    """Draw patients, and add up minus the clipped gradient of each.

    A step that was stopped resumes from its checkpoint with the same secret, so with the same patients.

    Args:
        step: Network, plan and source.
        patients: All training patients of this site.
        checkpoints: Of this step.
        report: Called with the patients done and the number drawn.
        stopping: Whether to stop; asked before every patient.

    Returns:
        f32[plan.moving.size]: summed in float64, before any noise. Zeros if no patient was drawn.

    Raises:
        Stopped: `stopping` returned true; a checkpoint is written.
    """
    privacy = _privacy_of(step.plan)
    for part, parameter in zip(parts_of(step.net).values(), step.net.parameters(), strict=True):
        parameter.requires_grad_(is_trainable(part, step.plan.training.trainable))
    step.net.train()
    saved = checkpoints.load()
    if saved is None:
        secret, done, total = secrets.token_bytes(_SECRET_BYTES), 0, np.zeros(step.plan.moving.size)
    else:
        secret = saved.tensors["secret"].numpy().tobytes()
        # The sum in float64 as it was, so that a resumed step gives the same bits.
        done, total = saved.numbers["done"], saved.tensors["total"].numpy().copy()
    drawn = np.flatnonzero(SecretStream(secret, _SAMPLING).uniform(len(patients)) < privacy.sampling_rate).tolist()

    def save(done: int) -> None:
        of_secret = torch.frombuffer(bytearray(secret), dtype=torch.uint8)
        checkpoints.save(done, {"done": done}, {"secret": of_secret, "total": torch.from_numpy(total)})

    if saved is None:
        save(0)  # before the first draw: a crash must not draw other patients after these were looked at
    for number in range(done, len(drawn)):
        if stopping():
            save(number)
            raise Stopped
        # Minus: the aggregator adds the mean to the model, and the loss falls against its gradient.
        total -= clipped_gradient(step, patients[drawn[number]], privacy.clip_norm, secret)
        if checkpoints.due():
            save(number + 1)
        report(number + 1, len(drawn))
    return total.astype(np.float32)


def clipped_gradient(step: PrivateStep, patient: Patient, clip_norm: float, secret: bytes) -> NDArray[np.float64]:
    """Return the gradient of the mean loss of a patient's studies, of norm `clip_norm` at most: f64[plan.moving.size].

    A gradient that is not finite counts as zeros: a refusal would tell something about this patient.

    Source: Abadi et al., CCS 2016, algorithm 1, with a patient in place of an example.

    Args:
        step: Network, plan and source.
        patient: Studies of one patient, one or more.
        clip_norm: Largest L2 norm.
        secret: 32 bytes, of this step.
    """
    step.net.zero_grad()
    for study in patient:
        coins = _seed(secret, patient[0].patient_key, study.study_key)
        # Augmentation and dropout of this study alone.
        torch.manual_seed(coins >> 64)
        sample = step.source.sample(study, np.random.default_rng(coins))
        with step.compute.autocast():
            output = step.net(sample.x, sample.mask, sample.geometry)
        loss = training_loss(output, sample).sum() / len(patient)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    moving = [parameter for parameter in step.net.parameters() if parameter.requires_grad]
    # Zeros where a study does not reach a tensor: every gradient has the plan's length.
    gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in moving]
    gradient: NDArray[np.float64] = torch.cat([value.reshape(-1).double().cpu() for value in gradients]).numpy()
    return clipped(gradient, clip_norm)


def clipped(gradient: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    """Return f64[k]: a gradient scaled down to L2 norm `clip_norm` if it is longer; zeros if it is not finite."""
    norm = math.sqrt(float(gradient @ gradient))
    if not math.isfinite(norm):
        return np.zeros_like(gradient)
    return gradient * min(1.0, clip_norm / norm) if norm else gradient


def patient_histograms(
    net: Network, patients: Sequence[Patient], loader: Loader, compute: Compute, stopping: Callable[[], bool]
) -> NDArray[np.int64]:
    """Count validation patients by label, truth and bin of the logit, each patient once a label.

    A patient's first study, by its key, decides. Its label is the study's, so is its logit.

    Args:
        net: The base model, of any mode; it is in eval mode afterwards.
        patients: The validation patients.
        loader: Of their pixels.
        compute: Where `net` is.
        stopping: Whether to stop; asked before every patient.

    Returns:
        int64[6,2,64], as `slice_histograms`.

    Raises:
        Stopped: `stopping` returned true. The evaluation begins again after it.
    """
    counts = np.zeros(HISTOGRAM_SHAPE, np.int64)
    net.eval()
    for patient in patients:
        if stopping():
            raise Stopped
        sample = loader.sample(patient[0], None)
        with compute.inference():
            logits = clamp_any(net(sample.x, sample.mask, sample.geometry).study_logits)[0].float().cpu().numpy()
        labels = sample.study_labels[0].cpu().numpy().astype(np.int64)
        known = labels != MISSING
        # A logit that is not a number counts as an undecided one: a refusal would tell something about this patient.
        bins = bin_of(np.nan_to_num(logits))
        counts[np.arange(len(LABELS))[known], labels[known], bins[known]] += 1
    return counts


def _privacy_of(plan: TrainingPlan) -> Privacy:
    if plan.privacy is None:
        raise AssertionError("the caller looks at plan.privacy first")
    return plan.privacy


def _seed(secret: bytes, *parts: str) -> int:
    digest = hashlib.sha256("\x00".join(["hemofed private coins v1", secret.hex(), *parts]).encode()).digest()
    return int.from_bytes(digest[:15], "big")  # 120 bits: 56 of them seed torch, all seed numpy
