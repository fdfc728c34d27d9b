"""The chunks of a transfer: small on a line that is slow, however much it swallows at first."""

from itertools import islice

import pytest
from federation.chunk_sizes import FAST_CHUNK_BYTES, chunk_sizes
from federation.limits import SLOW_CHUNK_BYTES


def _sizes(bytes_s: float, buffered: int, chunks: int) -> list[int]:
    """What a line asks for that holds so much in buffers, takes the rest at that rate, and asks when it has room."""
    moved = 0

    def now() -> float:
        return max(0, moved - buffered) / bytes_s

    found = []
    for size in islice(chunk_sizes(now), chunks):
        found.append(size)
        moved += size
    return found


def test_a_slow_line_is_given_small_chunks_to_the_end() -> None:
    assert set(_sizes(128 * 1024, buffered=1 << 20, chunks=200)) == {SLOW_CHUNK_BYTES}


@pytest.mark.parametrize("buffered", [0, 1 << 20])
def test_a_fast_line_is_given_large_ones_after_its_first_mebibytes(buffered: int) -> None:
    sizes = _sizes(50e6, buffered, 40)
    assert set(sizes[:8]) == {SLOW_CHUNK_BYTES}
    assert set(sizes[12:]) == {FAST_CHUNK_BYTES}


def test_a_line_that_slows_down_is_given_small_ones_again() -> None:
    clock = iter([0.0, *(0.001 * n for n in range(20)), *(1000.0 + n for n in range(5))])
    sizes = list(islice(chunk_sizes(lambda: next(clock)), 25))
    assert sizes[19] == FAST_CHUNK_BYTES
    assert sizes[20:] == [SLOW_CHUNK_BYTES] * 5
