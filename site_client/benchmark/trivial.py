"""Trivial rows: what a slice's height, and a histogram of its brain window, tell without any network.

A network that does not beat the second row has not been shown to see hemorrhage. Both are logistic regressions on the
same training patients, evaluated on the same validation patients as the arms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from federation.labels import LABELS, MISSING
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from site_client.benchmark.arms import FinishedArm
from site_client.inference.scores import Reals, Scored
from site_client.ingest.records import StudyRecord
from site_client.model.inputs import HEIGHT, merge_labels
from site_client.training.data import Loader, Split
from site_client.training.study_labels import complete, study_labels

POSITION: Final = "position"
HISTOGRAM: Final = "position + histogram"
HISTOGRAM_BINS: Final = 24
_BRAIN: Final = 0  # the window of PreparedStudy whose histogram is taken
_HIGHEST: Final = 3  # slices of a study whose mean log-odds are the study's
_CERTAIN: Final = 20.0


def trivial_rows(split: Split, loader: Loader) -> list[FinishedArm]:
    """Fit and evaluate both rows.

    Args:
        split: Of the benchmark.
        loader: All studies are in its cache.
    """
    training, validation = (_slices_of(side, loader) for side in (split.training, split.validation))
    # Heights enter through a spline, so that a row may know the belt in which most bleeds lie.
    spline = SplineTransformer(n_knots=6, extrapolation="constant").fit(training.heights[:, None])
    designs = [(spline.transform(side.heights[:, None]), side.histograms) for side in (training, validation)]
    rows = []
    for name, parts in ((POSITION, 1), (HISTOGRAM, 2)):
        fitted, predicted = (np.concatenate(design[:parts], axis=1) for design in designs)
        logits = _logits(fitted, training.labels, predicted)
        parameters = (fitted.shape[1] + 1) * len(LABELS)
        rows.append(_row(name, parameters, logits, split.validation, validation))
    return rows


@dataclass(frozen=True, eq=False)
class _Slices:
    """N slices: heights f64[N], histograms f64[N,24], labels int8[N,6], and the number of slices of each study."""

    heights: Reals
    histograms: Reals
    labels: NDArray[np.int8]
    lengths: list[int]


def _slices_of(studies: Sequence[StudyRecord], loader: Loader) -> _Slices:
    heights, histograms, labels = [], [], []
    for study in studies:
        prepared = loader.prepared(study)
        bins = prepared.windows[:, _BRAIN].reshape(prepared.slices, -1).astype(np.int64) * HISTOGRAM_BINS // 256
        histograms.append(np.stack([np.bincount(row, minlength=HISTOGRAM_BINS) for row in bins]) / bins.shape[1])
        heights.append(prepared.geometry[:, HEIGHT].astype(np.float64))
        labels.append(merge_labels(complete(study.slice_labels), prepared.source_slices))
    lengths = [len(own) for own in heights]
    return _Slices(np.concatenate(heights), np.concatenate(histograms), np.concatenate(labels), lengths)


def _logits(fitted: Reals, labels: NDArray[np.int8], predicted: Reals) -> Reals:
    """Log-odds f64[M,6] of rows f64[M,F], by one logistic regression a label on rows f64[N,F]."""
    logits = np.empty((len(predicted), len(LABELS)))
    for label in range(len(LABELS)):
        known = labels[:, label] != MISSING
        if len(np.unique(labels[known, label])) < 2:  # a label of one kind is certain
            logits[:, label] = _CERTAIN if (labels[known, label] == 1).any() else -_CERTAIN
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        logits[:, label] = model.fit(fitted[known], labels[known, label]).decision_function(predicted)
    return logits


def _row(name: str, parameters: int, logits: Reals, studies: Sequence[StudyRecord], slices: _Slices) -> FinishedArm:
    numbers = {key: number for number, key in enumerate(dict.fromkeys(study.patient_key for study in studies))}
    patients = np.array([numbers[study.patient_key] for study in studies], np.int64)
    of_slices = Scored(_sigmoid(logits), slices.labels, np.repeat(patients, slices.lengths), slices.heights)
    # The mean of a study's highest slices is steadier than its maximum, and separates studies better.
    own = np.split(logits, np.cumsum(slices.lengths)[:-1])
    highest = np.stack([np.sort(rows, axis=0)[-_HIGHEST:].mean(axis=0) for rows in own])
    of_studies = Scored(_sigmoid(highest), np.stack([study_labels(study) for study in studies]), patients)
    return FinishedArm(name, parameters, (), None, None, "", of_slices, of_studies)


def _sigmoid(logits: Reals) -> Reals:
    probabilities: Reals = 0.5 * (1 + np.tanh(logits / 2))
    return probabilities
