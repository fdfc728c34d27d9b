"""Callers that hold on to all that an aggregator lets them have, and begin again when it ends what they hold."""

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from site_client.agent.identity.identity import SiteIdentity
from tests.raw_channel import RawChannel

CALLS_PER_CHANNEL = 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # RFC 9113, with empty SETTINGS
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Target:
    """A listener, and the certificate to show there; None shows none."""

    port: int
    ca_pem: bytes
    identity: SiteIdentity | None = None

    def channel(self) -> RawChannel:
        """Dial, on a connection that no other channel shares."""
        if self.identity is None:
            credentials = grpc.ssl_channel_credentials(self.ca_pem)
        else:
            credentials = grpc.ssl_channel_credentials(
                self.ca_pem, self.identity.tls_key_pem, self.identity.certificate_pem
            )
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        return grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options)

    def context(self, folder: Path) -> ssl.SSLContext:
        """A TLS context of the standard library; `folder` gets the certificate's file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.ca_pem.decode())
        context.set_alpn_protocols(["h2"])
        if self.identity is not None:
            path = folder / f"{self.identity.site}.pem"
            assert self.identity.certificate_pem is not None  # it has joined
            assert self.identity.tls_key_pem is not None
            path.write_bytes(self.identity.tls_key_pem + self.identity.certificate_pem)
            context.load_cert_chain(path)
        return context


class Silent:
    """An iterator of requests that has none until it is released."""

    def __init__(self) -> None:
        self._released = threading.Event()

    def __iter__(self) -> "Silent":
        return self

    def __next__(self) -> bytes:
        self._released.wait()
        raise StopIteration

    def release(self) -> None:
        self._released.set()


@contextmanager
def half_open_calls(target: Target, path: str, count: int) -> Iterator[Counter[str]]:
    """Keep `count` calls in progress whose message never comes. Yields how many ended, by status code."""
    codes: Counter[str] = Counter()
    stopping = threading.Event()

    def hold(channel: RawChannel) -> None:
        while not stopping.wait(0.1):
            requests = Silent()
            try:
                call = channel.stream_stream(path)(requests)
            except ValueError:  # the channel was closed
                return
            codes[call.code().name] += 1  # waits for the end
            requests.release()

    channels = [target.channel() for _ in range(-(-count // CALLS_PER_CHANNEL))]
    threads = [
        threading.Thread(target=hold, args=(channels[index // CALLS_PER_CHANNEL],), daemon=True)
        for index in range(count)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # nothing on this side tells when the calls have arrived
    try:
        yield codes
    finally:
        stopping.set()
        for channel in channels:
            channel.close()
        for thread in threads:
            thread.join(10)


@contextmanager
def idle_connections(ports: list[int], count: int, context: ssl.SSLContext | None = None) -> Iterator[Counter[int]]:
    """Keep `count` connections to each port that say nothing, half of them after a TLS handshake if there is a context.

    Yields how many were ended by the other side, by port.
    """
    ended: Counter[int] = Counter()
    stopping = threading.Event()
    selector = selectors.DefaultSelector()

    def hold(port: int, tls: bool) -> None:
        connection = None
        try:
            connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
            if tls and context is not None:
                connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
        except OSError:  # no place for it: it is tried again
            if connection is not None:
                connection.close()
            connection = socket.socket()
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, (port, tls))

    def watch() -> None:
        while not stopping.wait(0.2):
            for key, _ in selector.select(0):
                connection, (port, tls) = key.fileobj, key.data
                # Every object registered here is a socket.
                assert isinstance(connection, socket.socket)
                if not ended_within(connection, 0):
                    continue
                ended[port] += 1
                selector.unregister(connection)
                connection.close()
                hold(port, tls)

    for port in ports:
        for index in range(count):
            hold(port, tls=bool(index % 2))
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield ended
    finally:
        stopping.set()
        thread.join()
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # a socket
        selector.close()


def handshake(port: int, context: ssl.SSLContext) -> str:
    """Connect, begin HTTP/2, and return how that failed; an empty text when the server answered."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection,
            context.wrap_socket(connection, server_hostname="127.0.0.1") as encrypted,
        ):
            encrypted.sendall(PREFACE)
            return "" if encrypted.recv(9) else "closed without an answer"
    except OSError as error:
        return repr(error)


def junk(port: int, begins: bytes) -> None:
    """Connect, send bytes that are no handshake or the beginning of one, and go away soon after."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.sendall(begins)
        ended_within(connection, 1.0)


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first flight of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    return outgoing.read()


def ended_within(connection: socket.socket, seconds: float) -> bool:
    """Whether the other end closes a connection within so many seconds; what it says before is read and dropped."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
    except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    return True
