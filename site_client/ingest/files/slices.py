"""Decoded images as they come from a reader process, and the error of a file that gives none."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from site_client.errors import SeriesUnreadable
from site_client.ingest.files.hounsfield import Scale
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import FILE_BYTES_MAX
from site_client.untrusted_files import open_regular

COARSE_STEP = 4  # every fourth pixel shows a histogram and a mean as well as all of them do


@dataclass(frozen=True, eq=False)
class Slice:
    """One decoded image. Lengths in mm.

    `sha256`: over the whole file. `stored`: int32 in stored units, every `step`-th pixel of every `step`-th row of an
    image of `shape`.
    """

    sha256: bytes
    stored: NDArray[np.int32]
    shape: tuple[int, ...]
    step: int
    scale: Scale
    spacing_mm: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    thickness_mm: float

    @property
    def coarse(self) -> NDArray[np.int32]:
        """The stored values at COARSE_STEP, of which every slice has the same number, whatever its `step`."""
        step = COARSE_STEP // self.step
        return self.stored[::step, ::step]


def digest(path: Path) -> bytes:
    """Computes the SHA-256 of a file, without understanding a byte of it.

    Raises:
        SeriesUnreadable: Q_READ, or Q_DECODE_LIMIT for a file that is larger than an image may be.
    """
    try:
        with open_regular(path, FILE_BYTES_MAX) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        raise unreadable(Reason.Q_READ) from None
    except ValueError:
        raise unreadable(Reason.Q_DECODE_LIMIT) from None


def unreadable(reason: Reason) -> SeriesUnreadable:
    """Makes the error of a file that cannot be used; it holds nothing but the code."""
    return SeriesUnreadable(
        f"an image of a series cannot be used: {reason.value} ({reason.name}); the next scan puts the series aside",
        reason.name,
    )
