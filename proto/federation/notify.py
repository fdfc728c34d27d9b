"""Messages of a service to systemd: ready, status, alive, stopping. sd_notify(3). For both sides.

Each is one datagram to the AF_UNIX socket in NOTIFY_SOCKET; without that variable nothing is sent. Only the loop that
does the work may call `alive`: so systemd restarts a hung loop.
"""

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

_STATUS_CHARACTERS: Final = 300
_BEATS: Final = 4  # WATCHDOG=1 this often within the unit's watchdog time


class Notifier:
    """Sends to systemd. A socket that is gone or full ends no service: the message is sent at the next call."""

    def __init__(
        self, address: str = "", watchdog_s: float = 0.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the socket and the watchdog time.

        Args:
            address: A path, "@" and an abstract name, or "" without systemd.
            watchdog_s: Of the unit; 0 without a watchdog.
            monotonic: Seconds of a monotonic clock.
        """
        self._address, self.watchdog_s, self._monotonic = address, watchdog_s, monotonic
        self._sent_status = ""
        self._alive_at = -float("inf")

    @classmethod
    def of_service(cls, environment: MutableMapping[str, str] = os.environ) -> "Notifier":
        """Read systemd's variables, and remove them from the environment, so that no child sends in our name."""
        # Removed: a worker that inherited the socket could report READY or WATCHDOG for a hung service.
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "0")
        watched = environment.pop("WATCHDOG_PID", str(os.getpid()))
        # WATCHDOG_PID is another process when the service was started through a shell.
        return cls(address, int(watchdog_us) / 1e6 if watched == str(os.getpid()) else 0.0)

    @property
    def has_listener(self) -> bool:
        """Whether systemd started this process, so that a status is read."""
        return bool(self._address)

    def ready(self) -> None:
        """Report that the service works from now on."""
        self._send("READY=1")

    def status(self, words: str) -> None:
        """Set the line of `systemctl status`; sent when it changed."""
        line = " ".join(words.split())[:_STATUS_CHARACTERS]
        if line != self._sent_status and self._send(f"STATUS={line}"):
            self._sent_status = line

    def alive(self) -> None:
        """Report that the loop is alive. Cheap: most calls send nothing."""
        now = self._monotonic()
        if self.watchdog_s and now - self._alive_at >= self.watchdog_s / _BEATS and self._send("WATCHDOG=1"):
            self._alive_at = now

    def allow(self, quiet_s: float) -> None:
        """Raise the watchdog time to `quiet_s` seconds without `alive`, where the unit's own is shorter."""
        if 0 < self.watchdog_s < quiet_s and self._send(f"WATCHDOG_USEC={round(quiet_s * 1e6)}"):
            self.watchdog_s = quiet_s

    def stopping(self) -> None:
        """Report that the service ends on request."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        if not self._address:
            return False
        # "@" stands for the zero byte of an abstract socket, unix(7).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection:
                connection.sendto(message.encode(), address)
        except OSError:
            return False
        return True
