"""Fit a model's calibration to one site's own patients: see `site_client.calibration.model`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from federation.labels import LABELS, MISSING
from numpy.typing import NDArray

from site_client.calibration.model import Calibration, Calibrations, Reals, fit_temperature, prior_offset
from site_client.ingest.records import StudyRecord
from site_client.model.network import Network
from site_client.training.compute import Compute
from site_client.training.data import Loader, Split, complete, sampling_weights, study_labels

LogitsAndLabels = tuple[NDArray[np.float32], NDArray[np.int8]]


def calibrate(net: Network, split: Split, loader: Loader, compute: Compute) -> Calibrations:
    """Fit offsets to the training patients' prevalences, and temperatures to the validation patients.

    Args:
        net: On the device of `compute`; it is in eval mode afterwards.
        split: No test patient is in it. Without validation patients all temperatures are 1.
        loader: Of the pixels.
        compute: Device and precision.
    """
    offsets = prior_offsets(split.training)
    slices, studies = _logits_and_labels(net, split.validation, loader, compute)
    return Calibrations(_with_temperature(offsets.slices, *slices), _with_temperature(offsets.studies, *studies))


def prior_offsets(training: Sequence[StudyRecord]) -> Calibrations:
    """Compute the offsets, which need no network. Slices count as acquired, before thin ones are averaged."""
    once, drawn = np.ones(len(training)), sampling_weights(training)
    slices = [complete(study.slice_labels) for study in training]
    studies = [study_labels(study)[None] for study in training]
    return Calibrations(_offset(slices, once, drawn), _offset(studies, once, drawn))


def _offset(labels: list[NDArray[np.int8]], once: Reals, drawn: Reals) -> Calibration:
    offset = prior_offset(_prevalence(labels, once), _prevalence(labels, drawn))
    return Calibration(offset=tuple(offset.tolist()))


def _prevalence(labels: list[NDArray[np.int8]], weights: Reals) -> Reals:
    """f64[6]: the share of positives among known labels, by the weights of studies; NaN where no label is known."""
    rows, weight = np.concatenate(labels), np.repeat(weights, [len(study) for study in labels])
    positive, known = weight @ (rows == 1), weight @ (rows != MISSING)
    prevalence: Reals = np.divide(positive, known, out=np.full(len(LABELS), np.nan), where=known > 0)
    return prevalence


def _with_temperature(calibration: Calibration, logits: NDArray[np.float32], labels: NDArray[np.int8]) -> Calibration:
    temperature = fit_temperature(logits + np.array(calibration.offset), labels)
    return replace(calibration, temperature=tuple(temperature.tolist()))


def _logits_and_labels(
    net: Network, studies: Sequence[StudyRecord], loader: Loader, compute: Compute
) -> tuple[LogitsAndLabels, LogitsAndLabels]:
    """Raw log-odds f32[N,6] and labels int8[N,6] of all slices, and of all studies."""
    net.eval()
    empty: LogitsAndLabels = (np.zeros((0, len(LABELS)), np.float32), np.zeros((0, len(LABELS)), np.int8))
    of_slices, of_studies = [empty], [empty]
    for study in studies:
        sample = loader.sample(study, None)
        with torch.inference_mode(), compute.autocast():
            output = net(sample.x, sample.mask, sample.geometry)
        if net.has_slice_outputs:
            of_slices.append(_arrays(output.slice_logits[0], sample.slice_labels[0]))
        of_studies.append(_arrays(output.study_logits, sample.study_labels))
    return _concatenated(of_slices), _concatenated(of_studies)


def _arrays(logits: torch.Tensor, labels: torch.Tensor) -> LogitsAndLabels:
    return logits.float().cpu().numpy(), labels.cpu().numpy().astype(np.int8)


def _concatenated(pairs: list[LogitsAndLabels]) -> LogitsAndLabels:
    return np.concatenate([logits for logits, _ in pairs]), np.concatenate([labels for _, labels in pairs])
