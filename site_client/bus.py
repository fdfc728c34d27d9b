"""The system's D-Bus, to read properties of daemons on this machine. AF_UNIX only; nothing is changed.

jeepney implements the protocol (docs/decisions/0006). A connection is made at the first call, and again after an error.
"""

from typing import Any, Final

from jeepney import DBusAddress, DBusErrorResponse, MessageFlag, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import unwrap_msg

# The idle gate asks from a thread of its own; a daemon that hangs must not stop it for long.
_TIMEOUT_S: Final = 2.0
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"


class BusError(Exception):
    """No bus, no such daemon, or an answer that was late or an error. The message is a clause."""


class Bus:
    """One connection to the system bus. Not thread-safe."""

    def __init__(self, *, start_daemons: bool = False) -> None:
        """Connect at the first call. `start_daemons`: a call may start a daemon that is not running."""
        self._connection: DBusConnection | None = None
        self._flags = MessageFlag(0) if start_daemons else MessageFlag.no_auto_start

    def call(
        self, service: str, path: str, interface: str, method: str, *arguments: tuple[str, Any]
    ) -> tuple[Any, ...]:
        """Call a method.

        Args:
            service: Bus name of the daemon.
            path: Of the object.
            interface: Of the method.
            method: Its name.
            arguments: (D-Bus type, value) pairs.

        Returns:
            The body of the answer.

        Raises:
            BusError: No answer.
        """
        address = DBusAddress(path, bus_name=service, interface=interface)
        signature = "".join(kind for kind, _ in arguments) or None
        message = new_method_call(address, method, signature, tuple(value for _, value in arguments))
        # Without NO_AUTO_START a mere question would start UPower or NetworkManager on a server.
        message.header.flags |= self._flags
        try:
            if self._connection is None:
                self._connection = open_dbus_connection("SYSTEM")
            answer = self._connection.send_and_get_reply(message, timeout=_TIMEOUT_S)
            return tuple(unwrap_msg(answer))
        except DBusErrorResponse as error:
            raise BusError(f"{service} is not there ({str(error.name).rpartition('.')[2]})") from error
        except (OSError, KeyError, ValueError, EOFError) as error:
            self.close()
            # The connection may be in the middle of a message: the next call makes a new one.
            raise BusError("the system bus does not answer") from error

    def get(self, service: str, path: str, interface: str, name: str) -> Any:
        """Read one property.

        Raises:
            BusError: No answer.
        """
        return self.call(service, path, _PROPERTIES, "Get", ("s", interface), ("s", name))[0][1]

    def get_all(self, service: str, path: str, interface: str) -> dict[str, Any]:
        """Read every property of an interface.

        Raises:
            BusError: No answer.
        """
        properties = self.call(service, path, _PROPERTIES, "GetAll", ("s", interface))[0]
        return {name: value for name, (_, value) in properties.items()}

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
