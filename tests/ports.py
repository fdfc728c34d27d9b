"""Ports for the servers of tests."""

import secrets
import socket
from contextlib import suppress

# Linux gives higher ones to clients: between the look and the server's start, any connection could take one of them.
_PORTS = range(20_000, 32_000)
_GIVEN: set[int] = set()  # in this process; another one draws others, most likely


def free_port(in_a_row: int = 1) -> int:
    """Return a port at which nothing listens, the first of so many; each is given once."""
    while True:
        first = secrets.choice(_PORTS)
        ports = set(range(first, first + in_a_row))
        if not ports & _GIVEN and all(map(_is_free, ports)):
            _GIVEN.update(ports)
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
