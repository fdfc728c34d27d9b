"""The service stops within ten seconds, whatever its clients hold on to."""

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.aggregator.test_serve import Service
from tests.ports import free_port

STOPS_WITHIN_S = 10.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    text = made.config.read_text()
    for key in ("sites", "enrolment"):
        text = text.replace(f'{key} = "127.0.0.1:0"', f'{key} = "127.0.0.1:{free_port()}"')
    made.config.write_text(text.replace("[listen]", f'[listen]\nhealth = "127.0.0.1:{free_port()}"'))
    made.start()
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


def port_of(service: Service, key: str) -> int:
    [line] = [line for line in service.config.read_text().splitlines() if line.startswith(f"{key} = ")]
    return int(line.rpartition(":")[2].strip('"'))


def sends(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.sendall(data)
    return connection


@contextmanager
def holding(service: Service) -> Iterator[None]:
    """Clients that hold on: to every listener one that says nothing, and those that stop halfway."""
    ports = {key: port_of(service, key) for key in ("sites", "enrolment", "dashboard", "health")}
    login = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    halves = [
        *((port, b"") for port in ports.values()),
        (ports["dashboard"], b"GET /login HT"),
        (ports["dashboard"], b"GET /login HTTP/1.1\r\nHost: x\r\n"),
        (ports["dashboard"], login + b"Content-Length: 40\r\n\r\nname=ada&pass"),
        (ports["dashboard"], login + b"Transfer-Encoding: chunked\r\n\r\n5\r\nname="),
        (ports["health"], b"GET /metrics HTTP/1.1\r\nHost: x\r\n"),
        (ports["sites"], b"\x16\x03\x01\x02\x00\x01"),  # the beginning of a TLS record
        (ports["enrolment"], b"\x16\x03\x01\x02\x00\x01"),
    ]
    with ExitStack() as stack:
        for port, data in halves:
            stack.enter_context(sends(port, data))
        # One that asks for the largest page again and again, and reads nothing.
        deaf = stack.enter_context(socket.socket())
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deaf.connect(("127.0.0.1", ports["dashboard"]))
        deaf.settimeout(1)
        request = b"GET /static/style.css HTTP/1.1\r\nHost: x\r\n\r\n"
        with suppress(TimeoutError):  # the service reads no further while its answers are not taken
            deaf.sendall(request * 200)
        # And one that has shaken hands and says nothing further.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        raw = stack.enter_context(socket.create_connection(("127.0.0.1", ports["enrolment"]), timeout=5))
        stack.enter_context(context.wrap_socket(raw)).sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        yield


def test_the_service_stops_within_ten_seconds_whatever_its_clients_do(service: Service) -> None:
    process = service.process
    assert process is not None
    with holding(service):
        began = time.monotonic()
        process.terminate()
        assert process.wait(timeout=30) == 0, service.log.read_text()
        took_s = time.monotonic() - began
    assert took_s < STOPS_WITHIN_S, service.log.read_text()
