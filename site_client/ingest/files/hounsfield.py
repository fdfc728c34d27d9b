"""Stored values -> Hounsfield units. Pure; MODEL.md section 1, step 3."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AIR_HU, TOP_HU = -1024, 3071


@dataclass(frozen=True)
class Scale:
    """How one file's stored values are meant. `padding`: inclusive range in stored units, () when not stated."""

    slope: float
    intercept: float
    bits_stored: int
    signed: bool
    padding: tuple[int, ...] = ()


def to_hu(stored: NDArray[np.int32], scale: Scale, wrapped: bool = False) -> NDArray[np.int16]:
    """int32[...] stored -> int16[...] HU within [-1024, 3071]; padding and all that lies below air becomes -1024.

    Padding is compared in stored units, before anything else (DICOM PS3.3 C.7.5.1.1.2). `wrapped`: the values are HU
    modulo 4096, and the intercept, which hid that, is ignored. MONOCHROME1 changes nothing here: it says how to
    display, not what a value means; a file that means it otherwise fails the plausibility check.
    """
    values, intercept = (unwrap(stored), 0.0) if wrapped else (stored, scale.intercept)
    exact = values.astype(np.float64) * scale.slope + intercept
    hu: NDArray[np.int16] = np.clip(np.rint(exact), AIR_HU, TOP_HU).astype(np.int16)
    if scale.padding:
        low, high = min(scale.padding), max(scale.padding)
        hu[(stored >= low) & (stored <= high)] = AIR_HU
    return hu


def may_have_wrapped(scale: Scale) -> bool:
    """Whether the header allows that HU were stored modulo 4096: unsigned, 12 bits, an intercept that hides no sign.

    Signed data with intercept 0 is sound and never qualifies.
    """
    return scale.bits_stored == 12 and not scale.signed and scale.intercept > -100


def has_wrapped(stored: NDArray[np.int32]) -> bool:
    """Whether the histogram shows the wrap: air (-1000) sits near 3096, above any tissue, and dominates.

    `stored` are the values of a whole series (or a fair sample): at least 5 % of them within 150 of -1000 mod 4096, and
    a trough below, because between dense bone and air stored that way there is nothing in a head.
    """
    air = np.mean((stored >= 2946) & (stored <= 3246))
    trough = np.mean((stored >= 2200) & (stored < 2900))
    return bool(air >= 0.05 and air > 10 * trough)


def unwrap(stored: NDArray[np.int32]) -> NDArray[np.int32]:
    """HU modulo 4096 -> HU, for values from -1000 on: the repair common in public RSNA code, with its intercept."""
    return np.asarray((stored + 1000) % 4096 - 1000, dtype=np.int32)
