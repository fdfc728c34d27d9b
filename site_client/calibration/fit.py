"""What a site learns about a model's log-odds from its own patients: see model.calibration."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from federation.labels import LABELS
from numpy.typing import NDArray

from site_client.calibration.model import Calibration, Calibrations, fit_temperature, prior_offset
from site_client.ingest.records import StudyRecord
from site_client.model.network import Network
from site_client.training.compute import Compute
from site_client.training.data import Loader, Split, complete, sampling_weights, study_labels

Reals = NDArray[np.float64]


def calibrate(net: Network, split: Split, loader: Loader, compute: Compute) -> Calibrations:
    """Offsets from what training showed and what its patients have; temperatures from the validation patients.

    Neither ever sees a test patient. A split without validation patients gives offsets alone.
    """
    offsets = prior_offsets(split.training)
    slices, studies = _scores(net, split.validation, loader, compute)
    return Calibrations(_with_temperature(offsets.slices, *slices), _with_temperature(offsets.studies, *studies))


def prior_offsets(training: Sequence[StudyRecord]) -> Calibrations:
    """The part that needs no network. Slices are counted as they were taken, before thin ones are averaged."""
    once, looks = np.ones(len(training)), sampling_weights(training)
    slices = [complete(study.slice_labels) for study in training]
    studies = [study_labels(study)[None] for study in training]
    return Calibrations(_offset(slices, once, looks), _offset(studies, once, looks))


def _offset(labels: list[NDArray[np.int8]], once: Reals, looks: Reals) -> Calibration:
    offset = prior_offset(_prevalence(labels, once), _prevalence(labels, looks))
    return Calibration(offset=tuple(offset.tolist()))


def _prevalence(labels: list[NDArray[np.int8]], weights: Reals) -> Reals:
    """f64[6]: the share of positives among known cells, by the weights of studies; nan where nothing is known."""
    rows, weight = np.concatenate(labels), np.repeat(weights, [len(each) for each in labels])
    positive, known = weight @ (rows == 1), weight @ (rows >= 0)
    prevalence: Reals = np.divide(positive, known, out=np.full(len(LABELS), np.nan), where=known > 0)
    return prevalence


def _with_temperature(calibration: Calibration, logits: NDArray[np.float32], labels: NDArray[np.int8]) -> Calibration:
    fitted = fit_temperature(logits + np.array(calibration.offset), labels)
    return replace(calibration, temperature=tuple(fitted.tolist()))


Scores = tuple[NDArray[np.float32], NDArray[np.int8]]


def _scores(net: Network, studies: Sequence[StudyRecord], loader: Loader, compute: Compute) -> tuple[Scores, Scores]:
    """Raw log-odds and labels of all slices, and of all studies: f32[N,6] and int8[N,6] each."""
    net.eval()
    slices: list[Scores] = [_NOBODY]
    whole: list[Scores] = [_NOBODY]
    for study in studies:
        sample = loader.sample(study, None)
        with torch.inference_mode(), compute.autocast():
            verdict = net(sample.x, sample.mask, sample.geometry)
        if net.has_slice_outputs:
            slices.append((verdict.slice_logits[0].float().cpu().numpy(), _int8(sample.slice_labels[0])))
        whole.append((verdict.study_logits.float().cpu().numpy(), _int8(sample.study_labels)))
    return _joined(slices), _joined(whole)


_NOBODY: Scores = (np.zeros((0, len(LABELS)), np.float32), np.zeros((0, len(LABELS)), np.int8))


def _int8(labels: torch.Tensor) -> NDArray[np.int8]:
    return labels.cpu().numpy().astype(np.int8)


def _joined(parts: list[Scores]) -> Scores:
    return np.concatenate([logits for logits, _ in parts]), np.concatenate([labels for _, labels in parts])
