"""Label skew between sites: the distance of a site's mix of bleeds from its profile's."""

import math

import numpy as np
from federation.labels import SUBTYPES

from site_client.phantom.profiles import Percent

# `any` stays inside: a site without a single bleed, or without a healthy patient, trains nothing.
_RANGE_PERCENT = (1.0, 95.0)


def skewed(random: np.random.Generator, percent: Percent, alpha: float) -> Percent:
    """Draws a site's mix around the given one.

    The share of studies without a bleed and the five subtypes' shares of all bleeds come from a Dirichlet distribution
    with concentration alpha x 6 x share. So its mean is `percent`, and alpha = 1 is uniform for equal shares. A
    positive study keeps the number of subtypes that it has on average. Source: clients in Hsu, Qi and Brown, arXiv
    1909.06335.

    Args:
        random: Of the site.
        percent: Of studies, by label.
        alpha: Concentration; inf gives `percent` itself, a small one a mix that is far away.

    Returns:
        Percent of studies, by label.
    """
    if math.isinf(alpha):
        return percent
    subtypes, any_ = np.array([percent[name] for name in SUBTYPES]), percent["any"]
    shares = np.array([100 - any_, *(any_ * subtypes / subtypes.sum())]) / 100
    # Not below 1e-3: numpy refuses a concentration of 0, and a subtype may have a share of 0.
    drawn = random.dirichlet(np.maximum(alpha * len(shares) * shares, 1e-3))
    positive = float(np.clip(100 * (1 - drawn[0]), *_RANGE_PERCENT))
    bleeds = drawn[1:].sum()
    mix = drawn[1:] / bleeds if bleeds > 0 else subtypes / subtypes.sum()
    overlap = subtypes.sum() / any_
    # No subtype is more frequent than `any`.
    drawn_percent = {
        name: float(min(positive, positive * overlap * share)) for name, share in zip(SUBTYPES, mix, strict=True)
    }
    return {**drawn_percent, "any": positive}
