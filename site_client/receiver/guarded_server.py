"""Bounds in front of pynetdicom, which by itself takes any number of connections, and PDUs and messages of any size.

A connection is refused before a thread is made for it when its address is unknown or too many are open. On a connection
each PDU has a size and a time, each message a size, and no message may come before the one before it was answered
(PS3.7 section 9: without negotiation of an asynchronous window, one operation at a time).
"""

import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from socketserver import TCPServer
from typing import Any, Final

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler

from site_client.receiver.settings import Network

PDU_MAX: Final = 1 << 17  # bytes of a P-DATA-TF, as we ask for in the negotiation
_ANY_PDU_MAX: Final = 1 << 18  # an A-ASSOCIATE-RQ with 128 contexts of 40 transfer syntaxes has 160 KiB
_COMMAND_MAX: Final = 1 << 16
_IDENTIFIER_MAX: Final = 1 << 22  # a request for the commitment of 30,000 objects
_WAITING_MAX: Final = 2
_P_DATA: Final = 4
_C_STORE: Final = 1  # PS3.7 table E.1-1
_NOT_NEGOTIATED: Final = 2  # connections a place for an association: beyond that they are closed without a word


class PeerRefused(OSError):
    """A peer went over a bound. pynetdicom closes the connection for an OSError. The message is a clause."""


@dataclass
class MessageBounds:
    """The messages of one connection, as far as their sizes go. PS3.8 section 9.3.5, PS3.8 annex E."""

    object_max: int
    _command: bytearray = field(default_factory=bytearray)
    _dataset_bytes: int = 0
    _dataset_max: int = 0

    def add(self, values: memoryview) -> None:
        """Count the presentation data values of one P-DATA-TF PDU.

        Raises:
            PeerRefused: A command or a data set is too large, or the PDU's own lengths do not add up.
        """
        position = 0
        while position < len(values):
            if len(values) - position < 6:
                raise PeerRefused("a PDU was malformed")
            length, _context, control = struct.unpack_from(">LBB", values, position)
            end = position + 4 + length
            if length < 2 or end > len(values):
                raise PeerRefused("a PDU was malformed")
            if control & 1:
                self._command += values[position + 6 : end]
                if len(self._command) > _COMMAND_MAX:
                    raise PeerRefused("a command was too large")
                if control & 2:
                    is_store = command_field(bytes(self._command)) == _C_STORE
                    self._dataset_max = self.object_max if is_store else _IDENTIFIER_MAX
                    self._dataset_bytes = 0
                    self._command.clear()
            else:
                self._dataset_bytes += length - 2
                if self._dataset_bytes > self._dataset_max:
                    raise PeerRefused("an object was over object_max_mib")
            position = end


def command_field(command: bytes) -> int | None:
    """Return (0000,0100) *Command Field* of a command set, which is implicit VR little endian (PS3.7 section 6.3.1)."""
    position = 0
    while position + 8 <= len(command):
        group, element, length = struct.unpack_from("<HHL", command, position)
        if (group, element, length) == (0, 0x0100, 2) and position + 10 <= len(command):
            return int.from_bytes(command[position + 8 : position + 10], "little")
        position += 8 + length
    return None


class GuardedSocket(AssociationSocket):
    """A connection whose reads are bounded."""

    bounds: MessageBounds
    idle_s: float
    refusal: str
    _header: bytes

    @classmethod
    def instead_of(cls, plain: AssociationSocket, object_max: int, idle_s: float) -> "GuardedSocket":
        """Take over a connection. The constructor is not called: it would report the connection a second time."""
        guarded = cls.__new__(cls)
        guarded.__dict__.update(plain.__dict__)
        guarded.bounds, guarded.idle_s, guarded.refusal, guarded._header = MessageBounds(object_max), idle_s, "", b""
        # A server's connection has its socket from the start.
        assert guarded.socket is not None
        guarded.socket.settimeout(idle_s)  # a peer that does not read its answers
        return guarded

    def recv(self, nr_bytes: int) -> bytearray:
        """Read a PDU's header or the rest of it, as pynetdicom asks for them in turn.

        Raises:
            PeerRefused: The PDU or its message is over a bound, or did not come in time.
        """
        try:
            received = self._read(nr_bytes)
            if not self._header:
                self._header = bytes(received)
            else:
                if self._header[0] == _P_DATA:
                    self.bounds.add(memoryview(received))
                    if self.assoc.dimse.msg_queue.qsize() > _WAITING_MAX:
                        raise PeerRefused("messages came before the answer to the one before them")
                self._header = b""
        except PeerRefused as error:
            self.refusal = str(error)
            raise
        return received

    def _read(self, size: int) -> bytearray:
        if size > _ANY_PDU_MAX:
            raise PeerRefused("a PDU was too large")
        if self.socket is None:
            raise PeerRefused("the connection was closed")
        received, view_at = bytearray(size), 0
        ends_at = time.monotonic() + self.idle_s
        while view_at < size:
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise PeerRefused("a PDU did not come in time")
            self.socket.settimeout(left_s)
            count = self.socket.recv_into(memoryview(received)[view_at:])
            if count == 0:
                break
            view_at += count
        self.socket.settimeout(self.idle_s)
        return received[:view_at]


class _GuardedHandler(RequestHandler):
    """Makes the association of a connection, with a guarded socket."""

    server: "GuardedServer"

    def handle(self) -> None:
        """Start the association's thread."""
        assoc = self._create_association()
        # Both ends of a server's association have a socket before it starts.
        assert assoc.dul.socket is not None
        assoc.dul.socket = GuardedSocket.instead_of(assoc.dul.socket, self.server.object_max, self.server.idle_s)
        evt.trigger(assoc, evt.EVT_CONN_OPEN, {"address": self.client_address})
        assoc.start()


class GuardedServer(AssociationServer):
    """Accepts connections from known addresses, a bounded number at a time."""

    request_queue_size = 128

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        title: str,
        contexts: list[PresentationContext],
        ssl_context: None,
        evt_handlers: list[evt.EventHandlerType],
        *,
        networks: tuple[Network, ...],
        connections_max: int,
        object_max: int,
        idle_s: float,
        refused: Callable[[str, str], None],
    ) -> None:
        """Bind and listen.

        Args:
            ae: The application entity; it and the next five are those of pynetdicom's server.
            address: To bind, and its port.
            title: Of the called entity.
            contexts: That are accepted.
            ssl_context: None.
            evt_handlers: Of all associations.
            networks: Addresses that may connect.
            connections_max: Associations at a time.
            object_max: bytes of a data set.
            idle_s: Seconds for a PDU.
            refused: Is told a peer's address and a clause, for each connection that is refused.
        """
        self.networks, self.object_max, self.idle_s = networks, object_max, idle_s
        self._connections_max, self._refused = connections_max, refused
        super().__init__(ae, address, title, contexts, ssl_context, evt_handlers, _GuardedHandler)

    def service_actions(self) -> None:
        """Do nothing: pynetdicom collects garbage here, between any 60 connections. The service's loop does."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection may stay. Called before a thread is made for it."""
        address = str(client_address[0])
        if not is_known(address, self.networks):
            self._refused(address, "the address is not in storage.senders")
            return False
        if len(self.active_associations) >= self._connections_max * _NOT_NEGOTIATED:
            self._refused(address, "too many connections")
            return False
        return True

    def shutdown(self) -> None:
        """Stop, and close the port. pynetdicom's own expects a server that its AE has started."""
        TCPServer.shutdown(self)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: socketserver would print a traceback, whose text may quote the peer."""
        self._refused(str(client_address[0]), "the connection failed")


def is_known(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether an address is in one of the networks; an IPv4 address mapped into IPv6 counts as itself."""
    try:
        plain = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    plain = getattr(plain, "ipv4_mapped", None) or plain
    return any(plain in network for network in networks)


def shut(assoc: Association) -> None:
    """Close an association's connection at once, whatever its threads are waiting for."""
    connection = assoc.dul.socket
    if connection is not None and connection.socket is not None:
        try:
            connection.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
