"""The one way out: guard, then ledger, then the wire, in this order, for every message.

A transport takes only `Cleared` messages, and only `Egress` makes them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from federation.wire import parse, serialize
from google.protobuf.message import Message

from site_client.agent.calls import GET_BLOB, PUT_BLOB, Call
from site_client.agent.guard import Guard
from site_client.agent.ledger import Ledger

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True)
class Cleared:
    """A serialized message that the guard passed and the ledger holds."""

    data: bytes


class Transport(Protocol):
    """Carries cleared bytes to a method and brings bytes back. Errors: Unreachable, Refused."""

    def unary(self, path: str, request: Cleared) -> bytes: ...

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes: ...

    def get(self, path: str, request: Cleared) -> Iterator[bytes]: ...


class Egress:
    """Sends. Errors: EgressRefused before anything is written or sent; Malformed when an answer is not one."""

    def __init__(self, guard: Guard, ledger: Ledger, transport: Transport) -> None:
        self.guard, self.ledger = guard, ledger
        self._transport = transport

    def send(self, call: Call[Q, R], message: Q) -> R:
        """One message out, one back."""
        return parse(call.reply, self._transport.unary(call.path, self._clear(call, message)))

    def send_chunks(self, chunks: Iterable[Message]) -> Message:
        """Blobs.Put: each chunk is checked and recorded as the transport asks for it."""
        cleared = (self._clear(PUT_BLOB, chunk) for chunk in chunks)
        return parse(PUT_BLOB.reply, self._transport.put(PUT_BLOB.path, cleared))

    def fetch_chunks(self, message: Message) -> Iterator[Message]:
        """Blobs.Get: chunks as they come in."""
        for data in self._transport.get(GET_BLOB.path, self._clear(GET_BLOB, message)):
            yield parse(GET_BLOB.reply, data)

    def _clear(self, call: Call[Q, R], message: Message) -> Cleared:
        # The guard looks the call up by name and compares the type itself.
        self.guard.check_message(cast(Call[Message, Message], call), message)
        data = serialize(message)
        self.ledger.append(call.name, message, data)
        return Cleared(data)
