"""Prices of noised sums, held against an independent accountant and against sums that can be done by hand."""

import math

import pytest
from federation import accounting
from federation.accounting import ORDERS, Sensitivity, rounded_sensitivity, sampled_price, skellam_price

dp_accounting = pytest.importorskip("dp_accounting")
rdp = pytest.importorskip("dp_accounting.rdp")

FINE = 1e9  # so many steps in a clip norm that Skellam noise is Gaussian noise


def _gaussian_like(multiplier: float) -> tuple[Sensitivity, float]:
    return Sensitivity(l1=FINE, l2=FINE), (multiplier * FINE) ** 2


@pytest.mark.parametrize("multiplier", [0.7, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rounds", [1, 20, 200])
def test_epsilon_is_that_of_an_independent_accountant(multiplier: float, rate: float, rounds: int) -> None:
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier))
    theirs = rdp.RdpAccountant(orders=list(ORDERS))
    theirs.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    ours = accounting.times(sampled_price(*_gaussian_like(multiplier), rate), rounds)
    assert accounting.epsilon(ours, 1e-6) == pytest.approx(theirs.get_epsilon(1e-6), rel=1e-6)


def test_the_committed_example_of_a_whole_network_has_its_epsilon() -> None:
    """d 8,388,608, q .1, T 200, z 1, delta 1e-6: 12.2954 (PRIVACY specification, and dp-accounting's 12.2933)."""
    sensitivity = rounded_sensitivity(2900.0, 8_388_608)
    price = sampled_price(sensitivity, sensitivity.l2**2, 0.1)
    assert accounting.epsilon(accounting.times(price, 200), 1e-6) == pytest.approx(12.2954, abs=1e-3)


def test_a_tighter_approximation_lies_below_the_bound() -> None:
    pld = pytest.importorskip("dp_accounting.pld")
    event = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0))
    accountant = pld.PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, 50))
    ours = accounting.epsilon(accounting.times(sampled_price(*_gaussian_like(1.0), 0.1), 50), 1e-6)
    assert 0.8 * ours < accountant.get_epsilon(1e-6) < ours


def test_skellam_noise_costs_more_than_gaussian_noise_and_less_for_finer_steps() -> None:
    gaussian = [order / 2 for order in ORDERS]
    previous = [math.inf] * len(ORDERS)
    for steps in (10.0, 100.0, 1000.0):
        price = skellam_price(Sensitivity(min(steps**2, 100 * steps), steps), steps**2)
        assert all(g < p < before for g, p, before in zip(gaussian, price, previous, strict=True))
        previous = list(price)


def test_prices_add_up_and_no_round_costs_nothing() -> None:
    price = skellam_price(Sensitivity(100.0, 10.0), 400.0)
    assert accounting.add([price] * 3) == pytest.approx(accounting.times(price, 3))
    assert accounting.epsilon(accounting.NOTHING, 1e-6) == 0.0
    assert accounting.add([]) == accounting.NOTHING


def test_an_epsilon_across_adaptive_runs_is_larger_than_within_one() -> None:
    price = accounting.times(sampled_price(*_gaussian_like(2.0), 0.1), 50)
    assert accounting.epsilon(price, 1e-6) < accounting.adaptive_epsilon(price, 1e-6)


@pytest.mark.parametrize("coordinates", [16, 8192, 1 << 20])
def test_rounding_lengthens_a_patients_part_no_further_than_the_bound(coordinates: int) -> None:
    """Stochastic roundings of one vector, for the worst of its fractions: .5 in each coordinate."""
    import numpy as np

    rng = np.random.default_rng(coordinates)
    length = max(1024.0, 2 * math.sqrt(coordinates))
    for _ in range(5):
        part = np.full(coordinates, length / math.sqrt(coordinates))
        part += 0.5 - part % 1
        part *= length / np.linalg.norm(part)
        dither = rng.random(coordinates)
        moved = np.floor(part + dither) - np.floor(dither)
        assert np.linalg.norm(moved) <= rounded_sensitivity(length, coordinates).l2
        assert np.abs(moved).sum() <= rounded_sensitivity(length, coordinates).l1


@pytest.mark.parametrize("budget", [0.5, 4.0, 20.0])
def test_the_least_multiplier_keeps_the_budget_and_the_next_smaller_number_does_not(budget: float) -> None:
    def spent(multiplier: float) -> float:
        return accounting.epsilon(accounting.times(sampled_price(*_gaussian_like(multiplier), 0.1), 10), 1e-6)

    least = accounting.least_multiplier(spent, budget)
    assert spent(least) <= budget < spent(math.nextafter(least, 0.0))
