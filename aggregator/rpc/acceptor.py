"""Accepts connections in front of a gRPC server, bounds what strangers hold, and forwards bytes in both directions.

gRPC accepts every connection there is. Here a thread of our own accepts, and gRPC listens on a Unix socket that only
this thread dials. TLS passes through unread: gRPC ends it, and `CallServer` says which connection is which site's.

    accepted     one descriptor; nothing is forwarded before a TLS handshake begins
    forwarded    three descriptors; the caller has `handshake_s` to make a call that is authenticated
    admitted     such a call was made: the connection counts for its site, and lasts as long as both ends want

A bound that is reached keeps no newcomer out. It ends the connection that has been quiet for longest, of the address or
site that is over its bound: an honest handshake is over within moments, and an idle one is not.
"""

import fcntl
import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

import structlog

from aggregator.network import network_of

log = structlog.get_logger()

TICK_S = 0.5  # between two looks for connections whose time is over
PIPE_BYTES = 256 * 1024  # moved at once; less where the system allows no pipe of that size
BURST = 8  # moves for one connection before the others have their turn
ACCEPTED_AT_ONCE = 64
REFUSED_S = 1.0  # a refused caller can read the reason before it is disconnected
TLS_HANDSHAKE = b"\x16"  # the first byte of every TLS connection (RFC 8446, section 5.1)

_F_SETPIPE_SZ = 1031  # linux/fcntl.h
_SPLICE_F_NONBLOCK = 2  # linux/splice.h
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class ConnectionLimits(NamedTuple):
    """See [limits] in deploy/aggregator.toml."""

    connections: int
    per_address: int
    per_site: int
    handshake_s: float


class ConnectionHolder(NamedTuple):
    """Whom a connection counts for: an address as long as it is not authenticated, then a site."""

    kind: Literal["address", "site"]
    name: str


@dataclass(eq=False, slots=True)
class Connection:
    """A client's connection, and the one to gRPC that was made for it."""

    client: socket.socket
    address: str  # as `network_of` counts it
    holder: ConnectionHolder
    ends_at: float  # monotonic seconds; infinite when it is admitted
    site: str | None = None
    refused: bool = False
    ended: bool = False
    upstream: socket.socket | None = None
    peer: str = ""  # gRPC's name for it
    # Bytes that the target did not take yet. Their source is not read until they have left.
    to_upstream: bytes | memoryview = b""
    to_client: bytes | memoryview = b""


class Acceptor:
    """One listener and its thread. Methods without an underscore may be called from any thread."""

    def __init__(self, name: str, listener: socket.socket, limits: ConnectionLimits) -> None:
        """Prepare; nothing is accepted before `start`.

        Args:
            name: Names the listener in the log.
            listener: Listens already and does not block; `stop` closes it.
            limits: Bounds for what is held at once.
        """
        self.port: int = listener.getsockname()[1]
        self._name, self._listener, self._limits = name, listener, limits
        self._upstream_path = ""
        self._by_descriptor: dict[int, Connection] = {}  # of both ends
        self._by_peer: dict[str, Connection] = {}
        # By holder, and within one in the order of the last bytes from the client: the first was quiet for longest.
        self._held: dict[ConnectionHolder, dict[Connection, None]] = {}
        self._counts = {"address": 0, "site": 0}  # connections by kind of holder
        self._masks: dict[int, int] = {}  # by descriptor: the events that epoll waits for
        self._epoll = select.epoll()
        self._requests: deque[Callable[[], None]] = deque()
        self._requested = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pipe_out, self._pipe_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(PermissionError):  # above fs.pipe-max-size; the pipe keeps its size, and a move takes more calls
            fcntl.fcntl(self._pipe_in, _F_SETPIPE_SZ, PIPE_BYTES)
        self._stopping = False
        self.thread = threading.Thread(target=self._run, name=f"accept-{name}")

    def start(self, upstream_path: str) -> None:
        """Accept connections, and forward them to the Unix socket at `upstream_path`."""
        self._upstream_path = upstream_path
        self.thread.start()

    def redirect(self, upstream_path: str) -> None:
        """Forward new connections to another Unix socket; older ones stay where they are."""
        self._upstream_path = upstream_path

    def connection(self, peer: str) -> Connection | None:
        """Return the connection that gRPC calls `peer`; None when it has ended."""
        return self._by_peer.get(peer)

    def admit(self, connection: Connection, site: str) -> None:
        """Count a connection for the site whose call was authenticated on it."""
        connection.site = site  # at once: the next call on it needs no look-up
        self._request(lambda: self._admit(connection, site))

    def refuse(self, connection: Connection) -> None:
        """End a connection in a moment: its caller is no site, or is no longer one."""
        connection.refused = True
        self._request(lambda: self._refuse(connection))

    def close(self) -> None:
        """Accept no more connections."""
        self._request(self._close_listener)

    def stop(self) -> None:
        """End every connection, and return when the thread has ended."""
        self._stopping = True
        self._request(self._close_listener)
        if self.thread.ident is not None:  # it was started
            self.thread.join()
        self._close_listener()
        self._epoll.close()
        for descriptor in (self._requested, self._pipe_out, self._pipe_in):
            os.close(descriptor)

    def _request(self, act: Callable[[], None]) -> None:
        self._requests.append(act)
        os.eventfd_write(self._requested, 1)

    # --- the thread ---

    def _run(self) -> None:
        self._watch(self._requested, _IN)
        self._watch(self._listener.fileno(), _IN)
        sweep_at = time.monotonic() + TICK_S
        while not self._stopping:
            for descriptor, events in self._epoll.poll(TICK_S):
                if descriptor == self._requested:
                    os.eventfd_read(self._requested)
                elif descriptor == self._listener.fileno():
                    self._accept()
                elif (connection := self._by_descriptor.get(descriptor)) is not None:
                    self._move(connection, descriptor, events)
            while self._requests:
                self._requests.popleft()()
            if (now := time.monotonic()) >= sweep_at:
                sweep_at = now + TICK_S
                self._sweep(now)
        for connection in list(self._by_descriptor.values()):
            self._end(connection)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # The listener stays readable as long as descriptors lack: without a pause this would be a busy loop.
                log.warning("connection not accepted", listener=self._name, why=error.strerror)
                time.sleep(0.01)
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            holder = ConnectionHolder("address", network_of(peer[0]))
            if not self._make_room(holder):
                log.warning("connection refused", listener=self._name, why="sites hold all connections")
                client.close()
                continue
            ends_at = time.monotonic() + self._limits.handshake_s
            connection = Connection(client, holder.name, holder, ends_at)
            self._by_descriptor[client.fileno()] = connection
            self._hold(connection, holder)
            self._watch(client.fileno(), _IN)

    def _make_room(self, holder: ConnectionHolder) -> bool:
        """End a connection where one more of `holder` would be too many; False when sites hold all there may be."""
        limits, strangers = self._limits, self._counts["address"]
        if len(self._held.get(holder, ())) >= limits.per_address:
            self._end_quietest(holder, "too many of one address that are not authenticated")
        # Strangers get half of all connections, so a site that comes back finds a place whatever they do.
        elif strangers >= limits.connections // 2 or strangers + self._counts["site"] >= limits.connections:
            if not strangers:
                return False
            others = [holder for holder in self._held if holder.kind == "address"]
            self._end_quietest(max(others, key=lambda other: len(self._held[other])), "too many not authenticated")
        return True

    def _end_quietest(self, holder: ConnectionHolder, why: str) -> None:
        log.warning("connection ended", listener=self._name, why=why, holder=holder.name)
        self._end(next(iter(self._held[holder])))

    def _hold(self, connection: Connection, holder: ConnectionHolder) -> None:
        connection.holder = holder
        self._held.setdefault(holder, {})[connection] = None
        self._counts[holder.kind] += 1

    def _release(self, connection: Connection) -> None:
        holder = connection.holder
        del self._held[holder][connection]
        self._counts[holder.kind] -= 1
        if not self._held[holder]:
            del self._held[holder]

    def _admit(self, connection: Connection, site: str) -> None:
        if connection.ended or connection.refused:
            return
        holder = ConnectionHolder("site", site)
        if connection.holder != holder:
            self._release(connection)
            self._hold(connection, holder)
        connection.ends_at = math.inf
        # The others may be of before the line broke, and nothing else would end them for half a minute.
        if len(self._held[holder]) > self._limits.per_site:
            self._end_quietest(holder, "too many of one site")

    def _refuse(self, connection: Connection) -> None:
        if connection.ended:
            return
        self._release(connection)
        self._hold(connection, ConnectionHolder("address", connection.address))
        connection.ends_at = min(connection.ends_at, time.monotonic() + REFUSED_S)

    def _sweep(self, now: float) -> None:
        strangers = [held for holder, held in self._held.items() if holder.kind == "address"]
        for connection in [connection for held in strangers for connection in held if connection.ends_at <= now]:
            self._end(connection)

    def _move(self, connection: Connection, descriptor: int, events: int) -> None:
        """Pass on as many bytes as there are and as their target takes, in the direction of an event or in both."""
        client = connection.client
        readable, writable = bool(events & ~_OUT), bool(events & ~_IN)  # a hang-up or an error is both
        upwards, downwards = (readable, writable) if descriptor == client.fileno() else (writable, readable)
        try:
            if connection.upstream is None and not self._forward(connection):
                return
            # `_forward` has made it.
            assert connection.upstream is not None
            upstream = connection.upstream
            came = client_ended = upstream_ended = False
            if upwards:
                came, connection.to_upstream, client_ended = self._pass(client, upstream, connection.to_upstream)
            if downwards:
                _, connection.to_client, upstream_ended = self._pass(upstream, client, connection.to_client)
        except OSError:  # one of the two was reset
            self._end(connection)
            return
        # What gRPC wrote before it closed has left by now. Nobody would get an answer to what the client wrote.
        if client_ended or upstream_ended:
            self._end(connection)
            return
        if came:
            held = self._held[connection.holder]
            del held[connection]
            held[connection] = None
        self._watch(client.fileno(), (0 if connection.to_upstream else _IN) | (_OUT if connection.to_client else 0))
        self._watch(upstream.fileno(), (0 if connection.to_client else _IN) | (_OUT if connection.to_upstream else 0))

    def _forward(self, connection: Connection) -> bool:
        """Dial gRPC for a client that begins a TLS handshake, and say whether that was done."""
        try:
            begins = connection.client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        if begins != TLS_HANDSHAKE:
            self._end(connection)
            return False
        upstream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection.upstream = upstream
        self._by_descriptor[upstream.fileno()] = connection
        upstream.bind("")  # the kernel makes a name, by which gRPC will call the connection
        # That name is abstract: a zero byte and five digits (unix(7), autobind).
        connection.peer = "unix-abstract:" + upstream.getsockname()[1:].decode("ascii")
        self._by_peer[connection.peer] = connection
        upstream.connect(self._upstream_path)
        return True

    def _pass(
        self, source: socket.socket, target: socket.socket, rest: bytes | memoryview
    ) -> tuple[bool, bytes | memoryview, bool]:
        """Move bytes through a pipe, without copying them unless the target is slower than the source.

        Args:
            source: Read until it has no more for now.
            target: Written to.
            rest: Bytes of `source` that `target` has to take first.

        Returns:
            Whether bytes came from `source`, those of them that `target` did not take, and whether `source` has ended.
        """
        came = False
        for _ in range(BURST):
            if rest:
                try:
                    rest = memoryview(rest)[target.send(rest) :]
                except BlockingIOError:
                    break
                continue
            try:
                count = os.splice(source.fileno(), self._pipe_in, PIPE_BYTES, flags=_SPLICE_F_NONBLOCK)
            except BlockingIOError:
                break
            if not count:
                return came, rest, True
            came = True
            try:
                while count:
                    count -= os.splice(self._pipe_out, target.fileno(), count, flags=_SPLICE_F_NONBLOCK)
            except BlockingIOError:
                rest = os.read(self._pipe_out, count)
            except OSError:
                os.read(self._pipe_out, count)  # all connections share the pipe
                raise
        return came, rest, False

    def _watch(self, descriptor: int, mask: int) -> None:
        before = self._masks.pop(descriptor, 0)
        if mask and before:
            if mask != before:
                self._epoll.modify(descriptor, mask)
        elif mask:
            self._epoll.register(descriptor, mask)
        elif before:  # not left with an empty mask: epoll would report a hang-up again and again
            self._epoll.unregister(descriptor)
        if mask:
            self._masks[descriptor] = mask

    def _end(self, connection: Connection) -> None:
        if connection.ended:
            return
        connection.ended = True
        self._release(connection)
        self._by_peer.pop(connection.peer, None)
        for end in (connection.client, connection.upstream):
            if end is not None:
                self._watch(end.fileno(), 0)
                self._by_descriptor.pop(end.fileno(), None)
                end.close()

    def _close_listener(self) -> None:
        if self._listener.fileno() >= 0:
            self._watch(self._listener.fileno(), 0)
            self._listener.close()
