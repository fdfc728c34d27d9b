"""The cost of privacy: heads trained with and without noise on features of a frozen trunk, over real encoded rounds.

Each feature vector stands for one patient. A round draws vectors with the plan's sampling rate, clips each one's
gradient of a linear head, and goes through `encode_noised`, `decode_sum` and `next_model`, as at five sites. The trunk
was trained on other phantoms. The server's rate is the best of a few, for each epsilon: tuning is not charged here, so
the figures are what a consortium gets that knows its rate.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from federation.chain import next_model
from federation.encoding import HISTOGRAM_SHAPE, Layout, decode_sum
from federation.encoding.noised import COINS_BYTES, encode_noised
from federation.forecast import NOISE_MAX, NOISE_USABLE
from federation.labels import ANY, LABELS
from federation.manifest import Manifest, Model, TensorSpec
from federation.pieces import pieces_of
from federation.plan import ServerKind, ServerOptimizer, TrainingPlan
from federation.privacy import Privacy, noise_over_signal
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from deploy.simulation.least_noise import least_noise_plan

ROUNDS: Final = 100
SAMPLING_RATE: Final = 0.1
RATES: Final = (0.3, 1.0, 3.0, 10.0)  # of the server
MOMENTUM: Final = 0.9
CLIP_NORM: Final = 1.0


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Feature vectors with labels.

    Attributes:
        x: f32[N,F], one row a patient, each of L2 norm 1 at most.
        labels: int8[N,6], 0 or 1.
    """

    x: NDArray[np.float32]
    labels: NDArray[np.int8]


@dataclass(frozen=True)
class HeadResult:
    """The heads of one epsilon.

    Attributes:
        epsilon: Of the plan; infinite without noise.
        ratio: R, the noise over the signal; 0 without noise.
        rate: The server's learning rate that was best.
        auc: Of `any` on test vectors, one a seed.
    """

    epsilon: float
    ratio: float
    rate: float
    auc: tuple[float, ...]


def heads_at(
    epsilon: float, sites: Sequence[FeatureSet], test: FeatureSet, seeds: Sequence[int], rounds: int = ROUNDS
) -> HeadResult:
    """Train heads at one epsilon, with every rate of RATES, and keep the best rate.

    Args:
        epsilon: Budget of training; infinite for no noise.
        sites: The vectors of each site.
        test: Vectors that judge.
        seeds: Of trainings.
        rounds: Of the plan.
    """
    plan = plan_at(epsilon, len(sites), sites[0].x.shape[1], len(sites[0].x), rounds)
    assert plan.privacy is not None  # plan_at gives it
    by_rate = {
        rate: tuple(_auc(_train(plan, sites, seed, rate, noised=math.isfinite(epsilon)), test) for seed in seeds)
        for rate in RATES
    }
    rate = max(RATES, key=lambda rate: sum(by_rate[rate]))
    size = plan.moving.size
    ratio = noise_over_signal(plan.privacy, len(sites), size, sum(pieces_of(size))) if math.isfinite(epsilon) else 0.0
    return HeadResult(epsilon, ratio, rate, by_rate[rate])


def plan_at(epsilon: float, sites: int, features: int, patients: int, rounds: int) -> TrainingPlan:
    """Return a plan with the least noise that its epsilon allows; for an infinite one, some plan without meaning."""
    privacy = Privacy(
        sampling_rate=SAMPLING_RATE,
        noise_multiplier=900.0,
        patients_expected=patients,
        batch_max=math.ceil(2 * SAMPLING_RATE * patients),
        epsilon_train=min(epsilon, 20.0),
        clip_norm=CLIP_NORM,
        delta=1 / (10 * patients * sites),
    )
    manifest = Manifest((TensorSpec("weight", (len(LABELS), features)), TensorSpec("bias", (len(LABELS),))))
    plan = least_noise_plan("private heads", manifest, privacy, sites, rounds)
    return replace(plan, server=ServerOptimizer(ServerKind.FEDAVGM, 1.0, MOMENTUM))


def predicted_loss(ratio: float) -> tuple[float, float]:
    """Return the range of AUC that the measured rule of docs/PRIVACY.md expects to be lost at a ratio r."""
    if ratio <= NOISE_USABLE:
        return 0.0, 0.02
    return (0.02, 0.1) if ratio <= NOISE_MAX else (0.1, 0.5)


def _train(plan: TrainingPlan, sites: Sequence[FeatureSet], seed: int, rate: float, *, noised: bool) -> Model:
    privacy = plan.privacy
    assert privacy is not None  # plan_at gives it
    plan = replace(plan, server=replace(plan.server, learning_rate=rate))
    model = Model(plan.manifest, np.zeros(plan.manifest.size, np.float32))
    random = np.random.default_rng(seed)
    memory = np.zeros(plan.manifest.size)
    for number in range(1, plan.rounds + 1):
        totals = [_clipped_sum(model, site, privacy, random) for site in sites]
        if noised:
            layout = Layout.of_round(plan, number)
            counts = np.zeros(HISTOGRAM_SHAPE, np.int64)
            words = [
                encode_noised(layout, total.astype(np.float32), counts, len(sites), random.bytes(COINS_BYTES))
                for total in totals
            ]
            opened: NDArray[np.uint64] = np.sum(words, axis=0, dtype=np.uint64)
            model = next_model(plan, model, decode_sum(layout, opened, len(sites)))
        else:
            # FedAvgM as in `chain`, on the exact sum: no rounding, and no noise.
            patients = privacy.sampling_rate * privacy.patients_expected * len(sites)
            memory = MOMENTUM * memory + np.sum(totals, axis=0) / patients
            model = Model(plan.manifest, (model.weights + rate * memory).astype(np.float32))
    return model


def _clipped_sum(model: Model, site: FeatureSet, privacy: Privacy, random: np.random.Generator) -> NDArray[np.float64]:
    """Minus the sum of the clipped gradients of the cross-entropy of the vectors drawn, f64[d]."""
    drawn = random.random(len(site.x)) < privacy.sampling_rate
    x, y = site.x[drawn].astype(np.float64), site.labels[drawn].astype(np.float64)
    named = model.named()
    # The gradient of a row is an outer product, so its norm is a product of norms. The bias has an input of 1.
    residual = 1 / (1 + np.exp(-(x @ named["weight"].T + named["bias"]))) - y
    norms = np.linalg.norm(residual, axis=1) * np.sqrt((x * x).sum(axis=1) + 1)
    residual *= np.minimum(1.0, privacy.clip_norm / np.maximum(norms, 1e-12))[:, None]
    return -np.concatenate([(residual.T @ x).reshape(-1), residual.sum(axis=0)])


def _auc(model: Model, test: FeatureSet) -> float:
    named = model.named()
    return float(roc_auc_score(test.labels[:, ANY], test.x @ named["weight"][ANY] + named["bias"][ANY]))


def split_sites(vectors: FeatureSet, sites: int, seed: int) -> Iterator[FeatureSet]:
    """Yield equal shares of the vectors, in random order."""
    order = np.random.default_rng(seed).permutation(len(vectors.x))
    # Without the remainder: the plan expects one number of patients of all sites.
    for share in np.array_split(order[: len(order) // sites * sites], sites):
        yield FeatureSet(vectors.x[share], vectors.labels[share])
