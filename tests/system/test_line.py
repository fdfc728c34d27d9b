"""The doctor measures a real line: mutual TLS, a real coordinator, and every message in the ledger."""

import fcntl
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from federation.bandwidth import sequence
from federation.limits import CHUNK_BYTES_MAX
from federation.v1 import bandwidth_pb2

from site_client.agent.commands.session import session
from site_client.agent.egress.calls import ECHO
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.ledger import read
from site_client.agent.identity.identity import SiteIdentity
from site_client.check_result import CheckResult, Color
from site_client.config import AggregatorAddress, PolicySettings, SiteSettings
from site_client.doctor.network.checks import checks
from site_client.doctor.network.echo import FIRST_BYTES, check_echo, measure
from site_client.errors import Refused
from tests.system.consortium import Consortium, consortium


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    with consortium(tmp_path_factory.mktemp("consortium")) as made:
        yield made


def now() -> datetime:
    return datetime.now(UTC)


def measured(settings: SiteSettings) -> CheckResult:
    (line,) = check_echo(settings, SiteIdentity(settings.folders.agent / "identity"), now)
    return line


def echoes(settings: SiteSettings) -> list[int]:
    """Sizes of those that left."""
    entries = read(settings.folders.agent / "ledger.jsonl")
    return [entry.size_bytes for entry in entries if entry.rpc == ECHO.name and entry.left]


def connection(settings: SiteSettings) -> AbstractContextManager[Egress]:
    """The doctor's, for who wants to say something else on it."""
    return session(settings, SiteIdentity(settings.folders.agent / "identity"), now)


def test_a_line_is_measured_both_ways_with_five_messages_that_stand_in_the_ledger(coordinator: Consortium) -> None:
    settings = coordinator.joined("mercy")
    line = measured(settings)
    assert line.color is Color.GREEN
    assert " KiB/s up, " in line.found
    assert "a round of the full network" in line.found
    sizes = echoes(settings)
    assert (len(sizes), sizes[0]) == (5, 0)
    assert FIRST_BYTES < sizes[1] < FIRST_BYTES + 16
    assert CHUNK_BYTES_MAX < sizes[2] < CHUNK_BYTES_MAX + 16
    assert max(sizes[3:]) < 16
    assert sum(sizes) < 1.2e6
    for entry in read(settings.folders.agent / "ledger.jsonl"):
        if entry.rpc == ECHO.name:
            assert entry.rule == "call, fields, fixed sequence"


def test_the_speed_is_what_moved_in_the_time_it_took(coordinator: Consortium) -> None:
    """A clock that jumps 2 s at every look: too slow for a large piece; one that jumps half a second: not."""
    settings = coordinator.joined("clock")
    for step_s, size in ((2.0, FIRST_BYTES), (0.5, CHUNK_BYTES_MAX)):
        at = [0.0]

        def monotonic(at: list[float] = at, step_s: float = step_s) -> float:
            at[0] += step_s
            return at[0]

        with connection(settings) as egress:
            speed = measure(egress, CHUNK_BYTES_MAX, monotonic)
        assert speed.up == speed.down == size / step_s


def test_a_site_that_holds_its_transfers_to_a_speed_sends_no_large_piece(coordinator: Consortium) -> None:
    settings = replace(coordinator.joined("slow"), policy=PolicySettings(bandwidth_kib_s=1000))
    assert measured(settings).color is Color.GREEN
    assert max(echoes(settings)) < FIRST_BYTES + 16


def test_a_site_that_measures_too_often_is_sent_away_for_a_minute(coordinator: Consortium) -> None:
    settings = coordinator.joined("eager")
    lines = [measured(settings) for _ in range(5)]
    assert lines[0].color is Color.GREEN
    assert (lines[-1].color, "measured too often" in lines[-1].found) == (Color.GREY, True)


def test_while_an_agent_runs_and_in_a_dry_run_nothing_is_sent(coordinator: Consortium) -> None:
    settings = coordinator.joined("busy")
    with (settings.folders.agent / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert measured(settings).fix == "Stop the agent to measure"
    assert measured(replace(settings, policy=PolicySettings(dry_run=True))).color is Color.GREY
    assert echoes(settings) == []


def test_an_aggregator_that_is_not_there_is_grey_and_said_in_words(coordinator: Consortium) -> None:
    settings = replace(coordinator.joined("far"), aggregator=AggregatorAddress("127.0.0.1:9"))
    line = measured(settings)
    assert (line.color, line.found.startswith("no answer within 20 s")) == (Color.GREY, True)


def test_the_aggregator_refuses_more_than_a_mebibyte_and_a_site_that_left(coordinator: Consortium) -> None:
    settings = coordinator.joined("greedy")
    with connection(settings) as egress, pytest.raises(Refused, match="at most 1048576 bytes wanted"):
        egress.send(ECHO, bandwidth_pb2.EchoRequest(wanted_bytes=CHUNK_BYTES_MAX + 1))
    coordinator.enrolment.leave("greedy")
    with connection(settings) as egress, pytest.raises(Refused, match="has left"):
        egress.send(ECHO, bandwidth_pb2.EchoRequest(data=sequence(10)))


def test_the_doctor_of_a_joined_site_has_the_line_among_its_checks(coordinator: Consortium) -> None:
    settings = coordinator.joined("whole")
    found = [line for check in checks(settings, now).values() for line in check()]
    assert [line.color for line in found if line.check == "echo"] == [Color.GREEN]
