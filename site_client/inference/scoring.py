"""Score labelled studies with a network: probabilities beside labels, the loss, and the time it took."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from federation.labels import LABELS
from numpy.typing import NDArray

from site_client.inference.scores import Scored
from site_client.ingest.records import StudyRecord
from site_client.model.inputs import HEIGHT
from site_client.model.network import Network, clamp_any
from site_client.training.compute import Compute
from site_client.training.data import Loader
from site_client.training.loss import reported_loss


@dataclass(frozen=True)
class ScoredStudies:
    """The scores of a set of studies.

    Attributes:
        slices: One row a slice; no row from a network without slice outputs.
        studies: One row a study. Patients have the same numbers in both.
        loss: Mean reported loss over studies.
        ms_per_slice: Milliseconds of the network alone.
    """

    slices: Scored
    studies: Scored
    loss: float
    ms_per_slice: float


def clock_of(compute: Compute) -> Callable[[], float]:
    """Return a clock in seconds: processor time per thread on a CPU, so that other programs do not count."""
    if compute.device.type == "cpu":
        threads = torch.get_num_threads()
        return lambda: time.process_time() / threads

    def synchronized() -> float:
        torch.cuda.synchronize()  # kernels are queued: without this the clock would stop before they ran
        return time.perf_counter()

    return synchronized


def score_studies(net: Network, studies: Sequence[StudyRecord], loader: Loader, compute: Compute) -> ScoredStudies:
    """Score every study, not augmented. `any` is raised to its highest subtype, as in all outputs of a model.

    Args:
        net: On the device of `compute`; it is in eval mode afterwards.
        studies: One or more.
        loader: Of their pixels.
        compute: Where `net` is. Scores are computed in float32 whatever the training's precision.
    """
    net.eval()
    clock = clock_of(compute)
    slices, slice_labels = [np.empty((0, len(LABELS)))], [np.empty((0, len(LABELS)), np.int8)]
    whole, study_labels, losses = [], [], []
    slices_of, heights = [], [np.empty(0)]
    seconds, slices_seen = 0.0, 0
    for study in studies:
        sample = loader.sample(study, None)
        start = clock()  # after the sample is made: reading and preparing pixels is no part of the network's time
        with compute.inference():
            output = net(sample.x, sample.mask, sample.geometry)
        seconds += clock() - start
        losses.append(reported_loss(output, sample).item())
        slices_seen += sample.mask.shape[1]
        slices_of.append(output.slice_logits.shape[1])
        slices.append(_probabilities(output.slice_logits[0]))
        # A network without slice outputs has no slice logits, so no slice's labels either.
        slice_labels.append(_labels(sample.slice_labels[0, : slices_of[-1]]))
        heights.append(sample.geometry[0, : slices_of[-1], HEIGHT].double().cpu().numpy())
        whole.append(_probabilities(output.study_logits))
        study_labels.append(_labels(sample.study_labels))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(study.patient_key for study in studies))}
    patients = np.array([numbers[study.patient_key] for study in studies], np.int64)
    return ScoredStudies(
        Scored(
            np.concatenate(slices),
            np.concatenate(slice_labels),
            np.repeat(patients, slices_of),
            np.concatenate(heights),
        ),
        Scored(np.concatenate(whole), np.concatenate(study_labels), patients),
        float(np.mean(losses)),
        1000 * seconds / slices_seen,
    )


def _probabilities(logits: torch.Tensor) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = clamp_any(logits).double().sigmoid().cpu().numpy()
    return probabilities


def _labels(labels: torch.Tensor) -> NDArray[np.int8]:
    return labels.cpu().numpy().astype(np.int8)
