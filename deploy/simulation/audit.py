"""An audit of one private round: does the sum tell who was in it more often than the plan's epsilon allows?

A thousand canaries are patients with a random unit vector, times the clip norm, for a gradient. A coin decides for each
whether it is there. The auditor sees the decoded sum alone, guesses the highest scores in and the lowest out, and
counts. Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023, theorem 5.2, turns the
count into a lower bound of epsilon. Everything between gradient and sum is the production code but the masks, which
cancel in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from federation.chain import next_model
from federation.encoding import HISTOGRAM_SHAPE, Layout, decode_sum
from federation.encoding.noised import COINS_BYTES, encode_noised
from federation.manifest import Manifest, Model, TensorSpec
from federation.plan import TrainingPlan
from federation.privacy import Privacy
from numpy.typing import NDArray
from scipy.stats import binom

from deploy.simulation.least_noise import least_noise_plan
from site_client.training.private import clipped

CANARIES: Final = 1000
GUESSES: Final = 500  # fixed before the audit: a number chosen after it would need a correction
SITES: Final = 3
PARAMETERS: Final = 1 << 14  # so many that a thousand random vectors hardly overlap
DELTA: Final = 1e-5
SLICES: Final = 8  # of a canary; each has the canary's gradient

Clip = Callable[[NDArray[np.float64], float], NDArray[np.float64]]
Words = Callable[[Layout, NDArray[np.float32], int, bytes], NDArray[np.uint64]]


@dataclass(frozen=True)
class Audited:
    """The outcome of one audit.

    Attributes:
        correct: Right guesses, of GUESSES.
        epsilon_low: Lower bound of epsilon.
        claimed: The plan's epsilon.
    """

    correct: int
    epsilon_low: float
    claimed: float


def audit_plan(epsilon: float) -> TrainingPlan:
    """Return a plan of one round, of which every patient is part, with the least noise that its epsilon allows."""
    privacy = Privacy(
        sampling_rate=1.0,
        noise_multiplier=1000.0,
        patients_expected=CANARIES // SITES,
        batch_max=CANARIES,
        epsilon_train=epsilon,
        delta=DELTA,
    )
    manifest = Manifest((TensorSpec("weights", (PARAMETERS,)),))
    return least_noise_plan("audit", manifest, privacy, SITES, rounds=1)


def clip_patient(gradients: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    """Clip the mean gradient of a patient's slices, f64[slices,d], as one vector, as training does."""
    return clipped(gradients.mean(axis=0), clip_norm)


def encoded(layout: Layout, total: NDArray[np.float32], members: int, coins: bytes) -> NDArray[np.uint64]:
    """Encode a site's sum as production does."""
    return encode_noised(layout, total, np.zeros(HISTOGRAM_SHAPE, np.int64), members, coins)


def audit(plan: TrainingPlan, seed: int, *, clip: Clip = clip_patient, encode: Words = encoded) -> Audited:
    """Audit one round.

    Args:
        plan: Of `audit_plan`.
        seed: Of canaries and coins; the noise of production is drawn from it as well, so that an audit can be repeated.
        clip: Clips a patient's gradients; a mutant to be caught takes its place in a test.
        encode: Encodes a site's sum; likewise.
    """
    assert plan.privacy is not None  # audit_plan gives it
    random = np.random.default_rng(seed)
    layout = Layout.of_round(plan, 1)
    present = random.random(CANARIES) < 0.5
    canaries = random.standard_normal((CANARIES, PARAMETERS), np.float32)
    canaries /= np.linalg.norm(canaries, axis=1, keepdims=True)
    totals = np.zeros((SITES, PARAMETERS))
    for canary in np.flatnonzero(present):
        # A hundred times as long as a canary, so that it is clipping that bounds it.
        gradient = 100 * canaries[canary].astype(np.float64)
        totals[canary % SITES] += clip(np.broadcast_to(gradient, (SLICES, PARAMETERS)), plan.privacy.clip_norm)
    words = [encode(layout, total.astype(np.float32), SITES, random.bytes(COINS_BYTES)) for total in totals]
    opened: NDArray[np.uint64] = np.sum(words, axis=0, dtype=np.uint64)
    # From a model of zeros the round leads to the mean that every site sees.
    nothing = Model(plan.manifest, np.zeros(PARAMETERS, np.float32))
    order = np.argsort(canaries @ next_model(plan, nothing, decode_sum(layout, opened, SITES)).weights)
    # The surest guesses only: between the highest and the lowest scores the auditor abstains.
    half = GUESSES // 2
    correct = int(present[order[-half:]].sum()) + int((~present[order[:half]]).sum())
    return Audited(correct, epsilon_lower_bound(correct), plan.privacy.epsilon_train)


def epsilon_lower_bound(correct: int, confidence: float = 0.95) -> float:
    """Return the largest epsilon whose mechanisms guess so many right with a probability below 1 - confidence."""
    low, high = 0.0, 20.0
    if _p_value(correct, low) > 1 - confidence:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _p_value(correct, middle) < 1 - confidence else (low, middle)
    return low


def _p_value(correct: int, epsilon: float) -> float:
    """The bound of theorem 5.2 on the probability of `correct` or more right guesses."""
    rate = 1 / (1 + np.exp(-epsilon))
    masses = binom.pmf(correct - np.arange(1, correct + 1), GUESSES, rate)
    excess = float((np.cumsum(masses) / np.arange(1, correct + 1)).max(initial=0.0))
    return min(1.0, float(binom.sf(correct - 1, GUESSES, rate)) + excess * DELTA * 2 * CANARIES)
