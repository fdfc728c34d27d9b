"""The agent compares its clock with the aggregator's time, says so in three places, and does nothing else with it."""

import fcntl
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation.v1 import rounds_pb2
from federation.vocabulary import SiteState
from structlog.testing import capture_logs

from site_client.agent.egress.calls import POLL
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.status_file import AgentStatus, read_status, write_status
from site_client.check_result import Color
from site_client.config import AggregatorAddress, SiteSettings
from site_client.doctor.command import exit_status, render_text
from site_client.doctor.network.enrolment import check_time
from site_client.status import gather
from tests.site_client.agent.conftest import Consortium
from tests.site_client.agent.test_agent_service import running
from tests.site_client.agent.test_agent_service import settings as settings  # a fixture

import grpc  # isort: skip


@dataclass
class Aggregator(grpc.GenericRpcHandler):
    """Answers each Poll with nothing to do and a time as far from this machine's as it is told."""

    ahead_s: float | None = 0.0
    polls: int = 0

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        return grpc.unary_unary_rpc_method_handler(self._poll) if details.method == POLL.path else None

    def _poll(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        self.polls += 1
        reply = rounds_pb2.PollReply(retry_after_ms=1)
        if self.ahead_s is not None:
            reply.aggregator_time_ms = round(1000 * (datetime.now(UTC).timestamp() + self.ahead_s))
        return reply.SerializeToString()


@pytest.fixture
def aggregator(consortium: Consortium) -> Iterator[tuple[Aggregator, str]]:
    handler = Aggregator()
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[handler])
    credentials = grpc.ssl_server_credentials([consortium.server_pair()], consortium.ca_pem, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_a_clock_that_is_off_is_said_in_status_and_log_once_until_it_agrees_again(
    tmp_path: Path, identity: SiteIdentity, settings: SiteSettings, aggregator: tuple[Aggregator, str]
) -> None:
    handler, address = aggregator
    settings = replace(settings, aggregator=AggregatorAddress(address))

    def clock_fact() -> str:
        return next(str(fact.value) for fact in gather(settings) if fact.name == "clock")

    handler.ahead_s = 7320.0
    with capture_logs() as logs, running(settings, identity, tmp_path / "notify") as systemd:
        # Each turn ends with a status: several of them with the same difference, then one without.
        systemd.receive_until(lambda _: handler.polls >= 4 and "min" in clock_fact())
        words = clock_fact()
        handler.ahead_s, before = -299.0, handler.polls
        systemd.receive_until(lambda _: handler.polls >= before + 3)
        agrees = clock_fact()
        handler.ahead_s, before = None, handler.polls
        systemd.receive_until(lambda _: handler.polls >= before + 3 and clock_fact() == "None")
        status = read_status(settings.folders.agent)
    assert words.startswith("this machine's clock is 122 min behind the aggregator's; enable NTP")
    assert agrees == "this machine's clock is 299 s ahead of the aggregator's"
    assert status is not None
    assert status.last_error == ""  # nothing was refused for it
    (said,) = [line for line in logs if line["event"] == "clock differs"]
    assert "122 min behind" in said["why"]
    assert [line["event"] for line in logs].count("clock agrees again") == 1


def idle(ahead_s: float | None) -> AgentStatus:
    now = datetime.now(UTC)
    return AgentStatus(now, SiteState.IDLE, (), None, None, None, 1, now, now, "", 0, clock_ahead_s=ahead_s)


@pytest.mark.parametrize(
    ("ahead_s", "color", "words"),
    [
        (299.0, Color.GREEN, "this machine's clock is 299 s ahead of the aggregator's"),
        (-301.0, Color.AMBER, "this machine's clock is 5 min behind the aggregator's"),
        (7200.0, Color.AMBER, "this machine's clock is 120 min ahead of the aggregator's"),
        (None, Color.GREY, "no agent runs here that has compared this clock with the aggregator's"),
    ],
)
def test_more_than_the_tolerance_of_five_minutes_is_amber_in_doctor(
    identity: SiteIdentity, settings: SiteSettings, ahead_s: float | None, color: Color, words: str
) -> None:
    folder = settings.folders.agent
    now = datetime.now(UTC)
    write_status(
        folder, AgentStatus(now, SiteState.IDLE, (), None, None, None, 1, now, now, "", 0, clock_ahead_s=ahead_s)
    )
    with (folder / "lock").open("wb") as lock:  # as a running agent holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        (result,) = check_time(folder)
    assert (result.color, result.found) == (color, words)
    assert ("NTP" in result.fix) == (color is Color.AMBER)
    assert exit_status([result]) == 0
    assert "1 amber" in render_text([result], colors=False) or color is not Color.AMBER


def test_without_a_running_agent_no_old_difference_is_shown(settings: SiteSettings, identity: SiteIdentity) -> None:
    now, folder = datetime.now(UTC), settings.folders.agent
    write_status(
        folder, AgentStatus(now, SiteState.IDLE, (), None, None, None, 1, now, now, "", 0, clock_ahead_s=9000.0)
    )
    (result,) = check_time(settings.folders.agent)
    assert result.color is Color.GREY
