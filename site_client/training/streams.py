"""Random streams that depend on what they are for, and on nothing that happened before.

Every number drawn in training comes from (run, round, site, purpose, place), so that a round resumed after a crash, or
repeated on another day, draws the same numbers in the same places.
"""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RandomStreams:
    """`run_id`: 16 bytes; `site`: the site's name; `round` counts from 1."""

    run_id: bytes
    round: int
    site: str

    def seed(self, purpose: str, *place: int | str) -> int:
        """63 bits."""
        parts = [self.run_id.hex(), str(self.round), self.site, purpose, *map(str, place)]
        digest = hashlib.sha256("\x00".join(["hemofed training stream v1", *parts]).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def generator(self, purpose: str, *place: int | str) -> np.random.Generator:
        return np.random.default_rng(self.seed(purpose, *place))
