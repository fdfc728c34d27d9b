"""The privacy of sampled Gaussian noise by privacy loss distributions, to compare with the price by Renyi divergences.

An approximation and no bound: our noise is Skellam's, and it is added after rounding. `dp-accounting` of the extra
`accounting` computes it, in seconds (Doroshenko et al., PoPETs 2022). The authority is `federation.accounting`.
"""

from importlib.util import find_spec

from federation.privacy import Privacy


def gaussian_epsilon(privacy: Privacy, rounds: int) -> float | None:
    """Compute the epsilon of a patient after so many training rounds; None if `dp-accounting` is not installed."""
    if find_spec("dp_accounting") is None:
        return None
    # Imported late: it takes seconds, and an aggregator may go without.
    import dp_accounting
    from dp_accounting import pld

    noise = dp_accounting.GaussianDpEvent(privacy.noise_multiplier)
    sampled = dp_accounting.PoissonSampledDpEvent(privacy.sampling_rate, noise)
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_accounting.SelfComposedDpEvent(sampled, rounds))
    return float(accountant.get_epsilon(privacy.delta))
