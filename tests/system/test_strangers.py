"""What callers without a certificate, with a revoked one, or of one malicious site cannot do to the others.

Each attack is in progress while an honest site polls and while a round of three sites runs from beginning to end.
"""

import os
import statistics
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from federation.v1 import enrolment_pb2

from site_client.agent.commands.join import join  # before the aggregator: grpc reads its cipher suites once
from site_client.agent.egress.calls import CHALLENGE, JOIN, POLL, PUT_BLOB
from site_client.agent.identity.identity import SiteIdentity
from site_client.config import load as load_site_settings
from tests.federation.wire import poll_of
from tests.ports import free_port
from tests.raw_channel import RawChannel
from tests.system.processes import Place, Trainers, all_running, running, write_plan, write_settings
from tests.system.strangers import Target, client_hello, half_open_calls, handshake, idle_connections, junk

from aggregator.config import load_settings  # isort: skip
from aggregator.context import AppContext, open_context  # isort: skip
from aggregator.sites.authority import Authority  # isort: skip
from aggregator.sites.enrolment import EnrolmentService  # isort: skip
from aggregator.states import RunState  # isort: skip
from aggregator.store import run_rows  # isort: skip

ANSWER_S = 1.0
ROUND_S = 240.0
POLLS = 9
PARAMETERS = 20_000
MALICIOUS, REVOKED, POLLING = "site-03", "site-04", "site-05"


@dataclass
class Federation:
    """An aggregator in a process, three agents, and the identities of three more sites that the tests use."""

    place: Place
    app: AppContext
    aggregator: psutil.Process
    ca_pem: bytes
    dashboard_port: int
    identities: dict[str, SiteIdentity]

    def target(self, name: str) -> Target:
        return Target(self.place.ports[0], self.ca_pem, self.identities[name])

    @property
    def enrolment(self) -> Target:
        return Target(self.place.ports[1], self.ca_pem)

    @property
    def log_bytes(self) -> int:
        return (self.place.folder / "aggregator.log").stat().st_size

    def polls_s(self) -> list[float]:
        """Poll as an honest site does, on new connections and on ones that exist; return the seconds of each."""
        request = poll_of().SerializeToString()
        return self._seconds_of(self.target(POLLING), POLL.path, request)

    def challenges_s(self) -> list[float]:
        """Ask for a challenge as a host without a certificate does; return the seconds of each."""
        request = enrolment_pb2.ChallengeRequest(site=POLLING).SerializeToString()
        return self._seconds_of(self.enrolment, CHALLENGE.path, request)

    def _seconds_of(self, target: Target, path: str, request: bytes) -> list[float]:
        seconds = []
        for _ in range(POLLS // 3):
            with target.channel() as channel:
                for _ in range(3):
                    began = time.monotonic()
                    channel.unary_unary(path)(request, timeout=20)
                    seconds.append(time.monotonic() - began)
        return seconds

    def log_in_page_s(self) -> float:
        began = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.dashboard_port}/login", timeout=20) as reply:
            assert reply.status == 200
        return time.monotonic() - began

    def end_a_round(self) -> None:
        """Start a run of one round, and wait until it is over."""
        self.place.start_run(self.place.folder / "plan.toml", self.place.folder / "initial.safetensors")
        deadline = time.monotonic() + ROUND_S
        while True:
            with self.app.store.read() as session:
                run = run_rows.all_runs(session)[-1]
            if run.state is RunState.COMPLETED:
                return
            assert run.state is RunState.RUNNING, run.reason
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    place = Place(tmp_path_factory.mktemp("strangers"), 6, (free_port(), free_port()))
    dashboard_port = free_port()
    write_settings(place)
    text = place.aggregator_toml.read_text().replace("enabled = false", "").replace("threads = 64\n", "")
    place.aggregator_toml.write_text(text.replace("[listen]", f'[listen]\ndashboard = "127.0.0.1:{dashboard_port}"'))
    place.begin()
    settings = load_settings(place.aggregator_toml)
    app, authority = open_context(settings), Authority(settings.state.folder / "ca", open_context(settings).clock)
    enrolment = EnrolmentService(app.store, authority, settings.enrolment, app.clock, app.random)
    _, plan = write_plan(place, PARAMETERS, 1)
    plan.write_text(plan.read_text().replace("minimum = 6", "minimum = 3").replace("target = 6", "target = 3"))
    agents = place.names[:3]
    with running("aggregator", place.serve_command, place.folder) as aggregator:
        identities = {}
        for name in place.names:
            token = enrolment.invite(name, auto_approve=True).text()
            site = load_site_settings(place.site(name) / "site.toml")
            identities[name] = join(
                site,
                f"127.0.0.1:{place.ports[1]}",
                token,
                say=lambda _: None,
                confirm=lambda _: True,
                wait=lambda _: place.sign_roster(),
            )
        enrolment.revoke(REVOKED)
        with all_running(agents, [place.site_command(name, "agent") for name in agents], place.folder):
            trainers = Trainers(place, np.full(PARAMETERS, 1e-4, np.float32))
            trainers.start()
            process = psutil.Process(aggregator.pid)
            yield Federation(place, app, process, authority.certificate_pem, dashboard_port, identities)
            trainers.stop()
    app.store.close()


Attack = Callable[[Federation], AbstractContextManager[object]]


def half_open_polls_of_a_site(federation: Federation) -> AbstractContextManager[object]:
    return half_open_calls(federation.target(MALICIOUS), POLL.path, 32)


def half_open_polls_of_a_revoked_site(federation: Federation) -> AbstractContextManager[object]:
    return half_open_calls(federation.target(REVOKED), POLL.path, 32)


def half_open_joins_of_anybody(federation: Federation) -> AbstractContextManager[object]:
    return half_open_calls(federation.enrolment, JOIN.path, 8)


def silent_uploads_of_a_site(federation: Federation) -> AbstractContextManager[object]:
    return half_open_calls(federation.target(MALICIOUS), PUT_BLOB.path, 28)


def idle_connections_of(count: int) -> Attack:
    @contextmanager
    def idle_connections_of_anybody(federation: Federation) -> Iterator[None]:
        ports = [*federation.place.ports, federation.dashboard_port]
        context = federation.enrolment.context(federation.place.folder)
        with idle_connections(ports[:2], count // 2, context), idle_connections(ports[2:], count // 4):
            yield

    return idle_connections_of_anybody


CALLS: list[Attack] = [
    half_open_polls_of_a_site,
    half_open_polls_of_a_revoked_site,
    half_open_joins_of_anybody,
    silent_uploads_of_a_site,
]


@pytest.mark.parametrize("attack", [*CALLS, idle_connections_of(200)], ids=lambda attack: attack.__name__)
def test_an_honest_poll_is_answered_within_a_second(federation: Federation, attack: Attack) -> None:
    with attack(federation):
        # The median: other programs of this machine may delay a single one.
        assert statistics.median(federation.polls_s()) < ANSWER_S
        assert statistics.median(federation.challenges_s()) < ANSWER_S
        assert federation.log_in_page_s() < 5 * ANSWER_S


def test_a_round_of_three_sites_ends_with_all_of_it_in_progress(federation: Federation) -> None:
    with ExitStack() as stack:
        for attack in (*CALLS, idle_connections_of(100)):
            stack.enter_context(attack(federation))
        federation.end_a_round()
    assert federation.aggregator.is_running()


@pytest.mark.slow
@pytest.mark.parametrize("attack", [*CALLS, idle_connections_of(1400)], ids=lambda attack: attack.__name__)
def test_a_round_of_three_sites_ends_and_polls_are_answered_at_full_size(
    federation: Federation, attack: Attack
) -> None:
    before = federation.log_bytes
    with attack(federation):
        federation.end_a_round()
        assert statistics.median(federation.polls_s()) < ANSWER_S
        assert statistics.median(federation.challenges_s()) < ANSWER_S
        assert federation.log_in_page_s() < 5 * ANSWER_S
    assert federation.log_bytes - before < 1_000_000


def test_calls_beyond_a_sites_share_are_refused_and_a_revoked_one_is_told_so(federation: Federation) -> None:
    with half_open_calls(federation.target(MALICIOUS), POLL.path, 24) as codes:
        _until(lambda: codes["RESOURCE_EXHAUSTED"] > 0)
    assert "PERMISSION_DENIED" not in codes
    with half_open_calls(federation.target(REVOKED), POLL.path, 8) as codes:
        _until(lambda: codes["PERMISSION_DENIED"] > 0)
    assert "RESOURCE_EXHAUSTED" not in codes


def test_a_sites_own_share_is_free_again_when_its_calls_end(federation: Federation) -> None:
    with half_open_calls(federation.target(MALICIOUS), POLL.path, 24) as codes:
        _until(lambda: codes["RESOURCE_EXHAUSTED"] > 0)
    request = poll_of().SerializeToString()
    with federation.target(MALICIOUS).channel() as channel:
        _until(lambda: _code_of(channel, POLL.path, request) is None)


@pytest.mark.parametrize(
    ("waves", "at_once"), [(10, 96), pytest.param(20, 400, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_handshakes_at_once_end_no_aggregator_and_all_honest_ones_are_served(
    federation: Federation, tmp_path: Path, waves: int, at_once: int
) -> None:
    """On both listeners, junk among them, while the server's certificate is renewed in every third wave."""
    sites, enrolment = federation.target(POLLING), federation.enrolment
    contexts = {target.port: target.context(tmp_path) for target in (sites, enrolment)}
    hello = client_hello(contexts[enrolment.port])
    begins = [b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n", os.urandom(100), b"\x16\x03\x01\x02\x00" + os.urandom(60)]
    begins += [hello, hello[:50]]
    server_pem = federation.place.folder / "hub" / "ca" / "server.pem"

    gate = threading.Barrier(at_once)

    def begin(index: int) -> str:
        port = (sites, enrolment)[index % 2].port
        gate.wait()
        if index % 4 < 2:
            return handshake(port, contexts[port])
        if index % 8 < 4:
            handshake(port, contexts[enrolment.port])  # without a certificate
        else:
            junk(port, begins[index % len(begins)])
        return ""

    for number in range(waves):
        shown = server_pem.read_bytes()
        if number % 3 == 1:
            server_pem.unlink()
        with ThreadPoolExecutor(at_once) as threads:
            assert Counter(threads.map(begin, range(at_once))) == {"": at_once}
        if number % 3 == 1:
            _until(partial(_is_renewed, server_pem, shown))
    assert federation.aggregator.is_running()
    assert statistics.median(federation.polls_s()) < ANSWER_S


def _is_renewed(server_pem: Path, shown: bytes) -> bool:
    return server_pem.exists() and server_pem.read_bytes() != shown


def _code_of(channel: RawChannel, path: str, request: bytes) -> grpc.StatusCode | None:
    """Return the code with which a call is refused; None when it is answered."""
    try:
        channel.unary_unary(path)(request, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return None


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
