"""The one way out of the hospital: guard, then ledger, then the wire, in this order, for every message.

A transport takes only `Cleared` messages, and only `Egress` makes them. The ledger also holds every refused message, as
refused.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from federation.wire import parse, serialize
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from site_client.agent.egress.calls import GET_BLOB, PUT_BLOB, Call
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import EgressDecision, Ledger, Outgoing
from site_client.agent.egress.payloads import Payloads
from site_client.agent.egress.rate_limit import RateLimit
from site_client.errors import EgressRefused

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True)
class Cleared:
    """A serialized message that the guard passed and the ledger holds."""

    data: bytes


class Transport(Protocol):
    """Carries cleared messages to a method and returns its answers. Every call may raise Unreachable or Refused."""

    @property
    def peer(self) -> str:
        """Address of the other end, host:port."""

    def unary(self, path: str, request: Cleared) -> bytes:
        """Send one message, return the answer."""

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes:
        """Send a stream of messages, return the answer."""

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        """Send one message, yield a stream of answers."""


class Egress:
    """Sends messages.

    Every method that sends raises EgressRefused before anything leaves, Unreachable or Refused from the transport, and
    Malformed when the answer is not of the call's type.
    """

    def __init__(
        self,
        guard: Guard,
        ledger: Ledger,
        transport: Transport,
        payloads: Payloads | None = None,
        rate_limit: RateLimit | None = None,
        moved: Callable[[], None] = lambda: None,
        decision: EgressDecision = EgressDecision.ALLOWED,
    ) -> None:
        """Put the way out together.

        Args:
            guard: Checks every message.
            ledger: Records every message.
            transport: Carries every cleared message.
            payloads: Keeps the bytes of every cleared message; None keeps nothing.
            rate_limit: For chunks, in both directions.
            moved: Called for every message and chunk, so that a slow transfer differs from a hung one.
            decision: The ledger's word for a message that the guard passes; DRY_RUN in a dry run.
        """
        self.guard, self.ledger, self.payloads, self._moved = guard, ledger, payloads, moved
        self._decision = decision
        self._held_bytes: dict[bytes, int] = {}  # digest of the upload in progress -> bytes at the aggregator
        self.progress = 0  # grows with every byte of a blob that arrives, in either direction
        self._transport, self._rate_limit = transport, rate_limit or RateLimit(0)

    @property
    def dest(self) -> str:
        """Address of the other end, host:port."""
        return self._transport.peer

    def send(self, call: Call[Q, R], message: Q) -> R:
        """Send one message, return the answer."""
        return parse(call.reply, self._transport.unary(call.path, self._clear(call, message)))

    def note_held(self, digest: bytes, held_bytes: int) -> None:
        """Record the size of the part of an upload that the aggregator holds."""
        if held_bytes > self._held_bytes.get(digest, 0):
            self.progress += 1
            self._held_bytes = {digest: held_bytes}

    def send_chunks(self, chunks: Iterable[Message]) -> Message:
        """Call Blobs.Put. Each chunk is checked and recorded when the transport asks for it."""
        return parse(PUT_BLOB.reply, self._transport.put(PUT_BLOB.path, self._cleared(chunks)))

    def fetch_chunks(self, message: Message) -> Iterator[Message]:
        """Call Blobs.Get, and yield the chunks as they arrive."""
        for data in self._transport.get(GET_BLOB.path, self._clear(GET_BLOB, message)):
            self.progress += 1
            yield parse(GET_BLOB.reply, data)
            self._moved()
            self._rate_limit.spend(len(data))

    def _cleared(self, chunks: Iterable[Message]) -> Iterator[Cleared]:
        for chunk in chunks:
            cleared = self._clear(PUT_BLOB, chunk)
            yield cleared
            # After the yield: the transport takes the next chunk only when this wait is over.
            self._rate_limit.spend(len(cleared.data))

    def _clear(self, call: Call[Q, R], message: Message) -> Cleared:
        self._moved()
        # Serialized once: guard, ledger, payloads and wire are about the very same bytes.
        data = serialize(message)
        try:
            rule = self.guard.check_message(call, message)
        except EgressRefused as refusal:
            # A refusal is recorded as well: it tells the hospital that something tried to leave.
            self._record(call, message, data, EgressDecision.REFUSED, str(refusal))
            raise
        # Before the wire: a message that left without an entry could never be found again.
        seq = self._record(call, message, data, self._decision, rule)
        if self.payloads is not None:
            # After the ledger, which must hold the entry that a payload belongs to.
            self.payloads.keep(seq, data)
        return Cleared(data)

    def _record(self, call: Call[Q, R], message: Message, data: bytes, decision: EgressDecision, rule: str) -> int:
        outgoing = Outgoing(self._transport.peer, call.name, data, summary(message), decision, rule)
        return self.ledger.append(outgoing).seq


def summary(message: Message, prefix: str = "") -> dict[str, str]:
    """Return name and length of each field that is set. No value."""
    lengths: dict[str, str] = {}
    for field, value in message.ListFields():
        name = prefix + field.name
        if field.is_repeated:
            lengths[name] = f"{len(value)} x {_type_name(field)}"
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            lengths |= summary(value, f"{name}.")
        else:
            lengths[name] = (
                f"{_type_name(field)}[{len(value)}]" if isinstance(value, bytes | str) else _type_name(field)
            )
    return lengths


def _type_name(field: FieldDescriptor) -> str:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return str(field.message_type.name) if field.message_type else "message"
    return _SCALARS.get(field.type, "number")


_SCALARS: dict[int, str] = {
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "flag",
    FieldDescriptor.TYPE_ENUM: "choice",
}
