"""Calls over real TLS: a caller that does not go on loses its call, holds no thread, and delays no other caller."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from federation.v1 import blobs_pb2, rounds_pb2

from aggregator.network import listen
from aggregator.rpc.acceptor import Acceptor, ConnectionLimits
from aggregator.rpc.call_server import CallServer
from aggregator.rpc.calls import CallLimits, CallReceiver, IncomingCall
from aggregator.sites.authority import Authority, create_authority
from tests.aggregator.conftest import Host
from tests.custodian import CUSTODIAN
from tests.raw_channel import RawChannel

import grpc  # isort: skip  # after aggregator.rpc, which sets its cipher suites

POLL, READY = "/hemofed.v1.Rounds/Poll", "/hemofed.v1.Rounds/Ready"
PUT, GET = "/hemofed.v1.Blobs/Put", "/hemofed.v1.Blobs/Get"
LIMITS = CallLimits(calls_per_caller=3, message_s=1.0, progress_s=1.0, hold_s=20.0)
CODE = grpc.StatusCode


@dataclass
class Answers:
    """Servicers that answer every call, as soon as `gate` lets them."""

    gate: threading.Event = field(default_factory=threading.Event)
    inside: int = 0
    changed: bool = False

    def Ready(self, _request: rounds_pb2.ReadyMessage, _call: IncomingCall) -> rounds_pb2.Receipt:
        self.inside += 1
        self.gate.wait(20)
        return rounds_pb2.Receipt(verdict=rounds_pb2.Receipt.ACCEPTED)

    def look(self, _request: rounds_pb2.PollRequest, _call: IncomingCall, *, first: bool, last: bool) -> Any:
        return rounds_pb2.PollReply(retry_after_ms=7) if self.changed or last else None

    def receive(self, _call: IncomingCall) -> Callable[[blobs_pb2.BlobChunk], blobs_pb2.BlobProgress]:
        held = 0

        def take(chunk: blobs_pb2.BlobChunk) -> blobs_pb2.BlobProgress:
            nonlocal held
            held += len(chunk.data)
            return blobs_pb2.BlobProgress(held_bytes=held)

        return take

    def Get(self, request: blobs_pb2.BlobRequest, _call: IncomingCall) -> Iterator[blobs_pb2.BlobChunk]:
        chunk = blobs_pb2.BlobChunk(data=bytes(1 << 18))
        return repeat(chunk, request.offset) if request.offset else repeat(chunk)

    def __getattr__(self, name: str) -> Any:
        """The receiver asks for every method of a service; the others are not called here."""
        return self.Ready


class Place:
    """A listener, and dialling it as one of its sites."""

    def __init__(self, stack: ExitStack, authority: Authority, hosts: Mapping[str, Host], **limits: Any) -> None:
        self._stack, self._authority, self._hosts = stack, authority, hosts
        self.answers, self.revoked, self.lookups = Answers(), set[str](), 0
        self.acceptor = Acceptor("sites", listen("sites", "127.0.0.1:0"), ConnectionLimits(64, 32, 4, 30.0))
        self.receiver = CallReceiver(self.acceptor, LIMITS._replace(**limits), 1, self._site_of)
        blobs = self.receiver.handler(blobs_pb2.DESCRIPTOR.services_by_name["Blobs"], self.answers)
        service = rounds_pb2.DESCRIPTOR.services_by_name["Rounds"]
        rounds = self.receiver.handler(service, self.answers, {"Poll": self.answers.look})
        self.names = ["127.0.0.1"]
        self.server = CallServer(
            self.acceptor,
            self.receiver,
            [blobs, rounds],
            lambda: authority.server_identity(self.names),
            authority.certificate_pem,
            [("grpc.max_receive_message_length", 2 << 20)],
        )
        self.server.start()
        stack.callback(self.server.join)
        stack.callback(self.server.stop, 0.2)
        stack.callback(self.answers.gate.set)

    def _site_of(self, call: IncomingCall) -> str:
        self.lookups += 1
        certificate = x509.load_pem_x509_certificate(call.auth_context()["x509_pem_cert"][0])
        site = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        if site in self.revoked:
            call.abort(CODE.PERMISSION_DENIED, f"site {site!r} was revoked")
        return site

    def dial(self, site: str = "mercy") -> RawChannel:
        host, now = self._hosts[site], now_utc()
        issued = self._authority.issue_site_certificate(site, host.csr(), now, now + timedelta(days=1))
        key = host.tls_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        credentials = grpc.ssl_channel_credentials(self._authority.certificate_pem, key, issued.pem)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        channel = grpc.secure_channel(f"127.0.0.1:{self.acceptor.port}", credentials, options)
        self._stack.callback(channel.close)
        return channel

    def begin(self, channel: RawChannel, path: str, *messages: Any) -> grpc.Call:
        """Begin a call that sends these messages and then nothing more, without an end."""
        released = threading.Event()
        self._stack.callback(released.set)

        def requests() -> Iterator[bytes]:
            yield from (message.SerializeToString() for message in messages)
            released.wait()

        return channel.stream_stream(path)(requests())


def now_utc() -> datetime:
    """TLS looks at the machine's own clock."""
    return datetime.now(UTC)


@pytest.fixture
def make_place(tmp_path: Path, host: Host, other_host: Host) -> Iterator[Callable[..., Place]]:
    authority = create_authority(tmp_path / "ca", now_utc, CUSTODIAN.public_key())
    with ExitStack() as stack:
        yield lambda **limits: Place(stack, authority, {"mercy": host, "north": other_host}, **limits)


def ready(channel: RawChannel) -> bytes:
    return channel.unary_unary(READY)(rounds_pb2.ReadyMessage().SerializeToString(), timeout=10)


def code_of(act: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        act()
    return refused.value.code()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("path", [READY, POLL, PUT, GET])
def test_a_call_whose_message_does_not_come_takes_no_thread_and_ends(
    make_place: Callable[..., Place], path: str
) -> None:
    place = make_place()
    place.answers.gate.set()
    channel = place.dial()
    calls = [place.begin(channel, path) for _ in range(2)]
    for _ in range(3):  # there is one thread
        assert ready(channel)
    assert [call.code() for call in calls] == [CODE.DEADLINE_EXCEEDED] * 2
    assert "expected a whole message within 1 s" in (calls[0].details() or "")


def test_an_upload_that_stops_takes_no_thread_and_ends(make_place: Callable[..., Place]) -> None:
    place = make_place()
    place.answers.gate.set()
    channel = place.dial()
    call = place.begin(channel, PUT, blobs_pb2.BlobChunk(data=b"x"))
    assert ready(channel)
    assert call.code() is CODE.DEADLINE_EXCEEDED


def test_an_upload_in_many_chunks_is_answered_once_with_the_last_ones_answer(make_place: Callable[..., Place]) -> None:
    chunks = (blobs_pb2.BlobChunk(data=bytes(1000)).SerializeToString() for _ in range(50))
    reply = make_place().dial().stream_unary(PUT)(chunks, timeout=20)
    assert blobs_pb2.BlobProgress.FromString(reply).held_bytes == 50_000
    assert code_of(lambda: make_place().dial().stream_unary(PUT)(iter([]), timeout=20)) is CODE.INVALID_ARGUMENT


def test_a_download_that_is_read_slowly_goes_on_and_one_that_is_not_read_ends(make_place: Callable[..., Place]) -> None:
    place = make_place(progress_s=1.5)
    place.answers.gate.set()
    channel, other = place.dial(), place.dial("north")
    call = other.unary_stream(GET)(blobs_pb2.BlobRequest().SerializeToString())  # without an end, and not read
    slow = channel.unary_stream(GET)(blobs_pb2.BlobRequest(offset=20).SerializeToString())
    pieces = 0
    for _ in slow:
        pieces += 1
        time.sleep(0.1)
    assert pieces == 20
    assert ready(channel)
    until(lambda: not call.is_active())
    assert call.code() is not CODE.OK


def test_one_call_too_many_is_refused_and_the_share_comes_back(make_place: Callable[..., Place]) -> None:
    place = make_place(message_s=60.0)
    place.answers.gate.set()
    channels = [place.dial() for _ in range(2)]  # the share is of the site, and not of a connection
    calls = [place.begin(channels[index % 2], POLL) for index in range(3)]
    until(lambda: sum(place.receiver._calls.values()) == 3)
    assert code_of(lambda: ready(channels[0])) is CODE.RESOURCE_EXHAUSTED
    assert ready(place.dial("north"))
    calls[0].cancel()
    until(lambda: sum(place.receiver._calls.values()) == 2)
    assert ready(channels[1])


def test_a_caller_that_goes_away_counts_until_its_thread_is_free(make_place: Callable[..., Place]) -> None:
    place = make_place()
    channel = place.dial()
    futures = [channel.unary_unary(READY).future(b"", timeout=20) for _ in range(3)]
    until(lambda: place.answers.inside == 1)
    until(lambda: sum(place.receiver._calls.values()) == 3)
    for future in futures:
        future.cancel()
    assert code_of(lambda: ready(channel)) is CODE.RESOURCE_EXHAUSTED
    place.answers.gate.set()
    until(lambda: not place.receiver._calls)
    assert ready(channel)


def test_calls_of_a_revoked_site_are_told_so_and_its_connection_ends(make_place: Callable[..., Place]) -> None:
    place = make_place()
    place.answers.gate.set()
    place.revoked.add("mercy")
    channel = place.dial()
    calls = [place.begin(channel, POLL) for _ in range(20)]
    codes = {call.code() for call in calls}
    assert CODE.PERMISSION_DENIED in codes
    assert codes <= {CODE.PERMISSION_DENIED, CODE.UNAVAILABLE}
    assert place.lookups <= 2  # one a connection, and perhaps a second connection
    assert place.answers.inside == 0
    assert ready(place.dial("north"))


def test_a_connection_is_looked_up_once(make_place: Callable[..., Place]) -> None:
    place = make_place()
    place.answers.gate.set()
    channel = place.dial()
    for _ in range(5):
        assert ready(channel)
    assert place.lookups == 1


@pytest.mark.parametrize("ends", ["a change", "the hold's end", "the server's end"])
def test_a_held_call_is_answered_at(make_place: Callable[..., Place], ends: str) -> None:
    place = make_place(hold_s=0.5 if ends == "the hold's end" else 20.0)
    held = [place.dial(site).unary_unary(POLL).future(b"") for site in ("mercy", "north")]  # and there is one thread
    until(lambda: sum(place.receiver._calls.values()) == 2)
    if ends == "a change":
        place.answers.changed = True
        place.server.wake()
    elif ends == "the server's end":
        place.server.stop(5.0)
    replies = [rounds_pb2.PollReply.FromString(future.result(timeout=5)) for future in held]
    assert [reply.retry_after_ms for reply in replies] == [7, 7]


def test_a_server_that_is_told_twice_to_stop_or_has_ended_stops_once(make_place: Callable[..., Place]) -> None:
    place = make_place()
    assert place.dial("north")
    place.server.stop(0.1)
    place.server.stop(5.0)
    place.server._thread.join()
    place.server.stop(0.1)


def test_bytes_that_are_no_message_are_refused(make_place: Callable[..., Place]) -> None:
    channel = make_place().dial()
    assert code_of(lambda: channel.unary_unary(READY)(b"\xff\xff", timeout=10)) is CODE.INVALID_ARGUMENT
    assert code_of(lambda: channel.unary_unary(PUT)(b"\xff\xff", timeout=10)) is CODE.INVALID_ARGUMENT
    assert code_of(lambda: list(channel.unary_stream(GET)(b"\xff\xff", timeout=10))) is CODE.INVALID_ARGUMENT


def test_a_new_certificate_is_shown_to_new_connections_and_calls_in_progress_go_on(
    make_place: Callable[..., Place],
) -> None:
    place = make_place()
    channel = place.dial()
    in_progress = channel.unary_unary(READY).future(b"", timeout=20)
    until(lambda: place.answers.inside == 1)
    before = len(place.server._servers)
    place.names.append("hub.example")  # the certificate lacks a name, and is made anew
    until(lambda: len(place.server._servers) > before)
    place.answers.gate.set()
    assert in_progress.result()
    assert ready(place.dial("north"))
    assert ready(channel)
