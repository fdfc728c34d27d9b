"""What a service tells systemd about itself: ready, what it does, that it is alive, that it ends. sd_notify(3).

Each is one datagram to the AF_UNIX socket in NOTIFY_SOCKET; without that variable nothing is sent. `alive` may be
called from the loop that does the work, and from nowhere else: that is what makes a hung loop restart.
"""

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

_STATUS_CHARACTERS: Final = 300
_BEATS: Final = 4  # WATCHDOG=1 this often in the time after which systemd would give up


class Notifier:
    """The way to systemd. A socket that is gone or full ends no service: what could not be said is said next time."""

    def __init__(
        self, address: str = "", watchdog_s: float = 0.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`address`: a path, "@" for an abstract name, "" for nobody. `watchdog_s` 0: systemd does not watch."""
        self._address, self.watchdog_s, self._monotonic = address, watchdog_s, monotonic
        self._said = ""
        self._alive_at = -float("inf")

    @classmethod
    def of_service(cls, environment: MutableMapping[str, str] = os.environ) -> "Notifier":
        """What systemd gave this process, taken out of the environment so that no child speaks in our name."""
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "0")
        watched = environment.pop("WATCHDOG_PID", str(os.getpid()))
        return cls(address, int(watchdog_us) / 1e6 if watched == str(os.getpid()) else 0.0)

    def ready(self) -> None:
        """The service does its work from now on."""
        self._send("READY=1")

    def status(self, words: str) -> None:
        """One line for `systemctl status`; sent when it is another one than the last."""
        line = " ".join(words.split())[:_STATUS_CHARACTERS]
        if line != self._said and self._send(f"STATUS={line}"):
            self._said = line

    def alive(self) -> None:
        """The loop has come round. Cheap: most calls send nothing."""
        now = self._monotonic()
        if self.watchdog_s and now - self._alive_at >= self.watchdog_s / _BEATS and self._send("WATCHDOG=1"):
            self._alive_at = now

    def allow(self, quiet_s: float) -> None:
        """Asks to be given up on only after `quiet_s` seconds without `alive`, where the unit's own time is shorter."""
        if 0 < self.watchdog_s < quiet_s and self._send(f"WATCHDOG_USEC={round(quiet_s * 1e6)}"):
            self.watchdog_s = quiet_s

    def stopping(self) -> None:
        """The service ends, because it was asked to."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as way:
                way.sendto(message.encode(), address)
        except OSError:
            return False
        return True
