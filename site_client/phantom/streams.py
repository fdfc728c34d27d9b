"""Random streams: the source of every random number of the phantom.

A study's seed is SHA-256(generator version, profile, seed, index). Each concern of the study (anatomy, lesion, physics,
header, labels) reads its own Philox stream below that seed, so that a new scanner never changes the anatomy and a
lesion-free twin differs in the lesion only.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

GENERATOR_VERSION = "3"  # raise it with any change of the patients that a seed gives

StreamName = Literal[
    "anatomy", "lesion", "mimics", "physics", "accidents", "header", "labels", "faults", "visit", "skew"
]


@dataclass(frozen=True)
class PhantomStreams:
    """The named streams of one study. Equal names below an equal seed give equal numbers, in any order of use."""

    seed: bytes = field(repr=False)

    @classmethod
    def of(cls, profile: str, seed: int, index: int) -> "PhantomStreams":
        """Derives the streams of study `index` of the set (`profile`, `seed`)."""
        return cls(_digest(GENERATOR_VERSION, profile, str(seed), str(index)))

    def generator(self, name: StreamName) -> np.random.Generator:
        """Makes a generator at the start of the stream `name`."""
        key = int.from_bytes(_digest(self.seed.hex(), name)[:16], "little")
        return np.random.Generator(np.random.Philox(key=key))

    def uid(self, *parts: str) -> str:
        """Derives a DICOM UID from the study and `parts`: `2.25.` and 128 bits in decimal (PS3.5 section B.2)."""
        return "2.25." + str(int.from_bytes(_digest(self.seed.hex(), "uid", *parts)[:16], "big"))

    def name(self, digits: int, *parts: str) -> str:
        """Derives so many hexadecimal digits from the study and `parts`."""
        return _digest(self.seed.hex(), "name", *parts).hex()[:digits]


def _digest(*parts: str) -> bytes:
    # A separator that no part holds: ("1", "23") and ("12", "3") must differ.
    return hashlib.sha256("\x1f".join(("hemofed-phantom", *parts)).encode()).digest()
