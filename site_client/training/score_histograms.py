"""Judging a model on the validation patients: scores, and the histograms that the federation adds up."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from federation.encoding import HISTOGRAM_SHAPE
from federation.encoding.header import bin_of
from federation.labels import LABELS
from numpy.typing import NDArray

from site_client.ingest.records import StudyRecord
from site_client.model.network import Network, clamp_any
from site_client.training.checkpoint import Checkpoints
from site_client.training.compute import Compute
from site_client.training.data import Loader
from site_client.training.loop import Stopped


def slice_histograms(
    net: Network,
    studies: Sequence[StudyRecord],
    loader: Loader,
    compute: Compute,
    checkpoints: Checkpoints,
    report: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> NDArray[np.int64]:
    """int64[6,2,64]: of every label, how many negative and positive slices have a logit in each of federation's bins.

    `any` is raised to its highest subtype first, as in every answer the network gives. Slices whose label is missing
    are in no histogram. Raises Stopped after a checkpoint when `stopping` says so, and goes on from there.
    """
    counts, done = _resume(checkpoints)
    for index in range(done, len(studies)):
        stop = stopping()
        if stop or checkpoints.due():
            checkpoints.save(index, {"done": index}, {"counts": torch.from_numpy(counts)})
        if stop:
            raise Stopped
        logits, labels = slice_scores(net, studies[index], loader, compute)
        counts += _count(logits, labels)
        report(index + 1, len(studies))
    return counts


def slice_scores(
    net: Network, study: StudyRecord, loader: Loader, compute: Compute
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Clamped logits f32[T,6] and labels int8[T,6] (0, 1, -1 missing) of one study, not augmented.

    A network that answers for studies only gives one row: the study's.
    """
    sample = loader.sample(study, None)
    net.eval()
    with torch.inference_mode(), compute.autocast():
        verdict = net(sample.x, sample.mask, sample.geometry)
    logits = verdict.slice_logits[0] if net.has_slice_outputs else verdict.study_logits
    labels = sample.slice_labels[0] if net.has_slice_outputs else sample.study_labels
    return clamp_any(logits).float().cpu().numpy(), labels.cpu().numpy().astype(np.int8)


def auc_of_histogram(negative: NDArray[np.number], positive: NDArray[np.number]) -> float:
    """Chance that a positive scores above a negative, ties counting half; nan when either is missing.

    From counts per ascending bin: exact for the binned score.
    """
    pairs = float(negative.sum()) * float(positive.sum())
    if pairs == 0:
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum()) / pairs


def _count(logits: NDArray[np.float32], labels: NDArray[np.int8]) -> NDArray[np.int64]:
    counts = np.zeros(HISTOGRAM_SHAPE, np.int64)
    known = labels >= 0
    where = np.broadcast_to(np.arange(len(LABELS)), labels.shape)
    np.add.at(counts, (where[known], labels[known], bin_of(logits)[known]), 1)
    return counts


def _resume(checkpoints: Checkpoints) -> tuple[NDArray[np.int64], int]:
    saved = checkpoints.load()
    if saved is None:
        return np.zeros(HISTOGRAM_SHAPE, np.int64), 0
    return saved.tensors["counts"].numpy().copy(), saved.numbers["done"]
