"""The hospital's own limit on the bandwidth of blobs, in both directions. Small messages do not wait."""

import time
from collections.abc import Callable


class RateLimit:
    """Limits transfers to `bytes_per_s` on average, chunk by chunk; 0 is no limit."""

    def __init__(
        self,
        bytes_per_s: float,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s, self._now, self._wait = bytes_per_s, now, wait
        self._free_at = now()

    def spend(self, size_bytes: int) -> None:
        """Account for a chunk that has moved; return when the next one may move."""
        if self._bytes_per_s == 0:
            return
        now = self._now()
        # max: unused time is not saved up, or a pause would be followed by a burst.
        self._free_at = max(self._free_at, now) + size_bytes / self._bytes_per_s
        self._wait(self._free_at - now)
