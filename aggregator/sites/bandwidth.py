"""A site measures its line: bytes come in and go out, and only their number in the last minute is kept."""

import threading
import time
from collections.abc import Callable

from federation.bandwidth import sequence
from federation.limits import CHUNK_BYTES_MAX
from federation.v1 import bandwidth_pb2

from aggregator.errors import Busy, MessageRefused

WINDOW_S = 60.0
WINDOW_BYTES_MAX = 8 * CHUNK_BYTES_MAX  # a measurement moves a quarter of it
CALL_BYTES = 64 * 1024  # a smaller call counts as this many, so that the number of calls is bounded too


class BandwidthTest:
    """Answers a site until it has moved its share of a minute. Thread-safe; in memory, so a restart forgets it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._moved: dict[str, tuple[float, int]] = {}  # by site: when its window began, bytes in it

    def answer(self, site: str, request: bandwidth_pb2.EchoRequest) -> bandwidth_pb2.EchoReply:
        """Answer with as many bytes as wanted.

        Raises:
            MessageRefused: For more than 1 MiB either way.
            Busy: When the site has moved its share of the minute.
        """
        for direction, count in (("sent", len(request.data)), ("wanted", request.wanted_bytes)):
            if count > CHUNK_BYTES_MAX:
                raise MessageRefused(
                    f"expected at most {CHUNK_BYTES_MAX} bytes {direction} to measure a line, got {count}"
                )
        size_bytes, now = max(CALL_BYTES, len(request.data) + request.wanted_bytes), self._monotonic()
        with self._lock:
            began, moved = self._moved.get(site, (now, 0))
            if now - began >= WINDOW_S:
                began, moved = now, 0
            if moved + size_bytes > WINDOW_BYTES_MAX:
                raise Busy("this site has measured enough for a minute; try again in a minute")
            self._moved[site] = (began, moved + size_bytes)
        return bandwidth_pb2.EchoReply(data=sequence(request.wanted_bytes))
