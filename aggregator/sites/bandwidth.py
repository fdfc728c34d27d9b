"""A site measures its line: bytes come in, bytes go out, nothing is kept but how many there were of late."""

import threading
import time
from collections.abc import Callable

from federation.bandwidth import sequence
from federation.limits import CHUNK_BYTES_MAX
from federation.v1 import bandwidth_pb2

from aggregator.errors import Busy, MessageRefused

WINDOW_S = 60.0
WINDOW_BYTES_MAX = 8 * CHUNK_BYTES_MAX  # a measurement moves a quarter of it
CALL_BYTES = 64 * 1024  # what the smallest call counts for, so that their number is bounded too


class BandwidthTest:
    """Answers a site until it has moved enough for a minute. Thread-safe; in memory: a restart forgives."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._moved: dict[str, tuple[float, int]] = {}  # by site: when its window began, bytes in it

    def answer(self, site: str, request: bandwidth_pb2.EchoRequest) -> bandwidth_pb2.EchoReply:
        """Raises: MessageRefused for more than 1 MiB either way, Busy when the minute's share is spent."""
        for what, size in (("sent", len(request.data)), ("wanted", request.wanted_bytes)):
            if size > CHUNK_BYTES_MAX:
                raise MessageRefused(f"expected at most {CHUNK_BYTES_MAX} bytes {what} to measure a line, got {size}")
        self._spend(site, max(CALL_BYTES, len(request.data) + request.wanted_bytes))
        return bandwidth_pb2.EchoReply(data=sequence(request.wanted_bytes))

    def _spend(self, site: str, size_bytes: int) -> None:
        now = self._monotonic()
        with self._lock:
            began, moved = self._moved.get(site, (now, 0))
            if now - began >= WINDOW_S:
                began, moved = now, 0
            if moved + size_bytes > WINDOW_BYTES_MAX:
                raise Busy("this site has measured enough for a minute; try again in a minute")
            self._moved[site] = (began, moved + size_bytes)
