"""The receiving end of sd_notify(3)."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Systemd:
    """What a service sends to systemd, message by message."""

    path: Path
    socket: socket.socket

    def next(self, timeout_s: float) -> str | None:
        """The next datagram; None when none comes."""
        self.socket.settimeout(timeout_s)
        try:
            return self.socket.recv(4096).decode()
        except TimeoutError:
            return None

    def until(self, wanted: str, timeout_s: float = 20.0) -> list[str]:
        """Every datagram up to the first that begins with `wanted`."""
        heard, ends_at = [], time.monotonic() + timeout_s
        while time.monotonic() < ends_at:
            message = self.next(ends_at - time.monotonic())
            if message is None:
                break
            heard.append(message)
            if message.startswith(wanted):
                return heard
        raise AssertionError(f"expected {wanted}, heard {heard}")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """One that listens."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        yield Systemd(path, listening)
