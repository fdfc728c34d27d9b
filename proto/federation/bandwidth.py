"""The data of a bandwidth test: the first bytes of one sequence that every machine can compute."""

import hashlib


def sequence(size_bytes: int) -> bytes:
    """Returns the first `size_bytes` bytes of SHAKE-256 (FIPS 202) over a fixed word.

    No compression on the way makes them shorter, and they tell nothing about either machine.
    """
    return hashlib.shake_256(b"hemofed echo v1").digest(size_bytes)
