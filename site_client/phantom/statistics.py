"""Published figures of hemorrhages, as data, keyed by label.

Source: BHSD lesion characteristics (1 873 lesions of 192 positive studies), published with DIDSR
framework-for-synthetic-ICH-to-assess-AI-generalizability, commit cab0e9f7, CC0-1.0. Quantiles were recomputed from that
table. HU is the mean over a lesion, *partial-volume averaged*; cores are denser.
"""

from typing import Final

import numpy as np

QUANTILES: Final = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)

# Volume of one lesion in mL at QUANTILES.
LESION_ML: Final = {
    "epidural": (0.069, 0.071, 0.101, 0.138, 0.495, 3.933, 11.236, 19.87, 36.773, 105.848, 133.324),
    "intraparenchymal": (0.013, 0.033, 0.046, 0.082, 0.219, 1.243, 7.519, 34.027, 55.775, 101.601, 194.151),
    "intraventricular": (0.024, 0.031, 0.051, 0.075, 0.164, 0.54, 2.007, 6.459, 12.707, 48.028, 65.643),
    "subarachnoid": (0.004, 0.008, 0.024, 0.038, 0.083, 0.183, 0.473, 1.448, 2.603, 12.299, 62.656),
    "subdural": (0.013, 0.016, 0.026, 0.062, 0.159, 0.542, 2.468, 14.396, 42.155, 85.428, 150.486),
}

# Mean HU of one lesion at QUANTILES. The three lowest minima are raised from 0, where the source has empty masks.
LESION_HU: Final = {
    "epidural": (37.3, 37.5, 38.5, 41.9, 51.3, 56.7, 62.0, 66.2, 67.9, 76.1, 79.2),
    "intraparenchymal": (20.0, 28.6, 33.7, 37.5, 42.1, 47.7, 53.7, 57.6, 60.3, 65.9, 70.5),
    "intraventricular": (12.0, 21.8, 26.3, 29.8, 33.9, 39.6, 45.4, 51.5, 54.1, 62.5, 65.1),
    "subarachnoid": (20.0, 25.8, 31.9, 34.3, 38.7, 43.3, 48.6, 53.6, 57.4, 65.1, 84.7),
    "subdural": (10.0, 18.1, 29.4, 35.6, 44.3, 51.2, 58.5, 64.2, 68.2, 75.0, 88.8),
}

# Lesions of a subtype in one study that has any of it, at QUANTILES.
LESIONS_PER_STUDY: Final = {
    "epidural": (1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3),
    "intraparenchymal": (1, 1, 1, 1, 1, 1, 2, 4, 6, 9, 17),
    "intraventricular": (1, 1, 1, 1, 2, 2, 4, 5, 6, 8, 8),
    "subarachnoid": (1, 1, 1, 1, 3, 6, 15, 24, 29, 38, 41),
    "subdural": (1, 1, 1, 1, 1, 2, 4, 7, 9, 11, 12),
}

# By name, never by unpacking SUBTYPES: their order must not decide which figure belongs to which label.
_E = "epidural"
_P = "intraparenchymal"
_V = "intraventricular"
_A = "subarachnoid"
_D = "subdural"
# Sets of subtypes that positive studies show together, each with its number of the 192 studies. The generator draws
# from them in this order: another order would make other patients of the same seed.
SUBTYPE_SETS: Final[dict[tuple[str, ...], int]] = {
    (_P, _V, _A): 28,
    (_P, _V): 27,
    (_P, _A, _D): 17,
    (_P, _A): 14,
    (_P, _V, _A, _D): 13,
    (_P,): 11,
    (_E,): 11,
    (_D,): 10,
    (_V,): 9,
    (_A,): 9,
    (_V, _A, _D): 9,
    (_V, _A): 8,
    (_P, _V, _D): 6,
    (_P, _D): 4,
    (_A, _D): 3,
    (_E, _A): 3,
    (_E, _P, _D): 2,
    (_E, _D): 2,
    (_E, _P, _V, _A): 2,
    (_E, _A, _D): 1,
    (_E, _P, _A, _D): 1,
    (_V, _D): 1,
    (_E, _P, _V, _A, _D): 1,
}


def draw_ml(random: np.random.Generator, subtype: str) -> float:
    """Draws a lesion's volume in mL, log-linear between the published quantiles."""
    return float(np.exp(np.interp(random.random(), QUANTILES, np.log(LESION_ML[subtype]))))


def draw_hu(random: np.random.Generator, subtype: str) -> float:
    """Draws a lesion's mean HU, linear between the published quantiles."""
    return float(np.interp(random.random(), QUANTILES, LESION_HU[subtype]))


def draw_count(random: np.random.Generator, subtype: str) -> int:
    """Draws the number of lesions of a subtype in a study that has any of it."""
    return max(1, round(float(np.interp(random.random(), QUANTILES, LESIONS_PER_STUDY[subtype]))))
