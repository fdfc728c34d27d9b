"""Score last models on test patients, for the measures of `site_client.inference.metrics`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from federation.labels import ANY
from federation.manifest import Model
from numpy.typing import NDArray

from deploy.simulation.arms import TaskContext, network_of
from site_client.inference.intervals import weighted_log_loss
from site_client.inference.scores import Column, Scored
from site_client.ingest.records import StudyRecord
from site_client.training.score_histograms import slice_scores


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one model on the N test slices of one site.

    Attributes:
        logits: f32[N,6].
        labels: int8[N,6]: 0 or 1.
        patient: int64[N], the number of each slice's patient, from 0.
        study: int64[N], likewise.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int8]
    patient: NDArray[np.int64]
    study: NDArray[np.int64]

    @property
    def patients(self) -> int:
        """Number of patients."""
        return int(self.patient.max()) + 1

    @property
    def log_loss(self) -> float:
        """Weighted log loss of RSNA 2019; NaN if undefined."""
        probabilities = 1 / (1 + np.exp(-self.logits.astype(np.float64)))
        value = weighted_log_loss([Scored(probabilities, self.labels, self.patient)]).value
        return float("nan") if value is None else value

    def column(self, label: int = ANY) -> Column:
        """Return one label for measures that depend on the order of scores only: it holds log-odds."""
        return Column(self.logits[:, label].astype(np.float64), self.labels[:, label], self.patient, self.patients)

    def of_studies(self) -> "Scores":
        """Return one row a study: the maxima over its slices, of logits and of labels."""
        studies = range(int(self.study.max()) + 1)
        rows = [self.study == index for index in studies]
        return Scores(
            np.stack([self.logits[row].max(axis=0) for row in rows]),
            np.stack([self.labels[row].max(axis=0) for row in rows]),
            np.array([self.patient[row][0] for row in rows]),
            np.arange(len(rows)),
        )


def score(context: TaskContext, model: Model, studies: Sequence[StudyRecord]) -> Scores:
    """Score a model on test studies, whose labels are the phantom's truth (see `simulation.patients`)."""
    net, loader, compute = network_of(context, model), context.loader(), context.compute()
    scored = [slice_scores(net, study, loader, compute) for study in studies]
    patients = {key: number for number, key in enumerate(dict.fromkeys(study.patient_key for study in studies))}
    lengths = [len(logits) for logits, _ in scored]
    return Scores(
        np.concatenate([logits for logits, _ in scored]),
        np.concatenate([labels for _, labels in scored]),
        np.repeat([patients[study.patient_key] for study in studies], lengths),
        np.repeat(np.arange(len(studies)), lengths),
    )
