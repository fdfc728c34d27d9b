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
from site_client.training.data import Loader, Split
from site_client.training.sampling import sampling_weights
from site_client.training.study_labels import study_labels

LogitsAndLabels = tuple[NDArray[np.float32], NDArray[np.int8]]


def calibrate(net: Network, split: Split, loader: Loader, compute: Compute) -> Calibrations:
    """Fit offsets to the training patients' prevalences, and temperatures to the validation patients.

    Args:
        net: On the device of `compute`; it is in eval mode afterwards.
        split: No test patient is in it. Without validation patients all temperatures are 1.
        loader: Of the pixels, with the training's slices per study.
        compute: Device and precision.
    """
    offsets = prior_offsets(split.training, loader, net)
    slices, studies = _logits_and_labels(net, split.validation, loader, compute)
    return Calibrations(_with_temperature(offsets.slices, *slices), _with_temperature(offsets.studies, *studies))


def prior_offsets(training: Sequence[StudyRecord], loader: Loader, net: Network) -> Calibrations:
    """Compute the offsets from labels alone: the prevalence among patients against that in what training reads.

    Training draws studies with hemorrhage more often, and reads slabs of them that hold hemorrhage. Both are counted as
    `sampling` draws them. Where whole studies are read, a study counts by its own labels.

    Args:
        training: The training studies.
        loader: With the training's slices per study; all studies are in its cache.
        net: A network without slice outputs is trained on whole studies.
    """
    sampler = loader.sampler(training) if net.has_slice_outputs else None
    slices, studies = _Counts(), _Counts()
    for study, draws in zip(training, sampling_weights(training), strict=True):
        labels, heights = loader.labels_and_heights(study)
        own = study_labels(study)[None]
        read, slabs, slab_labels = np.ones(len(labels)), np.ones(1), own
        if sampler is not None:
            read, slabs, of_slabs = sampler.shown(labels, heights)
            slab_labels = own if len(slabs) == 1 else of_slabs
        slices.add(labels, np.ones(len(labels)), labels, draws * read)
        studies.add(own, np.ones(1), slab_labels, draws * slabs)
    return Calibrations(slices.calibration(), studies.calibration())


class _Counts:
    """Weights of known and of positive labels, among patients and in training: f64[2,6] each."""

    def __init__(self) -> None:
        self._known, self._positive = np.zeros((2, len(LABELS))), np.zeros((2, len(LABELS)))

    def add(
        self, of_patient: NDArray[np.int8], weights: Reals, in_training: NDArray[np.int8], training_weights: Reals
    ) -> None:
        """Add rows int8[N,6] with weights f64[N], and rows int8[M,6] of the same study with weights f64[M]."""
        for index, (labels, weight) in enumerate(((of_patient, weights), (in_training, training_weights))):
            self._known[index] += weight @ (labels != MISSING)
            self._positive[index] += weight @ (labels == 1)

    def calibration(self) -> Calibration:
        known = self._known > 0
        prevalence = np.divide(self._positive, self._known, out=np.full_like(self._known, np.nan), where=known)
        return Calibration(offset=tuple(prior_offset(prevalence[0], prevalence[1]).tolist()))


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
