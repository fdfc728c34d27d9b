"""Random streams that depend on their purpose and position only, never on earlier draws.

Every random number of a training comes from (run, round, site, purpose, position). So a round that resumes after a
crash draws the same numbers as an undisturbed one.
"""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RandomStreams:
    """The streams of one site in one round.

    Attributes:
        run_id: 16 bytes.
        round: From 1.
        site: The site's name.
    """

    run_id: bytes
    round: int
    site: str

    def seed(self, purpose: str, *position: int | str) -> int:
        """Return a seed of 63 bits."""
        parts = [self.run_id.hex(), str(self.round), self.site, purpose, *map(str, position)]
        # The separator is in none of the parts: without it ("a", 12) and ("a1", 2) would share a stream.
        digest = hashlib.sha256("\x00".join(["hemofed training stream v1", *parts]).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def generator(self, purpose: str, *position: int | str) -> np.random.Generator:
        """Return a generator that starts from the 63 bits of `seed(purpose, *position)`."""
        return np.random.default_rng(self.seed(purpose, *position))
