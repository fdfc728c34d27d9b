"""The data of a bandwidth test: the first bytes of one sequence that every machine can compute."""

import hashlib


def sequence(size_bytes: int) -> bytes:
    """SHAKE-256 (FIPS 202) of a fixed word: no compression on the way makes it shorter, and it tells nothing."""
    return hashlib.shake_256(b"hemofed echo v1").digest(size_bytes)
