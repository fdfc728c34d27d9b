"""The doctor on the way to the aggregator, against real counterparts: TLS servers, tinyproxy."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from federation.vocabulary import SiteState

from site_client.agent import connection
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.status_file import AgentStatus, write_status
from site_client.check_result import CheckResult, Color, carry_out
from site_client.config import AgentSettings, AggregatorAddress, FoldersSettings, PolicySettings, SiteSettings
from site_client.doctor.network import enrolment
from site_client.doctor.network.checks import checks
from tests.site_client.agent.conftest import Consortium, StandingClock

needs_tinyproxy = pytest.mark.skipif(shutil.which("tinyproxy") is None, reason="tinyproxy not installed")


@pytest.fixture
def consortium() -> Consortium:
    return Consortium()


@contextmanager
def tls_server(pair: tuple[bytes, bytes], folder: Path, alpn: list[str] | None) -> Iterator[str]:
    """Anything that answers with TLS: an aggregator's front, an inspecting box, one that knows no HTTP/2."""
    path = folder / f"server-{time.monotonic_ns()}.pem"
    path.write_bytes(pair[0] + pair[1])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    if alpn:
        context.set_alpn_protocols(alpn)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(client, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                client.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


@contextmanager
def tinyproxy(folder: Path, port_allowed: int, auth: str = "") -> Iterator[tuple[int, Path]]:
    """The real one, on loopback; only CONNECT to `port_allowed` is let through."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    log = folder / "tinyproxy.log"
    lines = [f"Port {port}", "Listen 127.0.0.1", "Timeout 20", f'LogFile "{log}"', "LogLevel Connect", "MaxClients 10"]
    lines += ["Allow 127.0.0.1", f"ConnectPort {port_allowed}", *([f"BasicAuth {auth}"] if auth else [])]
    (folder / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
    with subprocess.Popen(["tinyproxy", "-d", "-c", folder / "tinyproxy.conf"], stdout=subprocess.DEVNULL) as running:
        try:
            _wait_for(port)
            yield port, log
        finally:
            running.terminate()
            running.wait(10)


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("tinyproxy does not listen")


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def by_name(lines: Iterator[CheckResult]) -> dict[str, CheckResult]:
    return {line.check: line for line in lines}


def ask(consortium: Consortium, address: str, proxy: str = "", now: datetime | None = None) -> dict[str, CheckResult]:
    return by_name(
        connection.check_connection(AggregatorAddress(address, proxy=proxy), consortium.ca, now or datetime.now(UTC))
    )


def test_an_aggregator_s_front_is_green_in_every_line(consortium: Consortium, tmp_path: Path) -> None:
    with tls_server(consortium.server_pair(), tmp_path, ["h2"]) as address:
        lines = ask(consortium, address)
    assert set(lines) == {"proxy", "connection", "tls", "http2"}
    assert {line.color for line in lines.values()} == {Color.GREEN}
    assert "MTU 65" in lines["connection"].found


def test_an_inspecting_box_is_named_and_its_words_stay_here(consortium: Consortium, tmp_path: Path) -> None:
    box = Consortium(name="St. Elsewhere Web Gateway")
    with tls_server(box.server_pair(), tmp_path, ["h2"]) as address:
        line = ask(consortium, address)["tls"]
    assert (line.color, line.fix, line.local) == (
        Color.RED,
        "TLS is inspected by CN=St. Elsewhere Web Gateway: ask IT to bypass 127.0.0.1",
        True,
    )


def test_an_inspecting_box_that_took_the_ca_s_name_is_seen_by_its_signature(
    consortium: Consortium, tmp_path: Path
) -> None:
    with tls_server(Consortium().server_pair(), tmp_path, ["h2"]) as address:
        assert ask(consortium, address)["tls"].color is Color.RED


@pytest.mark.parametrize("alpn", [None, ["http/1.1"]])
def test_a_way_without_http2_is_told(consortium: Consortium, tmp_path: Path, alpn: list[str] | None) -> None:
    with tls_server(consortium.server_pair(), tmp_path, alpn) as address:
        lines = ask(consortium, address)
    assert lines["tls"].color is Color.GREEN
    assert (lines["http2"].color, lines["http2"].fix) == (
        Color.RED,
        "A firewall or proxy strips HTTP/2: bypass 127.0.0.1",
    )


@pytest.mark.parametrize(("days", "word"), [(-1, "behind"), (40, "ahead")])
def test_a_clock_outside_the_server_certificate_s_life_is_told(
    consortium: Consortium, tmp_path: Path, days: int, word: str
) -> None:
    now = datetime.now(UTC) + timedelta(days=days)
    with tls_server(consortium.server_pair(), tmp_path, ["h2"]) as address:
        line = ask(consortium, address, now=now)["clock"]
    assert line.color is Color.RED
    assert word in line.fix
    assert "NTP" in line.fix


def test_what_is_no_tls_and_what_does_not_answer_are_told_apart(consortium: Consortium) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            client, _ = listener.accept()
            client.sendall(b"SSH-2.0-OpenSSH\r\n")
            client.close()

        thread = threading.Thread(target=answer)
        thread.start()
        lines = ask(consortium, address)
        thread.join()
    assert (lines["connection"].color, lines["tls"].color) == (Color.GREEN, Color.RED)
    lines = ask(consortium, address)
    assert set(lines) == {"connection"}
    assert lines["connection"].fix == f"Ask IT to allow outbound TCP from here to {address}"


def test_a_name_nobody_knows_is_told() -> None:
    (line,) = connection.check_name(AggregatorAddress("hub.invalid:443"))
    assert (line.color, line.fix) == (Color.RED, "Ask IT to resolve hub.invalid")
    (line,) = connection.check_name(AggregatorAddress("hub.invalid:443", proxy="http://localhost:3128"))
    assert line.color is Color.GREEN  # only the proxy has to be known here


@needs_tinyproxy
def test_through_tinyproxy_everything_is_green_and_the_proxy_really_served(
    consortium: Consortium, tmp_path: Path
) -> None:
    with (
        tls_server(consortium.server_pair(), tmp_path, ["h2"]) as address,
        tinyproxy(tmp_path, port_of(address)) as (port, log),
    ):
        lines = ask(consortium, address, f"http://127.0.0.1:{port}")
        assert {line.color for line in lines.values()} == {Color.GREEN}
        assert f"CONNECT {address}" in log.read_text()


@needs_tinyproxy
def test_tinyproxy_s_407_and_403_each_have_their_fix(consortium: Consortium, tmp_path: Path) -> None:
    with (
        tls_server(consortium.server_pair(), tmp_path, ["h2"]) as address,
        tinyproxy(tmp_path, port_of(address), "user secret") as (port, log),
    ):
        missing = ask(consortium, address, f"http://127.0.0.1:{port}")["proxy"]
        wrong = ask(consortium, address, f"http://user:guess@127.0.0.1:{port}")["proxy"]
        right = ask(consortium, address, f"http://user:secret@127.0.0.1:{port}")
        elsewhere = ask(consortium, "127.0.0.1:9", f"http://user:secret@127.0.0.1:{port}")["proxy"]
    assert [line.color for line in (missing, wrong)] == [Color.RED, Color.RED]
    assert missing.found == "the proxy answered 407 to CONNECT"
    assert "aggregator.proxy" in missing.fix
    assert {line.color for line in right.values()} == {Color.GREEN}
    assert (elsewhere.found, elsewhere.fix) == (
        "the proxy answered 403 to CONNECT",
        "Ask IT to allow CONNECT to 127.0.0.1:9",
    )
    assert "CONNECT" in log.read_text()


# Where the site stands.


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    state = tmp_path / "state"
    return SiteSettings(
        "mercy", AggregatorAddress("127.0.0.1:9"), FoldersSettings(state, tmp_path / "spool", tmp_path / "export")
    )


@pytest.fixture
def identity(settings: SiteSettings, consortium: Consortium) -> SiteIdentity:
    return consortium.enrol(settings.folders.agent / "identity")


@pytest.mark.parametrize(
    ("days", "color", "fix"),
    [
        (0, Color.GREEN, ""),
        (28, Color.RED, "Start the agent: it renews"),
        (31, Color.RED, "Start the agent: it requests a new one; else join anew"),
        (-3, Color.RED, "Enable NTP"),
    ],
)
def test_the_certificate_is_held_against_the_clock(identity: SiteIdentity, days: int, color: Color, fix: str) -> None:
    (line,) = enrolment.check_certificate(identity, datetime.now(UTC) + timedelta(days=days))
    assert line.color is color
    assert line.fix.startswith(fix)


def test_an_unkept_clock_is_red() -> None:
    assert [next(enrolment.check_clock(state)).color for state in (0, 5, -1)] == [Color.GREEN, Color.RED, Color.GREY]


def test_a_broken_ledger_is_named_by_its_entry(
    settings: SiteSettings, identity: SiteIdentity, small_ledger: Callable[[SiteIdentity], Path]
) -> None:
    path = small_ledger(identity)
    assert next(enrolment.check_ledger(settings.folders.agent)).color is Color.GREEN
    path.write_bytes(path.read_bytes().replace(b'"bytes":1,', b'"bytes":2,', 1))
    (line,) = enrolment.check_ledger(settings.folders.agent)
    assert (line.color, line.found) == (Color.RED, "the chain is broken at entry 1")


@pytest.fixture
def small_ledger(settings: SiteSettings) -> Callable[[SiteIdentity], Path]:
    from site_client.agent.egress.ledger import EgressDecision, Ledger, Outgoing

    def make(identity: SiteIdentity) -> Path:
        clock = StandingClock()
        path = settings.folders.agent / "ledger.jsonl"
        with closing(Ledger(path, identity.keys.signing, clock)) as ledger:
            for size in (1, 1000, 1000, 1000):
                rpc = "Rounds/Poll" if size == 1 else "Blobs/Put"
                ledger.append(Outgoing("hub:1", rpc, bytes(size), {}, EgressDecision.ALLOWED, "fields"))
                clock.advance(seconds=2)
        return path

    return make


def test_the_speed_of_the_last_upload_is_read_from_the_ledger(
    settings: SiteSettings, identity: SiteIdentity, small_ledger: Callable[[SiteIdentity], Path]
) -> None:
    assert next(enrolment.check_speed(settings.folders.agent, None)).color is Color.GREY
    small_ledger(identity)
    (line,) = enrolment.check_speed(settings.folders.agent, 1_000_000)
    assert line.found == "the last upload moved at 0 KiB/s; a round's update needs about 2000 s"


def test_open_keys_and_an_open_spool_are_red_with_the_command_that_closes_them(
    settings: SiteSettings, identity: SiteIdentity
) -> None:
    (settings.folders.spool / "to_trainer").mkdir(parents=True, mode=0o750)
    (settings.folders.spool / "to_trainer").chmod(0o750)
    assert Color.RED not in {line.color for line in enrolment.check_modes(settings)}
    (settings.folders.spool / "to_trainer").chmod(0o777)
    key = settings.folders.agent / "identity" / "signing.key"
    key.chmod(0o644)
    fixes = [line.fix for line in enrolment.check_modes(settings) if line.color is Color.RED]
    assert fixes == [f"chmod 0600 {key.parent}/*", f"chmod 0750 {settings.folders.spool / 'to_trainer'}"]


@pytest.mark.parametrize(
    ("error", "color", "fix"),
    [
        ("", Color.GREEN, ""),
        ("the aggregator refused the call: site 'mercy' was revoked", Color.RED, "Contact the coordinator"),
        ("no answer from hub:1 (UNAVAILABLE)", Color.RED, "See the lines above, and hemofed-site status"),
    ],
)
def test_a_running_agent_s_last_word_is_taken_and_nothing_is_sent(
    settings: SiteSettings, identity: SiteIdentity, error: str, color: Color, fix: str
) -> None:
    import fcntl

    now = datetime.now(UTC)
    write_status(settings.folders.agent, AgentStatus(now, SiteState.IDLE, (), None, None, None, 1, now, now, error, 0))
    with (settings.folders.agent / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (line,) = enrolment.check_enrolment(settings, identity, lambda: now)
    assert (line.color, line.fix) == (color, fix)
    assert not (settings.folders.agent / "ledger.jsonl").exists()


def test_without_an_agent_one_call_is_made_and_stands_in_the_ledger(
    settings: SiteSettings, identity: SiteIdentity
) -> None:
    quick = replace(settings, agent=AgentSettings(stall_s=5))
    (line,) = enrolment.check_enrolment(quick, identity, lambda: datetime.now(UTC))
    assert line.color is Color.RED  # nobody listens there
    assert (settings.folders.agent / "ledger.jsonl").read_text().count("Enrolment/FetchRoster") == 1
    dry = replace(settings, policy=PolicySettings(dry_run=True))
    (line,) = enrolment.check_enrolment(dry, identity, lambda: datetime.now(UTC))
    assert line.color is Color.GREY


def test_a_host_that_has_not_joined_is_told_what_to_do_and_nothing_is_made(settings: SiteSettings) -> None:
    lines = list(carry_out(checks(replace(settings, aggregator=AggregatorAddress()), lambda: datetime.now(UTC))))
    fixes = {line.check: line.fix for line in lines if line.fix}
    assert fixes["enrolment"] == "Run hemofed-site join ADDRESS TOKEN"
    assert fixes["address"].startswith("Set aggregator.address")
    assert not settings.folders.state.exists()


def test_a_check_that_breaks_is_red_without_its_words_and_stops_no_other() -> None:
    def broken() -> list[CheckResult]:
        raise ValueError("DOE^JOHN")

    lines = list(carry_out({"one": broken, "two": lambda: enrolment.check_clock(0)}))
    assert [line.color for line in lines] == [Color.RED, Color.GREEN]
    assert "DOE" not in lines[0].found


def test_the_ca_of_an_identity_is_what_the_way_compares_with(identity: SiteIdentity, consortium: Consortium) -> None:
    assert x509.load_pem_x509_certificate(identity.ca_pem) == consortium.ca
