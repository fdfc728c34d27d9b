"""The costs of a round in privacy, and what the costs of many rounds add up to.

A patient is in training or in validation, by a keyed hash, and never changes sides. So costs of training and costs of
validation fall on different patients, and the larger sum counts. If the split has changed, both fall on one patient.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Final, TypeAlias

from federation import accounting
from federation.accounting import ROUNDING_FAILURE, Price, Sensitivity
from federation.encoding import HISTOGRAM_SHAPE
from federation.pieces import pieces_of
from federation.plan import TrainingPlan
from federation.privacy import Noise, cut_tails, gradient_noise, histogram_noise
from federation.vocabulary import Metric
from msgspec import Meta

_Real: TypeAlias = Annotated[float, Meta(ge=0, le=1e30)]


class CostKind(StrEnum):
    """The patients that a cost falls on."""

    TRAIN = "train"
    VALIDATION = "validation"
    UNBOUNDED = "unbounded"  # both, without a bound: the sum of the run had no noise


@dataclass(frozen=True)
class PrivacyCost:
    """The numbers from which the price of one sum follows.

    Attributes:
        kind: Training or validation patients.
        l1: Most that one patient changes the sum, in L1 norm.
        l2: The same in L2 norm.
        variance: Of the noise that is certain in the sum.
        sampling_rate: Chance with which a patient is part of the sum.
        rounding: Chance with which rounding makes one patient's part longer than `l2`.
        tails: Distance of the noise from whole Skellam noise, in total variation.
    """

    kind: CostKind
    l1: _Real = 0.0
    l2: _Real = 0.0
    variance: Annotated[int, Meta(ge=0, le=2**62)] = 0
    sampling_rate: Annotated[float, Meta(ge=0, le=1)] = 1.0
    rounding: Annotated[float, Meta(ge=0, le=1)] = 0.0
    tails: Annotated[float, Meta(ge=0, le=1)] = 0.0

    @classmethod
    def of(cls, kind: CostKind, noise: Noise, coordinates: int, sampling_rate: float, rounding: float) -> "PrivacyCost":
        """Return the cost of a sum of so many noised numbers."""
        sensitivity = noise.sensitivity
        tails = cut_tails(coordinates)
        return cls(kind, sensitivity.l1, sensitivity.l2, noise.variance, sampling_rate, rounding, tails)

    @property
    def price(self) -> Price:
        """The Renyi divergences of `accounting`."""
        return _price(self.l1, self.l2, self.variance, self.sampling_rate)


UNBOUNDED: Final = PrivacyCost(CostKind.UNBOUNDED)


def costs_of_round(plan: TrainingPlan, number: int) -> tuple[PrivacyCost, ...]:
    """Return the costs of one round of a plan, for the patients of a site that is in its sum."""
    privacy = plan.privacy
    if privacy is None:
        return (UNBOUNDED,)
    costs = []
    if not plan.evaluates_only(number):
        coordinates = sum(pieces_of(plan.moving.size))
        noise = gradient_noise(privacy, coordinates).noise
        costs.append(PrivacyCost.of(CostKind.TRAIN, noise, coordinates, privacy.sampling_rate, ROUNDING_FAILURE))
    if Metric.HISTOGRAMS in plan.metrics and privacy.evaluates(number, plan.rounds):
        cells = math.prod(HISTOGRAM_SHAPE)  # counts are whole already: nothing is rounded
        costs.append(PrivacyCost.of(CostKind.VALIDATION, histogram_noise(privacy), cells, 1.0, 0.0))
    return tuple(costs)


def epsilon_of(costs: Iterable[tuple[PrivacyCost, float]], delta: float) -> float:
    """Return the epsilon of a patient at `delta` after all these sums, in whatever order runs followed each other.

    Args:
        costs: Each with the validation fraction that patients were split by.
        delta: Of the hospital's policy.

    Returns:
        Infinity if one of the sums had no noise, or if delta is too small for so many rounds.
    """
    counted = Counter(costs)
    if any(cost.kind is CostKind.UNBOUNDED for cost, _ in counted):
        return math.inf
    # A patient of training may have become one of validation when the fraction changed.
    has_moved = len({split for _, split in counted}) > 1
    groups: dict[CostKind, Counter[PrivacyCost]] = {}
    for (cost, _), count in counted.items():
        group = groups.setdefault(CostKind.TRAIN if has_moved else cost.kind, Counter())
        group[cost] += count
    return max((_epsilon(group, delta) for group in groups.values()), default=0.0)


def _epsilon(counts: Counter[PrivacyCost], delta: float) -> float:
    """Return the epsilon of sums that all fall on one patient.

    Whole noise would give (epsilon, delta'). At a distance of tau from it, delta' + (1 + exp(epsilon)) tau is the
    delta. So epsilon is guessed a little higher first, to know how much of delta is left for the prices.
    """
    price = accounting.add(accounting.times(cost.price, count) for cost, count in counts.items())
    rounding = math.fsum(cost.rounding * count for cost, count in counts.items())
    tails = math.fsum(cost.tails * count for cost, count in counts.items())
    if rounding >= delta:
        return math.inf
    guess = accounting.adaptive_epsilon(price, delta - rounding) + _GUESS_MORE
    left = delta - rounding - (1 + math.exp(min(guess, _EPSILON_MAX))) * tails
    if left <= 0 or guess > _EPSILON_MAX:
        return math.inf
    spent = accounting.adaptive_epsilon(price, left)
    return spent if spent <= guess else math.inf


_GUESS_MORE: Final = 0.01
_EPSILON_MAX: Final = 500.0  # beyond it nothing is bounded that anyone could notice


@lru_cache(maxsize=256)  # a run has one price of training and one of validation, charged hundreds of times
def _price(l1: float, l2: float, variance: int, sampling_rate: float) -> Price:
    return accounting.sampled_price(Sensitivity(l1=l1, l2=l2), variance, sampling_rate)
