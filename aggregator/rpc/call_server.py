"""A gRPC server in a thread of its own, behind an `Acceptor`: its event loop, its certificate, its end.

A new certificate gets a new gRPC server beside the old one, which ends when its calls have. gRPC can also take a new
certificate by itself, but then frees the old one while handshakes use it: a few dozen at once end the process.
"""

import asyncio
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import grpc
import structlog

from aggregator.rpc.acceptor import Acceptor
from aggregator.rpc.calls import CallReceiver
from aggregator.sites.authority import ServerIdentity

log = structlog.get_logger()

CERTIFICATE_CHECK_S = 5.0  # it reads one small file
REPLACED_AFTER_S = 60.0  # a server that stops ends the handshakes that have begun on it
REPLACED_GRACE_S = 900.0  # for calls on the server with the old certificate: uploads over slow lines


class CallServer:
    """One listener: `handlers` answer what arrives at `acceptor`."""

    def __init__(
        self,
        acceptor: Acceptor,
        receiver: CallReceiver,
        handlers: Sequence[grpc.GenericRpcHandler],
        identity: Callable[[], ServerIdentity],
        client_ca_pem: bytes | None,
        options: Sequence[tuple[str, int]],
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            acceptor: Not started yet; `stop` stops it.
            receiver: Made the handlers.
            handlers: One a service.
            identity: Returns the certificate to show; asked every few seconds.
            client_ca_pem: A caller needs a certificate of this CA; None asks for none.
            options: gRPC's channel arguments.
        """
        self._acceptor, self._receiver, self._handlers = acceptor, receiver, handlers
        self._identity, self._client_ca_pem, self._options = identity, client_ca_pem, options
        self._servers: list[grpc.aio.Server] = []  # the last one gets the new connections
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="calls")

    @property
    def threads(self) -> tuple[threading.Thread, ...]:
        """All that have to run as long as it serves."""
        return self._thread, self._acceptor.thread

    def start(self) -> None:
        """Return when connections are accepted."""
        self._thread.start()
        self._started.result()

    def wake(self) -> None:
        """Let held calls ask again. For any thread; nothing happens when the server has ended."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._receiver.wake)

    def stop(self, grace_s: float) -> None:
        """Accept nothing more, give calls in progress `grace_s` seconds, and end. Returns at once; `join` waits.

        A second call changes nothing.
        """
        if self._thread.ident is not None:  # it was started
            self._acceptor.close()
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._end_within, grace_s)

    def join(self) -> None:
        """Return when it has ended."""
        if self._thread.ident is not None:
            self._thread.join()
        self._acceptor.stop()

    def _end_within(self, grace_s: float) -> None:
        if not self._grace_s.done():
            self._grace_s.set_result(grace_s)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._grace_s: asyncio.Future[float] = self._loop.create_future()
        # A folder of this user alone: a caller who dialled the socket itself would pass by the acceptor.
        with tempfile.TemporaryDirectory(prefix="hemofed-") as folder:
            try:
                shown = self._identity()
                self._acceptor.start(await self._begin(shown, Path(folder)))
            except BaseException as error:
                self._started.set_exception(error)
                raise
            self._started.set_result(None)
            ending: set[asyncio.Task[None]] = set()
            while not self._grace_s.done():
                await asyncio.wait([self._grace_s], timeout=CERTIFICATE_CHECK_S)
                try:
                    if (identity := self._identity()) != shown:
                        self._acceptor.redirect(await self._begin(identity, Path(folder)))
                        shown = identity
                        ending.add(asyncio.create_task(self._end_replaced(self._servers[-2])))
                        log.info("certificate renewed")
                except Exception:  # a full disk, for example; the old certificate is good for a month
                    log.exception("certificate not renewed")
            self._receiver.stop()
            await asyncio.gather(*(server.stop(self._grace_s.result()) for server in self._servers), *ending)
            self._receiver.close()

    async def _end_replaced(self, server: grpc.aio.Server) -> None:
        await asyncio.wait([self._grace_s], timeout=REPLACED_AFTER_S)
        await server.stop(REPLACED_GRACE_S)

    async def _begin(self, identity: ServerIdentity, folder: Path) -> str:
        """Start a gRPC server that shows this certificate, and return the path of its socket."""
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers(tuple(self._handlers))
        credentials = grpc.ssl_server_credentials(
            [(identity.key_pem, identity.certificate_pem)],
            root_certificates=self._client_ca_pem,
            require_client_auth=self._client_ca_pem is not None,
        )
        path = str(folder / f"{len(self._servers)}")
        server.add_secure_port(f"unix:{path}", credentials)
        await server.start()
        self._servers.append(server)
        return path
