"""Fit a model's calibration to one site's own patients: see `site_client.calibration.model`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from federation.labels import LABELS, MISSING
from numpy.typing import NDArray

from site_client.calibration.model import (
    HEIGHT_BINS,
    Calibration,
    Calibrations,
    Reals,
    fit_temperature,
    prior_offset,
)
from site_client.ingest.records import StudyRecord
from site_client.model.inputs import HEIGHT
from site_client.model.network import Network, SequenceNet
from site_client.training.compute import Compute
from site_client.training.data import Loader, Split
from site_client.training.sampling import sampling_weights
from site_client.training.study_labels import study_labels

_SHRINKAGE: Final = 20.0  # slices of a bin of heights that weigh as much as the overall prevalence


@dataclass(frozen=True, eq=False)
class _Scores:
    """Raw log-odds f32[N,6], labels int8[N,6] and heights f64[N] (of slices) of N slices or studies."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int8]
    heights: Reals


def calibrate(net: Network, split: Split, loader: Loader, compute: Compute) -> Calibrations:
    """Fit offsets to the training patients' prevalences, and temperatures to the validation patients.

    Args:
        net: On the device of `compute`; it is in eval mode afterwards.
        split: No test patient is in it. Without validation patients all temperatures are 1.
        loader: Of the pixels, with the training's slices per study.
        compute: Where `net` is.
    """
    offsets = prior_offsets(split.training, loader, net)
    slices, studies = _score(net, split.validation, loader, compute)
    return Calibrations(_with_temperature(offsets.slices, slices), _with_temperature(offsets.studies, studies))


def prior_offsets(training: Sequence[StudyRecord], loader: Loader, net: Network) -> Calibrations:
    """Compute the offsets from labels alone: the prevalence among patients against that in what training reads.

    Training draws studies with hemorrhage more often, and reads slabs of them that hold hemorrhage. Both are counted as
    `sampling` draws them: for a network without a recurrence only the slabs that train its backbone. Where whole
    studies are read, a study counts by its own labels.

    Args:
        training: The training studies.
        loader: With the training's slices per study; all studies are in its cache.
        net: The network that is trained.

    Returns:
        Offsets of slices and of studies, six each in nats; all temperatures are 1.
    """
    sampler = loader.sampler(training) if net.has_slice_outputs else None
    anchored_only = isinstance(net, SequenceNet) and net.reader.sequence is None
    slices, studies = _Counts(HEIGHT_BINS), _Counts(1)
    for study, draws in zip(training, sampling_weights(training), strict=True):
        labels, heights = loader.labels_and_heights(study)
        own = study_labels(study)[None]
        read, slabs, slab_labels = np.ones(len(labels)), np.ones(1), own
        if sampler is not None:
            shown = sampler.shown(labels, heights, anchored_only=anchored_only)
            read, slabs = shown.slices, shown.slabs
            slab_labels = own if len(slabs) == 1 else shown.slab_labels
        bins = (heights * HEIGHT_BINS).astype(np.int64).clip(max=HEIGHT_BINS - 1)
        slices.add(0, labels, np.ones(len(labels)), bins)
        slices.add(1, labels, draws * read, bins)
        studies.add(0, own, np.ones(1), np.zeros(1, np.int64))
        studies.add(1, slab_labels, draws * slabs, np.zeros(len(slabs), np.int64))
    return Calibrations(slices.calibration(by_height=sampler is not None), studies.calibration(by_height=False))


class _Counts:
    """Weights of known and of positive labels among patients (0) and in training (1): f64[2,bins,6] each."""

    def __init__(self, bins: int) -> None:
        self._known, self._positive = np.zeros((2, bins, len(LABELS))), np.zeros((2, bins, len(LABELS)))

    def add(self, where: Literal[0, 1], labels: NDArray[np.int8], weights: Reals, bins: NDArray[np.int64]) -> None:
        """Add rows int8[N,6] with weights f64[N] to their bins int64[N]."""
        np.add.at(self._known[where], bins, weights[:, None] * (labels != MISSING))
        np.add.at(self._positive[where], bins, weights[:, None] * (labels == 1))

    def calibration(self, *, by_height: bool) -> Calibration:
        known, positive = self._known.sum(axis=1), self._positive.sum(axis=1)
        overall = np.divide(positive, known, out=np.full_like(known, np.nan), where=known > 0)
        offset = prior_offset(overall[0], overall[1])
        if not by_height:
            return Calibration(offset=tuple(offset.tolist()))
        # Rare labels have few positives in a bin, so each bin's prevalence is drawn towards the overall one.
        binned = (self._positive + _SHRINKAGE * overall[:, None]) / (self._known + _SHRINKAGE)
        rows = [prior_offset(patients, in_training) - offset for patients, in_training in zip(*binned, strict=True)]
        return Calibration(tuple(offset.tolist()), by_height=tuple(tuple(row.tolist()) for row in rows))


def _with_temperature(calibration: Calibration, scores: _Scores) -> Calibration:
    # Before `any` is raised: its own temperature must not depend on the subtypes.
    shifted = calibration.shifted(torch.from_numpy(scores.logits), torch.from_numpy(scores.heights)).numpy()
    return replace(calibration, temperature=tuple(fit_temperature(shifted, scores.labels).tolist()))


def _score(net: Network, studies: Sequence[StudyRecord], loader: Loader, compute: Compute) -> tuple[_Scores, _Scores]:
    """Score all slices, and all studies."""
    net.eval()
    of_slices, of_studies = _Lists(), _Lists()
    for study in studies:
        sample = loader.sample(study, None)
        with compute.inference():
            output = net(sample.x, sample.mask, sample.geometry)
        if net.has_slice_outputs:
            of_slices.add(output.slice_logits[0], sample.slice_labels[0], sample.geometry[0, :, HEIGHT])
        of_studies.add(output.study_logits, sample.study_labels, sample.geometry[:, 0, HEIGHT])
    return of_slices.joined(), of_studies.joined()


class _Lists:
    def __init__(self) -> None:
        # One array without rows each: without a validation study there is still something to join.
        self._logits, self._labels, self._heights = [np.zeros((0, 6))], [np.zeros((0, 6))], [np.zeros(0)]

    def add(self, logits: torch.Tensor, labels: torch.Tensor, heights: torch.Tensor) -> None:
        self._logits.append(logits.float().cpu().numpy())
        self._labels.append(labels.cpu().numpy())
        self._heights.append(heights.cpu().numpy())

    def joined(self) -> _Scores:
        logits, labels, heights = (np.concatenate(part) for part in (self._logits, self._labels, self._heights))
        return _Scores(logits.astype(np.float32), labels.astype(np.int8), heights.astype(np.float64))
