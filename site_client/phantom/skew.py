"""Label skew between sites: how far a site's mix of bleeds may lie from its profile's."""

import math

import numpy as np

Percent = tuple[float, ...]

_RANGE_PERCENT = (1.0, 95.0)
"""`any` stays inside: a site without a single bleed, or without a healthy patient, trains nothing."""


def skewed(random: np.random.Generator, percent: Percent, alpha: float) -> Percent:
    """Percent of studies by label (RSNA order, `any` last), drawn around `percent`.

    The share of studies without a bleed and the five subtypes' shares of all bleeds come from a Dirichlet distribution
    with concentration alpha x 6 x share, so that its mean is `percent` and alpha = 1 is uniform for equal shares (Hsu,
    Qi and Brown, arXiv 1909.06335, draw clients so). alpha = inf gives `percent` itself. A positive study keeps the
    number of subtypes it has on average.
    """
    if math.isinf(alpha):
        return percent
    subtypes, any_ = np.array(percent[:-1]), percent[-1]
    shares = np.array([100 - any_, *(any_ * subtypes / subtypes.sum())]) / 100
    drawn = random.dirichlet(np.maximum(alpha * len(shares) * shares, 1e-3))
    positive = float(np.clip(100 * (1 - drawn[0]), *_RANGE_PERCENT))
    bleeds = drawn[1:].sum()
    mix = drawn[1:] / bleeds if bleeds > 0 else subtypes / subtypes.sum()
    overlap = subtypes.sum() / any_
    return (*(float(min(positive, positive * overlap * share)) for share in mix), positive)
