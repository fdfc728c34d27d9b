"""The agent as it runs: its messages to systemd, without an aggregator at the other end of the line."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation.notify import Notifier
from federation.vocabulary import SiteState

from site_client.agent.egress.ledger import EgressDecision, Ledger, Outgoing
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.service import AgentService, run
from site_client.agent.status_file import read_status
from site_client.config import AggregatorAddress, SiteSettings, parse
from site_client.errors import SiteError
from site_client.status import gather
from tests.site_client.agent.conftest import Consortium
from tests.site_client.agent.test_link import serve


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[SiteSettings]:
    """Of an aggregator that refuses connections at once, with short waits between two tries."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        folders = '[folders]\nstate = "state"\nspool = "spool"\n[agent]\npoll_max_s = 0.2\n'
        yield parse(f'name = "mercy"\n[aggregator]\naddress = "{address}"\n{folders}', tmp_path)


class Systemd:
    """The other end of the notify socket, and the agent that sends to it."""

    def __init__(self, receiver: socket.socket, service: AgentService) -> None:
        self._receiver, self.service = receiver, service
        self.messages: list[str] = []

    def receive_until(self, condition: Callable[[list[str]], bool]) -> None:
        """Receive until the messages since this call fulfil the condition."""
        start = len(self.messages)
        while not condition(self.messages[start:]):
            self.messages.append(self._receiver.recv(4096).decode())


@contextmanager
def running(settings: SiteSettings, identity: SiteIdentity, path: Path) -> Iterator[Systemd]:
    """An agent in a thread, stopped at the end; its notifier's clock runs fast."""
    fast = itertools.count(0, 100)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(15)
        notifier = Notifier(str(path), watchdog_s=200, monotonic=lambda: float(next(fast)))
        service = AgentService(settings, identity, lambda: datetime.now(UTC), notifier)
        thread = threading.Thread(target=service.run, daemon=True)
        thread.start()
        try:
            yield Systemd(receiver, service)
        finally:
            service.stop()
            thread.join(20)


def status_with(words: str) -> Callable[[list[str]], bool]:
    return lambda messages: any(line.startswith("STATUS=") and words in line for line in messages)


def test_without_an_aggregator_the_agent_is_ready_and_alive_and_reports_why(
    tmp_path: Path, identity: SiteIdentity, settings: SiteSettings
) -> None:
    with running(settings, identity, tmp_path / "notify") as systemd:
        systemd.receive_until(status_with(f"no answer from {settings.aggregator.address}"))
        systemd.receive_until(lambda messages: messages.count("WATCHDOG=1") >= 2)
        systemd.service.stop()
        systemd.receive_until(lambda messages: messages[-1:] == ["STOPPING=1"])
    assert systemd.messages[0] == "READY=1"


def test_a_file_damaged_meanwhile_is_reported_and_the_agent_goes_on_when_it_is_mended(
    tmp_path: Path, identity: SiteIdentity, settings: SiteSettings
) -> None:
    approved = settings.folders.agent / "identity" / "approved.json"
    whole = approved.read_bytes()
    with running(settings, identity, tmp_path / "notify") as systemd:
        systemd.receive_until(status_with("no answer"))
        approved.write_text("{")
        systemd.receive_until(status_with("attention; approved.json in the state folder is damaged"))
        status = read_status(settings.folders.agent)
        assert status is not None
        assert status.state is SiteState.ATTENTION
        approved.write_bytes(whole)
        systemd.receive_until(status_with("no answer"))


@pytest.mark.parametrize(
    "name", ["models/history.json", "identity/seen.json", "status.json", "payloads/000000000001.pack"]
)
def test_a_file_that_is_made_again_is_set_aside_and_named_in_the_status(
    tmp_path: Path, identity: SiteIdentity, settings: SiteSettings, name: str
) -> None:
    path = settings.folders.agent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir()
    (path / "something").write_bytes(b"else")
    with running(settings, identity, tmp_path / "notify") as systemd:
        systemd.receive_until(status_with("no answer"))
        systemd.receive_until(lambda messages: messages.count("WATCHDOG=1") >= 40)
    status = read_status(settings.folders.agent)
    assert status is not None
    assert status.set_aside == (f"{path.name}.damaged",)


def test_a_sealed_segment_changed_in_the_middle_is_noticed_by_the_agent_while_it_runs(
    tmp_path: Path, identity: SiteIdentity, settings: SiteSettings
) -> None:
    path = settings.folders.agent / "ledger.jsonl"
    ledger = Ledger(path, identity.keys.signing, lambda: datetime.now(UTC), segment_bytes=2000)
    for _ in range(20):
        ledger.append(Outgoing("hub:8443", "Rounds/Poll", b"", {}, EgressDecision.ALLOWED, "call, fields"))
    ledger.close()
    segment = path.with_suffix(".segments") / "000002.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole.replace(b'"bytes":0', b'"bytes":9', 1))
    with running(settings, identity, tmp_path / "notify") as systemd:
        systemd.receive_until(status_with("ledger.segments/000002.jsonl, which holds entries"))
        segment.write_bytes(whole)
        systemd.receive_until(status_with("no answer"))


def damage_cases() -> list[tuple[str, Callable[[Path], object]]]:
    """Every file without which the agent does not start, emptied and in the form of a folder."""
    identity = ("ca.pem", "custodian.pem", "roster.bin", "membership.json", "signing.key", "sealing.key")
    names = (*(f"identity/{name}" for name in identity), "rounds/closed.json", "rounds/1/round.json")

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    return [(name, way) for name in names for way in (lambda path: path.write_bytes(b""), folder)]


@pytest.mark.parametrize(("name", "way"), damage_cases())
def test_an_agent_that_cannot_start_ends_with_a_sentence_that_the_status_repeats(
    identity: SiteIdentity, settings: SiteSettings, name: str, way: Callable[[Path], object]
) -> None:
    path = settings.folders.agent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    way(path)
    with pytest.raises(SiteError) as refusal:
        run(settings)
    # Exit status 78, which the unit does not restart.
    assert not refusal.value.retryable
    facts = {fact.name: fact.value for fact in gather(settings)}
    assert facts["last_error"] == f"the agent has stopped: {refusal.value}"
    assert path.name in str(refusal.value)
    assert str(settings.folders.state) not in str(refusal.value)


@dataclass
class AnsweringProxy:
    """Answers every CONNECT with one status."""

    status: str

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                client.sendall(f"HTTP/1.1 {self.status} Words\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("401", "the proxy answered 401 to CONNECT; set user and password in aggregator.proxy"),
        ("403", "the proxy answered 403 to CONNECT; ask IT to allow CONNECT to hub.example:8443"),
        ("407", "the proxy answered 407 to CONNECT; set user and password"),
        ("500", "the proxy answered 500 to CONNECT; ask IT whether the proxy reaches hub.example:8443"),
    ],
)
def test_a_proxy_s_refusal_is_in_the_agent_s_sentence_with_the_doctor_s_words(
    tmp_path: Path, identity: SiteIdentity, settings: SiteSettings, status: str, words: str
) -> None:
    with AnsweringProxy(status) as proxy:
        aggregator = AggregatorAddress("hub.example:8443", proxy=proxy)
        with running(replace(settings, aggregator=aggregator), identity, tmp_path / "notify") as systemd:
            systemd.receive_until(status_with(f"no answer from hub.example:8443: {words}"))


def test_a_name_that_does_not_resolve_is_in_the_agent_s_sentence(
    tmp_path: Path, identity: SiteIdentity, settings: SiteSettings
) -> None:
    aggregator = AggregatorAddress("no-such-host.invalid:8443")
    words = "the aggregator's name no-such-host.invalid is not known here; ask IT to resolve"
    with running(replace(settings, aggregator=aggregator), identity, tmp_path / "notify") as systemd:
        systemd.receive_until(status_with(words))


@pytest.mark.parametrize(
    ("dates", "name", "words"),
    [
        ({"begins_days_ago": -0.1}, "test consortium CA", "enable NTP; this clock is behind by"),
        ({"begins_days_ago": 31}, "test consortium CA", "enable NTP if this clock is ahead"),
        ({}, "Hospital Web Filter CA", "TLS is inspected by CN=Hospital Web Filter CA: ask IT to bypass 127.0.0.1"),
    ],
    ids=["behind", "ahead", "inspected"],
)
def test_a_wrong_clock_is_named_as_that_and_another_issuer_as_that(
    tmp_path: Path,
    consortium: Consortium,
    identity: SiteIdentity,
    settings: SiteSettings,
    dates: dict[str, float],
    name: str,
    words: str,
) -> None:
    front = consortium if name == consortium.name else Consortium(name=name)
    server, address = serve(front, mutual=False, **dates)
    try:
        aggregator = AggregatorAddress(address)
        with running(replace(settings, aggregator=aggregator), identity, tmp_path / "notify") as systemd:
            systemd.receive_until(status_with(words))
    finally:
        server.stop(0).wait()


def test_the_enrolment_port_in_place_of_the_one_for_sites_is_named(
    tmp_path: Path, consortium: Consortium, identity: SiteIdentity, settings: SiteSettings
) -> None:
    server, address = serve(consortium, mutual=False)
    try:
        changed = replace(settings, aggregator=AggregatorAddress(address))
        with running(changed, identity, tmp_path / "notify") as systemd:
            systemd.receive_until(status_with(f"{address} does not know this call: is it the other port"))
    finally:
        server.stop(0).wait()
