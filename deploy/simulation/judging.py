"""Judging last models on test patients, and how sure the figures are.

The unit of chance is the patient: a bootstrap draw takes each site's test patients with replacement, all slices of a
patient together, and every arm and seed is judged on the same draw, so that differences are paired. With K[p, q] = how
many (positive slice of p, negative slice of q) pairs a model orders rightly, the AUC of a draw in which patient p comes
m[p] times is m'Km / (m'n+)(m'n-): exact, and cheap for thousands of draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from federation.manifest import Model
from numpy.typing import NDArray

from deploy.simulation.arms import Place, network_of
from site_client.ingest.records import StudyRecord
from site_client.model.labels import ANY
from site_client.training.evaluate import slice_scores, weighted_log_loss

DRAWS: Final = 2000
Reals = NDArray[np.float64]


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
    def log_loss(self) -> float:
        return weighted_log_loss(self.logits, self.labels)

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


@dataclass(frozen=True, eq=False)
class Pairs:
    """`wins` f64[P,P], ties a half; `positive`, `negative` f64[P]: slices of patient p."""

    wins: Reals
    positive: Reals
    negative: Reals

    def auc(self, multiplicity: Reals) -> Reals:
        """AUC of each draw: multiplicity f64[draws,P] -> f64[draws]; nan when a draw lacks one kind."""
        above = np.einsum("dp,pq,dq->d", multiplicity, self.wins, multiplicity, optimize=True)
        pairs = (multiplicity @ self.positive) * (multiplicity @ self.negative)
        with np.errstate(invalid="ignore", divide="ignore"):
            auc: Reals = above / pairs
        return auc


def judge(place: Place, model: Model, studies: Sequence[StudyRecord]) -> Scores:
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


def pairs_of(scores: Scores, label: int = ANY) -> Pairs:
    """Every positive slice against every negative one, counted by the patients they belong to."""
    truth, score = scores.labels[:, label], scores.logits[:, label]
    count = int(scores.patient.max()) + 1
    up, down = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    better = (score[up, None] > score[down]) + 0.5 * (score[up, None] == score[down])
    rows = _by_patient(scores.patient[up], count)
    columns = _by_patient(scores.patient[down], count)
    return Pairs(rows @ better @ columns.T, rows.sum(axis=1), columns.sum(axis=1))


def draw_patients(sizes: Mapping[str, int], draws: int, seed: int) -> dict[str, Reals]:
    """For each site how often each test patient comes in each draw: f64[draws+1, P]. Row 0 is the set itself."""
    rng = np.random.default_rng(seed)
    found = {}
    for site, size in sizes.items():
        drawn = rng.multinomial(size, np.full(size, 1 / size), size=draws)
        found[site] = np.concatenate([np.ones((1, size)), drawn])
    return found


def interval(draws: Reals) -> tuple[float, float, float]:
    """The set's own figure and the middle 95 % of the draws that have one; nan when none has."""
    if np.isnan(draws[1:]).all():
        return float(draws[0]), float("nan"), float("nan")
    low, high = np.nanquantile(draws[1:], [0.025, 0.975])
    return float(draws[0]), float(low), float(high)


def _by_patient(patient: NDArray[np.int64], count: int) -> Reals:
    table = np.zeros((count, len(patient)))
    table[patient, np.arange(len(patient))] = 1.0
    return table
