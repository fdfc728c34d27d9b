"""The dashboard against guesses, half-sent requests and odd addresses: each is bounded, and none keeps others out."""

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from aggregator import config
from aggregator.context import AppContext, open_context
from aggregator.dashboard.app import HEADERS, create_app
from aggregator.dashboard.sessions import CHECKS_WAITING_MAX, Client, LoginAttempts
from aggregator.network import listen
from aggregator.store import Change, Store, people
from aggregator.web_server import WebServer
from tests.aggregator.conftest import StandingClock

PASSWORD = "correct horse battery"
LIMITS = config.LimitsSettings(dashboard_connections=4, request_s=1.5)


@pytest.fixture
def app(tmp_path: Path, clock: StandingClock, store: Store, cheap_scrypt: None) -> Iterator[AppContext]:
    settings = config.AggregatorSettings(state=config.StateSettings(folder=tmp_path), limits=LIMITS)
    opened = replace(open_context(settings), clock=clock)
    with opened.store.write() as session:
        change = Change(clock(), "operator", "administrator:ada", "for the test")
        people.add_administrator(session, "ada", PASSWORD, bytes(16), change)
    yield opened
    opened.store.close()


@pytest.fixture
def at(app: AppContext) -> Callable[[str], TestClient]:
    """Make a browser at an address."""
    web = create_app(app)
    return lambda host: TestClient(web, client=(host, 50_000), follow_redirects=False)


def log_in(browser: TestClient, password: str = PASSWORD, name: str = "ada") -> int:
    return browser.post("/login", data={"name": name, "password": password}).status_code


# --- guesses ---


def test_of_sixty_guesses_at_once_five_are_checked(at: Callable[[str], TestClient]) -> None:
    gate, codes = threading.Barrier(60), Counter[int]()

    def guess() -> None:
        browser = at("203.0.113.5")
        gate.wait()
        codes[log_in(browser, "guess")] += 1

    threads = [threading.Thread(target=guess) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes[401] <= 5
    assert codes[401] + codes[503] == 5
    assert codes[429] == 55


def test_a_guesser_keeps_no_administrator_out_of_another_address(at: Callable[[str], TestClient]) -> None:
    for number in range(40):
        for guess in range(20):
            log_in(at(f"203.0.113.{number}"), f"guess {guess}")
    assert log_in(at("198.51.100.1")) == 303


def test_a_guesser_at_the_same_address_keeps_no_administrator_out_of_a_known_browser(
    at: Callable[[str], TestClient], clock: StandingClock
) -> None:
    """Behind a proxy that does not pass addresses on, all share one."""
    known = at("203.0.113.5")
    assert log_in(known) == 303
    known.post("/logout")
    clock.advance(days=200)
    while log_in(at("203.0.113.5"), "guess") != 429:
        pass
    assert log_in(at("203.0.113.5")) == 429
    assert log_in(known) == 303


def test_a_known_browser_guesses_no_faster_and_not_for_other_names(at: Callable[[str], TestClient]) -> None:
    known = at("203.0.113.5")
    log_in(known)
    assert [log_in(known, "guess") for _ in range(6)] == [401] * 5 + [429]
    for _ in range(5):
        log_in(at("203.0.113.5"), "guess", "bob")
    assert log_in(known, "guess", "bob") == 429


@pytest.mark.parametrize("cookie", ["", "junk", "WyJhZGEiLCJ4Il0.forged", "bnVsbA.x", "\x7f"])
def test_a_forged_browser_counts_as_its_address(at: Callable[[str], TestClient], cookie: str) -> None:
    for _ in range(5):
        log_in(at("203.0.113.5"), "guess")
    browser = at("203.0.113.5")
    reply = browser.post(
        "/login", data={"name": "ada", "password": PASSWORD}, headers={"Cookie": f"hemofed_device={cookie}"}
    )
    assert reply.status_code == 429


def test_invented_names_and_addresses_of_one_network_share_what_may_fail(at: Callable[[str], TestClient]) -> None:
    codes = [log_in(at(f"2001:db8::{number:x}"), "guess", f"name-{number}") for number in range(30)]
    assert codes == [401] * 20 + [429] * 10


def test_a_right_password_forgets_the_wrong_ones(at: Callable[[str], TestClient]) -> None:
    browser = at("203.0.113.5")
    for _ in range(10):
        assert log_in(browser, "typed wrongly") == 401
        assert log_in(browser) == 303


def test_strangers_who_wait_for_a_check_leave_room_for_known_browsers() -> None:
    attempts = LoginAttempts(5, 300)
    gate, free = threading.Event(), []

    def check(number: int) -> None:
        with attempts.checking(Client("address", str(number))) as is_free:
            free.append(is_free)
            gate.wait()

    threads = [threading.Thread(target=check, args=(number,)) for number in range(CHECKS_WAITING_MAX)]
    for thread in threads:
        thread.start()
    _until(lambda: len(free) == 2)  # checked at once; the others wait
    with attempts.checking(Client("address", "one more")) as is_free:
        assert not is_free
    admitted = Client("device", "known")
    done: list[bool] = []

    def check_known() -> None:
        with attempts.checking(admitted) as is_free:
            done.append(is_free)

    known = threading.Thread(target=check_known)
    known.start()
    gate.set()
    for thread in (*threads, known):
        thread.join()
    assert done == [True]
    assert free == [True] * CHECKS_WAITING_MAX


# --- pages ---


@pytest.mark.parametrize("before", [2**63, 2**64, 10**40])
def test_an_audit_row_that_cannot_be_is_a_400_with_every_header(at: Callable[[str], TestClient], before: int) -> None:
    browser = at("203.0.113.5")
    log_in(browser)
    reply = browser.get(f"/audit?before={before}")
    assert reply.status_code == 400
    assert {name: reply.headers[name] for name in HEADERS} == HEADERS
    assert browser.get(f"/audit?before={2**63 - 1}").status_code == 200


def test_a_page_that_fails_says_so_with_every_header_and_nothing_of_the_reason(
    app: AppContext, at: Callable[[str], TestClient]
) -> None:
    browser = at("203.0.113.5")
    log_in(browser)
    with app.store.write() as session:
        session.execute(text("DROP TABLE audit"))
    reply = browser.get("/audit")
    assert (reply.status_code, reply.text) == (500, "The aggregator failed at this; its log says how.")
    assert {name: reply.headers[name] for name in HEADERS} == HEADERS


# --- requests ---


@pytest.fixture
def port(app: AppContext) -> Iterator[int]:
    listener = listen("dashboard", "127.0.0.1:0")
    server = WebServer("dashboard", create_app(app), listener, app.settings.limits)
    server.start()
    yield int(listener.getsockname()[1])
    server.stop()
    server.join()


def _dial(port: int, begins: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.sendall(begins)
    return connection


def _rest(connection: socket.socket) -> bytes:
    """Everything that comes until the other end closes."""
    got = b""
    try:
        while part := connection.recv(1 << 16):
            got += part
    except ConnectionResetError:
        pass
    return got


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


GET = b"GET /login HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /login HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: "


@pytest.mark.parametrize(
    "begins",
    [b"", b"GET /log", b"GET /login HTTP/1.1\r\nHost: h\r\nX-Slow: ", POST + b"100\r\n\r\nname=ada&pass"],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
def test_a_half_sent_request_ends(port: int, begins: bytes) -> None:
    with _dial(port, begins) as connection:
        began = time.monotonic()
        _rest(connection)
        assert time.monotonic() - began > LIMITS.request_s / 2  # and not at once


def _send_on(connection: socket.socket, piece: bytes, pause_s: float) -> None:
    """Send a piece again and again, until the other end refuses it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        connection.sendall(piece)
        time.sleep(pause_s)


def test_a_request_that_drips_in_ends_as_well(port: int) -> None:
    with _dial(port, GET[:-2]) as connection, pytest.raises(OSError, match=r"reset|pipe"):
        _send_on(connection, b"X: y\r\n", 0.05)


def test_a_request_that_is_too_large_ends(port: int) -> None:
    with _dial(port, POST + b"100000000\r\n\r\n") as connection, pytest.raises(OSError, match=r"reset|pipe"):
        _send_on(connection, bytes(10_000), 0)


def test_connections_that_wait_give_way_to_newcomers(port: int) -> None:
    waiting = [_dial(port, b"GET /log") for _ in range(12)]
    for _ in range(3):
        with _dial(port, GET.replace(b"Host", b"Connection: close\r\nHost")) as browser:
            assert _rest(browser).startswith(b"HTTP/1.1 200")
    for connection in waiting:
        connection.close()


def test_a_connection_serves_several_requests(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    ends = set()
    for _ in range(3):
        connection.request("GET", "/login")
        assert connection.getresponse().read().startswith(b"<!doctype html>")
        # Set by `request`, and by a new connection to another socket.
        assert connection.sock is not None
        ends.add(connection.sock.getsockname())
    connection.close()
    assert len(ends) == 1


def test_behind_a_proxy_of_this_machine_log_ins_count_for_the_address_that_it_adds(port: int) -> None:
    def log_in_from(forwarded: str, password: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Forwarded-For": forwarded}
        connection.request("POST", "/login", f"name=ada&password={password}", headers)
        status = connection.getresponse().status
        connection.close()
        return status

    # Only the last address is the proxy's word; the first is what the client wrote.
    codes = [log_in_from(f"192.0.2.{number}, 203.0.113.5", "guess") for number in range(6)]
    assert codes == [401] * 5 + [429]
    assert log_in_from("198.51.100.1", PASSWORD.replace(" ", "+")) == 303
