"""Stored values -> Hounsfield units (DICOM PS3.3 C.7.6.3.1, C.8.2.1.1; C.11.1 Modality LUT). Pure functions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AIR_HU, TOP_HU = -1024, 3071


@dataclass(frozen=True)
class Scale:
    """The meaning of one file's stored values.

    `slope`, `intercept`: (0028,1053) *Rescale Slope*, (0028,1052) *Rescale Intercept*. `bits_stored`, `signed`:
    (0028,0101) *Bits Stored*, (0028,0103) *Pixel Representation*. `padding`: (0028,0120) *Pixel Padding Value* and
    (0028,0121) *Pixel Padding Range Limit*, an inclusive range in stored units; () when not stated.
    """

    slope: float
    intercept: float
    bits_stored: int
    signed: bool
    padding: tuple[int, ...] = ()


def to_hu(stored: NDArray[np.int32], scale: Scale, wrapped: bool = False) -> NDArray[np.int16]:
    """Converts stored values to HU.

    | value | HU |
    |---|---|
    | padding, compared in stored units (PS3.3 C.7.5.1.1.2) | -1024 |
    | below -1024 HU or above 3071 HU | clipped |
    | else | round(stored x slope + intercept) |

    MONOCHROME1 changes nothing here: (0028,0004) says how to display a value, not what it means. A file that means it
    otherwise fails the check of its contents.

    Args:
        stored: int32 of any shape.
        scale: Of the file.
        wrapped: The values are HU modulo 4096. The intercept, which hid that, is ignored.

    Returns:
        int16 of the same shape, within [-1024, 3071].
    """
    values, intercept = (unwrap(stored), 0.0) if wrapped else (stored, scale.intercept)
    # In float64: a fractional slope in float32 would round values near .5 to another HU.
    exact = values.astype(np.float64) * scale.slope + intercept
    hu: NDArray[np.int16] = np.clip(np.rint(exact), AIR_HU, TOP_HU).astype(np.int16)
    if scale.padding:
        # In MONOCHROME1 images the range's limit lies below its value.
        low, high = min(scale.padding), max(scale.padding)
        hu[(stored >= low) & (stored <= high)] = AIR_HU
    return hu


def may_have_wrapped(scale: Scale) -> bool:
    """Tells whether the header allows that HU were stored modulo 4096: unsigned, 12 bits, intercept above -100.

    Signed data with intercept 0 is sound and never qualifies.
    """
    return scale.bits_stored == 12 and not scale.signed and scale.intercept > -100


def has_wrapped(stored: NDArray[np.int32]) -> bool:
    """Tells whether the histogram shows the wrap.

    Args:
        stored: Values of a whole series, or a fair sample of them.

    Returns:
        True if at least 5 % of the values lie within 150 of -1000 modulo 4096, and more than ten times as many as lie
        in the trough below. Between dense bone and air stored that way there is nothing in a head.
    """
    # -1000 modulo 4096 is 3096.
    air = np.mean((stored >= 2946) & (stored <= 3246))
    trough = np.mean((stored >= 2200) & (stored < 2900))
    return bool(air >= 0.05 and air > 10 * trough)


def unwrap(stored: NDArray[np.int32]) -> NDArray[np.int32]:
    """Converts HU modulo 4096 to HU, for values from -1000 on. Public RSNA 2019 code repairs them the same way."""
    return np.asarray((stored + 1000) % 4096 - 1000, dtype=np.int32)
