"""The one way out: guard, then ledger, then the wire, in this order, for every message.

A transport takes only `Cleared` messages, and only `Egress` makes them. What the guard refuses stands in the ledger as
well, as refused.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

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
    """Carries cleared bytes to a method and brings bytes back. Errors: Unreachable, Refused."""

    @property
    def peer(self) -> str:
        """host:port of whom it talks to."""

    def unary(self, path: str, request: Cleared) -> bytes: ...

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes: ...

    def get(self, path: str, request: Cleared) -> Iterator[bytes]: ...


class Egress:
    """Sends. Errors: EgressRefused before anything is sent; Malformed when an answer is not one."""

    def __init__(
        self,
        guard: Guard,
        ledger: Ledger,
        transport: Transport,
        payloads: Payloads | None = None,
        pace: RateLimit | None = None,
        moved: Callable[[], None] = lambda: None,
        decision: EgressDecision = EgressDecision.ALLOWED,
    ) -> None:
        """`decision`: what the ledger says of a message that the guard passes; a rehearsal's is DRY_RUN.

        `moved` is called for every message and chunk, so that a slow transfer can be told from a hung one.
        """
        self.guard, self.ledger, self.payloads, self._moved = guard, ledger, payloads, moved
        self._decision = decision
        self._held: dict[bytes, int] = {}
        self.progress = 0  # grows whenever a blob got on, in either direction
        self._transport, self._pace = transport, pace or RateLimit(0)

    @property
    def dest(self) -> str:
        """To whom it sends, host:port."""
        return self._transport.peer

    def send(self, call: Call[Q, R], message: Q) -> R:
        """One message out, one back."""
        return parse(call.reply, self._transport.unary(call.path, self._clear(call, message)))

    def note_held(self, digest: bytes, held_bytes: int) -> None:
        """What the other side says it holds of an upload."""
        if held_bytes > self._held.get(digest, 0):
            self.progress += 1
            self._held = {digest: held_bytes}

    def send_chunks(self, chunks: Iterable[Message]) -> Message:
        """Blobs.Put: each chunk is checked and recorded as the transport asks for it."""
        return parse(PUT_BLOB.reply, self._transport.put(PUT_BLOB.path, self._cleared(chunks)))

    def fetch_chunks(self, message: Message) -> Iterator[Message]:
        """Blobs.Get: chunks as they come in."""
        for data in self._transport.get(GET_BLOB.path, self._clear(GET_BLOB, message)):
            self.progress += 1
            yield parse(GET_BLOB.reply, data)
            self._moved()
            self._pace.spend(len(data))

    def _cleared(self, chunks: Iterable[Message]) -> Iterator[Cleared]:
        for chunk in chunks:
            cleared = self._clear(PUT_BLOB, chunk)
            yield cleared
            self._pace.spend(len(cleared.data))

    def _clear(self, call: Call[Q, R], message: Message) -> Cleared:
        self._moved()
        data = serialize(message)
        try:
            # The guard looks the call up by name and compares the type itself.
            rule = self.guard.check_message(cast(Call[Message, Message], call), message)
        except EgressRefused as refusal:
            self._record(call, message, data, EgressDecision.REFUSED, str(refusal))
            raise
        seq = self._record(call, message, data, self._decision, rule)
        if self.payloads is not None:
            self.payloads.keep(seq, data)
        return Cleared(data)

    def _record(self, call: Call[Q, R], message: Message, data: bytes, decision: EgressDecision, rule: str) -> int:
        outgoing = Outgoing(self._transport.peer, call.name, data, summary(message), decision, rule)
        return self.ledger.append(outgoing).seq


def summary(message: Message, prefix: str = "") -> dict[str, str]:
    """Which fields are set, and how long: names, types, counts. No value."""
    found: dict[str, str] = {}
    for field, value in message.ListFields():
        name = prefix + field.name
        if field.is_repeated:
            found[name] = f"{len(value)} x {_type_name(field)}"
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            found |= summary(value, f"{name}.")
        else:
            found[name] = f"{_type_name(field)}[{len(value)}]" if isinstance(value, bytes | str) else _type_name(field)
    return found


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
