"""A federation that learns: each trainer fits a logistic regression to its patients, and some may poison the sum."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from federation.encoding import clip
from federation.encoding.header import bin_of
from federation.secagg import DealtShares, Member
from numpy.typing import NDArray

from deploy.demonstration.poison import poisoned_words
from site_client.agent.rounds import masking
from site_client.agent.rounds.contribution import Contribution, mask_contribution
from site_client.records import AucLoss, Job, PredecessorComparison
from site_client.training.patient_scores import EvaluatedModel, compare_with_last
from tests.federation.nursery import PARAMETERS
from tests.federation.places import an_update
from tests.federation.world import World

PATIENTS = 16  # of each kind at each site
LENGTH = 6.0  # of a patient's features
SLICES = 8  # of a patient, which all say the same
ANY = 5  # the one label that patients have
TRUTH = -np.linspace(-1, 1, PARAMETERS)  # the initial model is its opposite
# Patients differ in two directions only, the truth's and another one, so that sites learn the same.
DIRECTIONS = np.linalg.qr(np.stack([TRUTH, np.ones(PARAMETERS)], axis=1))[0].T


@dataclass
class LearningWorld(World):
    """`poisoners` sign-flip their update and scale it to the norm gate; `liars` praise every candidate."""

    poisoners: set[str] = field(default_factory=set)
    liars: set[str] = field(default_factory=set)
    auc_lost: float = 0.0  # of `any`, by every candidate at every site, whose losses stay as they are
    excess: float = 1.0  # a poisoned sum is so many times as long as the norm gate lets it be

    def train(self, name: str) -> None:
        site = self.sites[name]
        for job in site.jobs():
            update, _ = an_update(job, self.seed_of(name), PARAMETERS)
            weights = self.kept_model(site, job.base_model_digest).weights.astype(np.float64)
            features, labels = patients(self.seed_of(name), validation=True)
            losses, histograms = loss_of(weights, features, labels), np.zeros((PATIENTS, 6, 2, 64), np.uint16)
            histograms[np.arange(PATIENTS), ANY, labels.astype(int), bin_of(features @ weights)] = SLICES
            names = tuple(f"{number:016x}" for number in range(PATIENTS))
            evaluated = EvaluatedModel(job.run_id, job.base_model_digest, "toy", names, losses, histograms)
            assert self.plan.gate is not None
            compared = compare_with_last(site.folder, evaluated, self.plan.gate)
            if compared is not None and name in self.liars:
                most = self.plan.gate.clip * PATIENTS
                compared = PredecessorComparison(compared.earlier_digest, -most, self.plan.gate.clip * most, PATIENTS)
            if compared is not None and self.auc_lost:
                lost = (*[AucLoss()] * ANY, AucLoss(self.auc_lost, 60))
                compared = PredecessorComparison(compared.earlier_digest, 0.0, 0.0, PATIENTS, lost)
            changed = replace(update, studies=40, comparison=compared)
            site.train(job, changed, self._delta(job, weights, name))

    def _delta(self, job: Job, weights: NDArray[np.float64], name: str) -> NDArray[np.float32] | None:
        if job.evaluation_only:
            return None
        features, labels = patients(self.seed_of(name), validation=False)
        trained = weights.copy()
        for _ in range(5):
            trained += 0.1 * features.T @ (labels - chance(trained, features)) / PATIENTS
        return clip((trained - weights).astype(np.float32), 1.0)[0]

    def loss_of_model(self, digest: bytes) -> float:
        """The mean loss of a model of the run over all validation patients."""
        (blob,) = {model.blob for model in self.models() if model.digest == digest}
        weights = self.model(blob).weights.astype(np.float64)
        return float(np.mean([loss_of(weights, *patients(self.seed_of(name), validation=True)) for name in self.sites]))


def patients(seed: int, *, validation: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features f64[16,60] and labels f64[16] of a site."""
    rng = np.random.default_rng([seed, validation])
    features = rng.standard_normal((PATIENTS, 2)) @ DIRECTIONS * LENGTH
    return features, (rng.random(PATIENTS) < chance(TRUTH, features)).astype(np.float64)


def chance(weights: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 1 / (1 + np.exp(-features @ weights))
    return result


def loss_of(
    weights: NDArray[np.float64], features: NDArray[np.float64], labels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """f64[16], nats."""
    logits = features @ weights
    result: NDArray[np.float64] = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
    return result


def let_poison(patch: pytest.MonkeyPatch, world: LearningWorld) -> None:
    """Let the world's poisoners mask words of their own; the set may change at any time."""

    def mask(member: Member, contribution: Contribution, dealt: Mapping[str, DealtShares], coins: bytes) -> memoryview:
        if member.site not in world.poisoners or contribution.delta is None:
            return mask_contribution(member, contribution, dealt, coins)
        words = poisoned_words(contribution, len(member.cohort), world.excess)
        return member.mask(words, dealt, in_place=True).astype("<u8", copy=False).data.cast("B")

    patch.setattr(masking, "mask_contribution", mask)
