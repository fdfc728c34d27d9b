"""Connections in front of gRPC: their bytes pass unchanged, and what strangers hold is bounded in number and time."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from aggregator.network import listen
from aggregator.rpc.acceptor import Acceptor, Connection, ConnectionLimits

TLS = b"\x16"
LIMITS = ConnectionLimits(connections=8, per_address=3, per_site=2, handshake_s=60.0)


class Place:
    """An acceptor, and behind it a Unix socket that stands for gRPC's."""

    def __init__(self, folder: Path, limits: ConnectionLimits, stack: ExitStack) -> None:
        self._stack = stack
        self.upstream = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.upstream.bind(str(folder / "grpc"))
        self.upstream.listen(64)
        self.upstream.settimeout(10)
        self.acceptor = Acceptor("sites", listen("sites", "127.0.0.1:0"), limits)
        stack.callback(self.acceptor.stop)
        self.acceptor.start(str(folder / "grpc"))

    def dial(self, begins: bytes = TLS) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(("127.0.0.1", self.acceptor.port), 10))
        client.sendall(begins)
        return client

    def pair(self) -> tuple[socket.socket, socket.socket, Connection]:
        """A client that has begun, the connection that gRPC sees, and the acceptor's record of both."""
        client = self.dial()
        server, peer = self.upstream.accept()
        self._stack.enter_context(server)
        server.settimeout(10)
        assert server.recv(1) == TLS
        # Abstract names begin with a zero byte.
        connection = self.acceptor.connection("unix-abstract:" + peer[1:].decode())
        assert connection is not None
        return client, server, connection


@pytest.fixture
def make_place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    with ExitStack() as stack:
        yield lambda limits=LIMITS: Place(tmp_path, limits, stack)


def is_open(client: socket.socket) -> bool:
    client.settimeout(0.5)
    try:
        return client.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def await_end(client: socket.socket) -> None:
    client.settimeout(10)
    with suppress(ConnectionResetError):
        assert client.recv(1) == b""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_bytes_pass_unchanged_in_both_directions_to_slow_readers(make_place: Callable[..., Place]) -> None:
    client, server, _ = make_place().pair()
    data = os.urandom(8 << 20)

    def receive(end: socket.socket, into: bytearray) -> None:
        while len(into) < len(data) and (part := end.recv(30_000)):
            into += part
            if len(into) % 7 == 0:  # now and then slower than the sender
                time.sleep(0.001)

    got_up, got_down = bytearray(), bytearray()
    threads = [
        threading.Thread(target=client.sendall, args=(data,)),
        threading.Thread(target=server.sendall, args=(data[::-1],)),
        threading.Thread(target=receive, args=(server, got_up)),
        threading.Thread(target=receive, args=(client, got_down)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert bytes(got_up) == data
    assert bytes(got_down) == data[::-1]


def test_either_end_closes_the_other(make_place: Callable[..., Place]) -> None:
    place = make_place()
    client, server, _ = place.pair()
    client.close()
    assert server.recv(1) == b""
    client, server, _ = place.pair()
    server.sendall(b"farewell")
    server.close()
    assert client.recv(100) == b"farewell"
    await_end(client)


@pytest.mark.parametrize("begins", [b"GET / HTTP/1.1\r\n", b"\x00", b"\x15"])
def test_bytes_that_begin_no_tls_handshake_end_the_connection_before_grpc_sees_it(
    make_place: Callable[..., Place], begins: bytes
) -> None:
    place = make_place()
    await_end(place.dial(begins))
    place.upstream.settimeout(0.2)
    with pytest.raises(TimeoutError):
        place.upstream.accept()


@pytest.mark.parametrize("begins", [b"", TLS])
def test_a_connection_without_an_authenticated_call_ends_when_its_time_is_over(
    make_place: Callable[..., Place], begins: bytes
) -> None:
    place = make_place(LIMITS._replace(handshake_s=1.0))
    began = time.monotonic()
    await_end(place.dial(begins))
    assert time.monotonic() - began > 0.9


def test_an_admitted_connection_lasts(make_place: Callable[..., Place]) -> None:
    place = make_place(LIMITS._replace(handshake_s=1.0))
    client, server, connection = place.pair()
    place.acceptor.admit(connection, "mercy")
    await_end(place.dial())  # begun later, and over
    assert is_open(client)
    client.sendall(b"poll")
    assert server.recv(4) == b"poll"


def test_one_address_too_many_ends_the_quietest_and_serves_the_newcomer(make_place: Callable[..., Place]) -> None:
    place = make_place()
    clients = [place.pair() for _ in range(3)]
    clients[0][0].sendall(b"x")  # no longer the quietest
    assert clients[0][1].recv(1) == b"x"
    _, server, _ = place.pair()
    await_end(clients[1][0])
    assert is_open(clients[0][0])
    assert is_open(clients[2][0])
    server.sendall(b"y")


def test_strangers_get_half_and_a_flood_of_them_ends_no_site(make_place: Callable[..., Place]) -> None:
    place = make_place(LIMITS._replace(per_address=100))
    sites = []
    for name in ("mercy", "north", "south"):
        client, _, connection = place.pair()
        place.acceptor.admit(connection, name)
        sites.append(client)
    strangers = [place.dial(b"") for _ in range(30)]
    until(lambda: sum(not is_open(stranger) for stranger in strangers[:26]) == 26)
    assert all(is_open(site) for site in sites)
    client, server, _ = place.pair()  # a newcomer still gets through
    client.sendall(b"hello")
    assert server.recv(5) == b"hello"


def test_one_connection_too_many_of_a_site_ends_its_quietest(make_place: Callable[..., Place]) -> None:
    place = make_place()
    clients = []
    for _ in range(3):
        client, _, connection = place.pair()
        place.acceptor.admit(connection, "mercy")
        clients.append(client)
    await_end(clients[0])
    assert is_open(clients[1])
    assert is_open(clients[2])


def test_a_refused_caller_can_read_why_and_is_then_disconnected(make_place: Callable[..., Place]) -> None:
    place = make_place()
    client, server, connection = place.pair()
    place.acceptor.admit(connection, "mercy")
    place.acceptor.refuse(connection)
    server.sendall(b"revoked")
    assert client.recv(7) == b"revoked"
    await_end(client)
    assert place.acceptor.connection(connection.peer) is None


def test_new_connections_go_where_they_are_redirected_and_old_ones_stay(
    make_place: Callable[..., Place], tmp_path: Path
) -> None:
    place = make_place()
    client, server, _ = place.pair()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        other.listen(8)
        other.settimeout(10)
        place.acceptor.redirect(str(tmp_path / "other"))
        place.dial()
        other.accept()[0].close()
    client.sendall(b"still here")
    assert server.recv(10) == b"still here"
