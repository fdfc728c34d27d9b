"""A web server: uvicorn in a thread, with bounds for connections and requests.

uvicorn waits for the rest of a request, and for a reader of its answer, as long as the other side likes.
"""

import asyncio
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from aggregator.config import LimitsSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

REQUEST_BYTES_MAX = 64 * 1024  # the largest is a log-in
STOP_S = 2  # for answers in progress when stopping


class WebServer:
    """Serves pages at one listening socket."""

    def __init__(self, name: str, pages: "ASGIApp", listener: socket.socket, limits: LimitsSettings) -> None:
        """Prepare; nothing is served before `start`.

        Args:
            name: Of the thread.
            pages: What answers.
            listener: Listens already; closed when the server ends.
            limits: Bounds for connections and requests.
        """

        class Protocol(BoundedProtocol):
            connections_max, request_s = limits.dashboard_connections, limits.request_s

        config = uvicorn.Config(
            pages,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # it warns of every request that is no HTTP
            access_log=False,
            timeout_graceful_shutdown=STOP_S,
        )
        self._listener, self._server = listener, uvicorn.Server(config)
        self.thread = threading.Thread(target=self._server.run, args=([listener],), name=name)

    def start(self) -> None:
        """Serve."""
        self.thread.start()

    def stop(self) -> None:
        """Begin to end; `join` waits."""
        self._server.should_exit = True

    def join(self) -> None:
        """Return when it has ended."""
        if self.thread.ident is not None:  # it was started
            self.thread.join()
        self._listener.close()


class BoundedProtocol(H11Protocol):
    """A browser's connection. It ends when a request and its answer take too long, or when others need its place."""

    connections_max: int
    request_s: float

    # The base class narrows the argument in the same way: asyncio hands a TCP server's protocols such transports.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the place of the connection that has waited for its request for longest, if there is none left."""
        super().connection_made(transport)
        self._begin_request()
        if len(self.connections) > self.connections_max:
            # uvicorn's set holds what its http_protocol_class made: this class.
            others = [other for other in self.connections if isinstance(other, BoundedProtocol) and other._waits()]
            min(others, key=lambda other: other._since).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on, up to the size of the largest request."""
        self._received_bytes += len(data)
        if self._received_bytes > REQUEST_BYTES_MAX:
            self.transport.abort()
            return
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Expect the next request, and that the answer is taken in the meantime."""
        self._timer.cancel()
        self._begin_request()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _begin_request(self) -> None:
        self._received_bytes, self._since = 0, self.loop.time()
        # abort and not close, which would wait until the other side has read everything.
        self._timer = self.loop.call_later(self.request_s, self.transport.abort)

    def _waits(self) -> bool:
        """Whether the connection's request is not here yet, as is true of one that was just made."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body
