"""Score histograms of validation patients, which the federation adds up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from federation.encoding import HISTOGRAM_SHAPE
from federation.encoding.header import bin_of
from federation.labels import LABELS, MISSING
from numpy.typing import NDArray

from site_client.ingest.records import StudyRecord
from site_client.model.network import Network, clamp_any
from site_client.training.checkpoint import Checkpoints
from site_client.training.compute import Compute
from site_client.training.data import Loader
from site_client.training.loop import Stopped
from site_client.training.patient_scores import study_loss


@dataclass(frozen=True, eq=False)
class ValidationScores:
    """A model on a site's validation studies.

    Attributes:
        by_study: int16[studies,6,2,64], slices in the order of LABELS, SIDES and ascending bins.
        losses: f64[studies], nats; NaN for a study without a known label.
    """

    by_study: NDArray[np.int16]  # a study has 400 slices at most
    losses: NDArray[np.float64]

    @property
    def histograms(self) -> NDArray[np.int64]:
        """Return int64[6,2,64], of all studies."""
        summed: NDArray[np.int64] = self.by_study.sum(axis=0, dtype=np.int64)
        return summed


def slice_histograms(
    net: Network,
    studies: Sequence[StudyRecord],
    loader: Loader,
    compute: Compute,
    checkpoints: Checkpoints,
    report: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> ValidationScores:
    """Count slices by label, truth and bin of the logit, and compute each study's loss.

    A network without slice outputs counts studies.

    `any` is raised to its highest subtype first, as in every output of a model. Missing labels are not counted. A job
    that was stopped resumes from its checkpoint.

    Args:
        net: Of any mode; it is in eval mode afterwards.
        studies: The validation studies.
        loader: Of their pixels.
        compute: Where `net` is.
        checkpoints: Of this evaluation.
        report: Called with the studies done and their total.
        stopping: Whether to stop; asked before every study.

    Raises:
        Stopped: `stopping` returned true; a checkpoint is written.
    """
    saved = checkpoints.load()
    if saved is not None and "by_study" not in saved.tensors:  # of a version before the gate: evaluated anew
        saved = None
    shape = (len(studies), *HISTOGRAM_SHAPE)
    counts = np.zeros(shape, np.int16) if saved is None else saved.tensors["by_study"].numpy().copy()
    losses = np.full(len(studies), np.nan) if saved is None else saved.tensors["losses"].numpy().copy()
    done = 0 if saved is None else saved.numbers["done"]
    for index in range(done, len(studies)):
        stop = stopping()
        # Before the study is scored: a checkpoint names the first study that is not counted.
        if stop or checkpoints.due():
            checkpoints.save(
                index, {"done": index}, {"by_study": torch.from_numpy(counts), "losses": torch.from_numpy(losses)}
            )
        if stop:
            raise Stopped
        logits, labels = slice_scores(net, studies[index], loader, compute)
        known = labels != MISSING
        label = np.broadcast_to(np.arange(len(LABELS)), labels.shape)
        np.add.at(counts[index], (label[known], labels[known], bin_of(logits)[known]), 1)
        losses[index] = study_loss(logits, labels)
        report(index + 1, len(studies))
    return ValidationScores(counts, losses)


def slice_scores(
    net: Network, study: StudyRecord, loader: Loader, compute: Compute
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Score one study, not augmented.

    Returns:
        Clamped logits f32[T,6] and labels int8[T,6] (0, 1, -1 missing) of its slices; one row, the study's, of a
        network without slice outputs.
    """
    sample = loader.sample(study, None)
    net.eval()
    with compute.inference():
        output = net(sample.x, sample.mask, sample.geometry)
    logits = output.slice_logits[0] if net.has_slice_outputs else output.study_logits
    labels = sample.slice_labels[0] if net.has_slice_outputs else sample.study_labels
    return clamp_any(logits).float().cpu().numpy(), labels.cpu().numpy().astype(np.int8)
