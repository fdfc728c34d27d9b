"""What a network answers to studies with labels: chances beside the truth, the loss, and how long it took."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from federation.labels import LABELS
from numpy.typing import NDArray

from site_client.inference.metrics import Scored
from site_client.ingest.records import StudyRecord
from site_client.model.network import Network, clamp_any
from site_client.training.compute import Compute
from site_client.training.data import Loader
from site_client.training.loss import reported_loss


@dataclass(frozen=True)
class Answers:
    """`slices`, `studies`: one row each, patients numbered alike; no slices from a network that answers for studies
    only. `loss`: mean training loss over studies, nothing augmented. `ms_per_slice`: of the network alone.
    """

    slices: Scored
    studies: Scored
    loss: float
    ms_per_slice: float


def clock_of(compute: Compute) -> Callable[[], float]:
    """Seconds. On a CPU those this process got, per thread: what else the machine does is not the network's doing."""
    if compute.device.type == "cpu":
        threads = torch.get_num_threads()
        return lambda: time.process_time() / threads

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def answer(net: Network, studies: Sequence[StudyRecord], loader: Loader, compute: Compute) -> Answers:
    """For one study or more. `any` is raised to its highest subtype, as in all answers. Leaves the net in eval mode."""
    net.eval()
    clock = clock_of(compute)
    slices, slice_labels = [np.empty((0, len(LABELS)))], [np.empty((0, len(LABELS)), np.int8)]
    whole, study_labels, losses = [], [], []
    seconds, rows = 0.0, 0
    for study in studies:
        sample = loader.sample(study, None)
        start = clock()
        with torch.inference_mode(), compute.autocast():
            verdict = net(sample.x, sample.mask, sample.geometry)
        seconds += clock() - start
        losses.append(reported_loss(verdict, sample).item())
        rows += sample.mask.shape[1]
        if net.has_slice_outputs:
            slices.append(_chances(verdict.slice_logits[0]))
            slice_labels.append(_labels(sample.slice_labels[0]))
        whole.append(_chances(verdict.study_logits))
        study_labels.append(_labels(sample.study_labels))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(study.patient_key for study in studies))}
    patients = np.array([numbers[study.patient_key] for study in studies], np.int64)
    return Answers(
        Scored(np.concatenate(slices), np.concatenate(slice_labels), _by_slice(patients, slices[1:])),
        Scored(np.concatenate(whole), np.concatenate(study_labels), patients),
        float(np.mean(losses)),
        1000 * seconds / rows,
    )


def _by_slice(patients: NDArray[np.int64], slices: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
    return np.repeat(patients, [len(rows) for rows in slices]) if slices else np.empty(0, np.int64)


def _chances(logits: torch.Tensor) -> NDArray[np.float64]:
    chances: NDArray[np.float64] = clamp_any(logits).double().sigmoid().cpu().numpy()
    return chances


def _labels(labels: torch.Tensor) -> NDArray[np.int8]:
    return labels.cpu().numpy().astype(np.int8)
