"""Judging last models on test patients: answers beside the truth, to be measured by site_client.inference.metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from federation.labels import ANY
from federation.manifest import Model
from numpy.typing import NDArray

from deploy.simulation.arms import ArmPosition, network_of
from site_client.inference.metrics import Column, Scored, weighted_log_loss
from site_client.ingest.records import StudyRecord
from site_client.training.score_histograms import slice_scores


@dataclass(frozen=True, eq=False)
class Scores:
    """One model on one site's test patients: logits f32[N,6] and labels int8[N,6] of N slices; patient int64[N] counts
    from 0; study int64[N] likewise.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int8]
    patient: NDArray[np.int64]
    study: NDArray[np.int64]

    @property
    def patients(self) -> int:
        return int(self.patient.max()) + 1

    @property
    def log_loss(self) -> float:
        chances = 1 / (1 + np.exp(-self.logits.astype(np.float64)))
        value = weighted_log_loss(Scored(chances, self.labels, self.patient)).value
        return float("nan") if value is None else value

    def column(self, label: int = ANY) -> Column:
        """For measures of order, to which log-odds are as good as chances."""
        return Column(self.logits[:, label].astype(np.float64), self.labels[:, label], self.patient, self.patients)

    def of_studies(self) -> "Scores":
        """A study's score is its highest slice's; it is positive when a slice is."""
        studies = range(int(self.study.max()) + 1)
        rows = [self.study == index for index in studies]
        return Scores(
            np.stack([self.logits[row].max(axis=0) for row in rows]),
            np.stack([self.labels[row].max(axis=0) for row in rows]),
            np.array([self.patient[row][0] for row in rows]),
            np.arange(len(rows)),
        )


def judge(place: ArmPosition, model: Model, studies: Sequence[StudyRecord]) -> Scores:
    """Test labels are the truth; see simulation.patients."""
    net, loader, compute = network_of(place, model), place.loader(), place.compute()
    found = [slice_scores(net, study, loader, compute) for study in studies]
    patients = {key: number for number, key in enumerate(dict.fromkeys(study.patient_key for study in studies))}
    lengths = [len(logits) for logits, _ in found]
    return Scores(
        np.concatenate([logits for logits, _ in found]),
        np.concatenate([labels for _, labels in found]),
        np.repeat([patients[study.patient_key] for study in studies], lengths),
        np.repeat(np.arange(len(studies)), lengths),
    )
