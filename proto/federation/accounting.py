"""Differential privacy of a noised sum: the price of a round, and of many.

The unit is a patient: two data sets are neighbours if one has one patient more. A round draws each patient with a
probability q, adds the clipped gradients of those drawn, rounds the rotated sum to whole numbers, and adds noise of the
Skellam distribution, the difference of two Poisson variables. `docs/PRIVACY.md` has the argument; this file has its
formulas. All figures are upper bounds, but for the rounding of float64: some 1e-13 of a price.

A price is a Renyi divergence for each order of `ORDERS` (Mironov, CSF 2017). Prices of rounds add up. One patient's
epsilon at a delta follows from the sum.

Sources:
    Agarwal, Kairouz, Liu, "The Skellam mechanism for differentially private federated learning", NeurIPS 2021
    Kairouz, Liu, Steinke, "The distributed discrete Gaussian mechanism", ICML 2021, proposition 14 (rounding)
    Canonne, Kamath, Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020, proposition 12 (epsilon)
    Mironov, Talwar, Zhang, "Renyi differential privacy of the sampled Gaussian mechanism", 2019 (sum over j)
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

ORDERS: Final = (*range(2, 33), *range(34, 65, 2), 72, 80, 96, 128, 192, 256)
# With this probability at most, in one round, rounding makes one patient's part longer than `rounded_sensitivity`.
ROUNDING_FAILURE: Final = 1e-10
# Covers the float32 of a summed gradient (`privacy.BATCH_MAX`) and the float64 of a rotation, which is far less.
_ARITHMETIC_SLACK: Final = 1.001

Price = tuple[float, ...]  # one Renyi divergence for each order of ORDERS, in nats
NOTHING: Final[Price] = (0.0,) * len(ORDERS)


@dataclass(frozen=True)
class Sensitivity:
    """The most that one patient changes a sum of whole numbers.

    Attributes:
        l1: L1 norm of the change, in whole steps.
        l2: L2 norm of the change, in whole steps.
    """

    l1: float
    l2: float


def rounded_sensitivity(length: float, coordinates: int) -> Sensitivity:
    """Return how far one patient moves a sum that is rounded to whole numbers after its rotation.

    Args:
        length: L2 norm of a patient's clipped gradient, in whole steps.
        coordinates: Length of the rotated vector, padding included.

    Returns:
        A bound in whole steps. It fails with probability `ROUNDING_FAILURE` over the dither, whatever the data.
        Source: Kairouz, Liu, Steinke, ICML 2021, proposition 14.
    """
    d = float(coordinates)
    longest = length + math.sqrt(d)
    likely = length**2 + d / 4 + math.sqrt(2 * math.log(1 / ROUNDING_FAILURE)) * (length + math.sqrt(d) / 2)
    l2 = min(longest, math.sqrt(likely)) * _ARITHMETIC_SLACK
    # Whole numbers: the L1 norm is at most the squared L2 norm.
    return Sensitivity(l1=min(math.sqrt(d) * l2, l2 * l2), l2=l2)


def skellam_price(sensitivity: Sensitivity, variance: float) -> Price:
    """Return the price of one sum with Skellam noise, of which every patient is part.

    Args:
        sensitivity: Of the sum, in whole steps.
        variance: Variance of the noise that is certain to be in the sum, in squared steps.

    Returns:
        Nats, one number for each order of ORDERS. Source: Agarwal, Kairouz, Liu, NeurIPS 2021, theorem 3.5.
    """
    return tuple(_skellam(order, sensitivity, variance) for order in ORDERS)


def sampled_price(sensitivity: Sensitivity, variance: float, rate: float) -> Price:
    """Return the price of one sum with Skellam noise, of which a patient is part with probability `rate`.

    For P and Q without and with the patient, and L = Q / P, the divergence is log E_P[(1 - q + q L)^a] / (a - 1). The
    binomial formula turns it into the divergences of Q from P at whole orders, for any mechanism. The other direction
    is no larger for noise that is symmetric (docs/PRIVACY.md).

    Args:
        sensitivity: Of the sum, in whole steps.
        variance: Variance of the noise that is certain to be in the sum, in squared steps.
        rate: Probability in (0, 1].

    Returns:
        Nats, one number for each order of ORDERS. Source: Mironov, Talwar, Zhang, 2019.
    """
    if rate == 1.0:
        return skellam_price(sensitivity, variance)
    return tuple(_sampled(order, sensitivity, variance, rate) for order in ORDERS)


def add(prices: Iterable[Price]) -> Price:
    """Return the price of all rounds together, in nats for each order."""
    return tuple(math.fsum(values) for values in zip(NOTHING, *prices, strict=True))


def times(price: Price, rounds: int) -> Price:
    """Return the price of so many equal rounds, in nats for each order."""
    return tuple(value * rounds for value in price)


def epsilon(price: Price, delta: float) -> float:
    """Return the epsilon of a patient at `delta`, in nats: the least over the orders.

    The order may be chosen after the fact only if the rounds were fixed before. Across runs, each of which may depend
    on the results of earlier ones, see `adaptive_epsilon`.

    Source: Canonne, Kamath, Steinke, NeurIPS 2020, proposition 12.
    """
    if max(price) == 0.0:
        return 0.0
    candidates = [
        value + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order, value in zip(ORDERS, price, strict=True)
    ]
    least: float = min(candidates)
    return max(0.0, least)


def adaptive_epsilon(price: Price, delta: float) -> float:
    """Return an epsilon, in nats, that holds even if later rounds were planned in sight of earlier results.

    Each order gets an equal part of delta, so that the best of them may be taken at any time.
    """
    return epsilon(price, delta / len(ORDERS))


def least_multiplier(spent: Callable[[float], float], budget: float) -> float:
    """Return the least noise multiplier that keeps a budget, to the last bit.

    Args:
        spent: The epsilon in nats at a multiplier; it falls as the multiplier grows.
        budget: Epsilon in nats. It is kept at a multiplier of 1000, the largest of a plan.

    Returns:
        The noise's standard deviation over the L2 sensitivity.
    """
    # The interval halves until no float64 lies between its ends, so no tolerance has to be chosen.
    low, high = 0.0, 1000.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if spent(middle) > budget else (low, middle)
    return high


def _skellam(order: float, sensitivity: Sensitivity, variance: float) -> float:
    """Agarwal et al., theorem 3.5."""
    l1, l2, mu = sensitivity.l1, sensitivity.l2, variance
    excess = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
    return order * l2**2 / (2 * mu) + excess


def _sampled(order: int, sensitivity: Sensitivity, variance: float, rate: float) -> float:
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(taken + 1)
        - math.lgamma(order - taken + 1)
        + (order - taken) * math.log1p(-rate)
        + taken * math.log(rate)
        + (0.0 if taken < 2 else (taken - 1) * _skellam(taken, sensitivity, variance))
        for taken in range(order + 1)
    ]
    # The largest term is taken out first: exp of more than 709 nats overflows float64.
    largest = max(terms)
    total = largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
    return max(0.0, total) / (order - 1)
