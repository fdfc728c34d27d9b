"""The wire between the sites and the aggregator, in one process: requests reach the real servicers, without gRPC.

Only the transport is replaced. A request is the very bytes that the guard passed and the ledger holds; the servicer
parses and authenticates it, and refuses with a status code; the site gets the error that its own link would have made
of that code.

The wire also misbehaves when told to: it loses a request or an answer, kills whoever speaks, and lets a liar change
what passes. Whatever a site hands over is kept in `heard`, lost answers included: a malicious aggregator has it all.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import grpc
from federation.limits import SECAGG_VERSION
from federation.v1 import rounds_pb2
from federation.v1.blobs_pb2 import RoundRef
from google.protobuf.message import Message

from site_client.agent.egress.calls import CALLS, Call
from site_client.agent.egress.egress import Cleared
from site_client.errors import Refused, Unreachable

# As site_client.agent.link sorts them: these mean "come back later".
LATER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_PATHS = {call.path: call for call in CALLS.values()}

M = TypeVar("M", bound=Message)
Servicers = Mapping[str, object]  # by service


def poll_of(**changes: Any) -> rounds_pb2.PollRequest:
    """The report of an idle site, with these fields changed."""
    fields: dict[str, Any] = {"state": rounds_pb2.SITE_IDLE, "version": "0.2.0", "secagg": SECAGG_VERSION}
    return rounds_pb2.PollRequest(**(fields | changes))


class Killed(BaseException):
    """A process ends here, in the middle of whatever it does. No handler of ours may stop it."""


@dataclass(frozen=True)
class Heard:
    """One message that a site handed over."""

    site: str
    call: str  # Service/Method
    message: Message
    data: bytes
    answered: bool  # the aggregator took it: it neither refused nor lost it

    @property
    def round(self) -> RoundRef:
        """The round that the message refers to."""
        message: Any = self.message
        reference: RoundRef = message.round
        return reference


@dataclass(frozen=True)
class Fault:
    """What happens to the `at`-th message (from 0) of a site's next turn."""

    kind: str  # one of FAULTS
    at: int = 0


FAULTS = ("request lost", "reply lost", "killed before", "killed after")


@dataclass
class Aborted(Exception):
    """What `context.abort` raises."""

    code: grpc.StatusCode
    details: str


@dataclass(frozen=True)
class Context:
    """The part of gRPC's ServicerContext that our servicers use: who calls, and how to refuse."""

    certificate_pem: bytes

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self.certificate_pem]} if self.certificate_pem else {}

    def peer(self) -> str:
        return "in this process"

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise Aborted(code, details)


@dataclass
class Wire:
    """Between all sites and the aggregator that is up; `servicers` is empty while it is down."""

    servicers: Servicers = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    refusals: list[tuple[str, str, grpc.StatusCode, str]] = field(default_factory=list)  # site, call, code, sentence
    # A liar sees (site, call, message), may change the message, and returns what passes on.
    lies_up: list[Callable[[str, str, Message], Message]] = field(default_factory=list)
    lies_down: list[Callable[[str, str, Message, Message], Message]] = field(default_factory=list)  # and the request

    def call(self, site: str, certificate_pem: bytes, call: Call[Message, Message], data: list[bytes]) -> list[Message]:
        """Hand a call's messages to its servicer. Errors: Unreachable, Refused."""
        first = len(self.heard)
        self.overhear(site, call, data)
        requests = [self._lied_up(site, call.name, call.request.FromString(one)) for one in data]
        replies = self._answered(site, certificate_pem, call, requests)
        self.heard[first:] = [replace(one, answered=True) for one in self.heard[first:]]
        return [self._lied_down(site, call.name, reply, requests[-1]) for reply in replies]

    def overhear(self, site: str, call: Call[Message, Message], data: list[bytes]) -> None:
        """Note what a site handed over; whether the aggregator takes it is another matter."""
        for one in data:
            self.heard.append(Heard(site, call.name, call.request.FromString(one), one, answered=False))

    def _answered(
        self, site: str, certificate_pem: bytes, call: Call[Message, Message], requests: list[Message]
    ) -> list[Message]:
        service, method = call.name.split("/")
        if service not in self.servicers:
            raise Unreachable("the aggregator is down")
        method_of = getattr(self.servicers[service], method)
        context = Context(certificate_pem)
        try:
            if call.name == "Blobs/Put":
                return [method_of(iter(requests), context)]
            reply = method_of(requests[0], context)
            return list(reply) if call.name == "Blobs/Get" else [reply]
        except Aborted as refusal:
            self.refusals.append((site, call.name, refusal.code, refusal.details))
            if refusal.code in LATER:
                raise Unreachable(refusal.details) from refusal
            raise Refused(refusal.details, refusal.code.name) from refusal

    def _lied_up(self, site: str, call: str, message: Message) -> Message:
        for lie in self.lies_up:
            message = lie(site, call, message)
        return message

    def _lied_down(self, site: str, call: str, reply: Message, request: Message) -> Message:
        for lie in self.lies_down:
            reply = lie(site, call, reply, request)
        return reply


class SiteWire:
    """One site's transport: a `site_client.agent.egress.Transport`."""

    peer = "aggregator.test:443"

    def __init__(self, wire: Wire, site: str, certificate_pem: bytes) -> None:
        self._wire, self._site, self._certificate_pem = wire, site, certificate_pem
        self._fault: Fault | None = None
        self._count = 0

    def arm(self, fault: Fault | None) -> None:
        """The fault of the turn that begins now."""
        self._fault, self._count = fault, 0

    def unary(self, path: str, request: Cleared) -> bytes:
        (reply,) = self._send(path, [request.data])
        return reply

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes:
        (reply,) = self._send(path, [request.data for request in requests])
        return reply

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        yield from self._send(path, [request.data])

    def _send(self, path: str, data: list[bytes]) -> list[bytes]:
        kind = self._fault.kind if self._fault is not None and self._fault.at == self._count else ""
        self._count += 1
        if kind == "request lost":
            self._wire.overhear(self._site, _PATHS[path], data)
            raise Unreachable("the request was lost")
        if kind == "killed before":
            raise Killed
        replies = self._wire.call(self._site, self._certificate_pem, _PATHS[path], data)
        if kind == "killed after":
            raise Killed
        if kind == "reply lost":
            raise Unreachable("the answer was lost")
        return [reply.SerializeToString(deterministic=True) for reply in replies]
