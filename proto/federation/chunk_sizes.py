"""The sizes of the chunks of a blob's transfer, in both directions: small ones until the line proves fast."""

import time
from collections.abc import Callable, Iterator
from typing import Final

from federation.limits import SLOW_CHUNK_BYTES

FAST_CHUNK_BYTES: Final = 512 * 1024  # half as many calls, checks and lines in a ledger; larger ones gained nothing
_FAST_BYTES_S: Final = 1 << 20  # a line that moves a large chunk in half a second
_UNDER_WAY_BYTES: Final = 2 << 20  # handed over and perhaps not moved yet: they say nothing about the line


def chunk_sizes(now: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """Yield the size in bytes of the next chunk of one transfer, asked for when the line takes it."""
    began_s, moved_bytes = now(), 0
    while True:
        # Buffers take the first bytes at once, however slow the line is; so those are not counted.
        is_fast = moved_bytes - _UNDER_WAY_BYTES > _FAST_BYTES_S * (now() - began_s)
        size_bytes = FAST_CHUNK_BYTES if is_fast else SLOW_CHUNK_BYTES
        yield size_bytes
        moved_bytes += size_bytes
