"""No page shows a figure younger than it is, or the aggregator's own trouble as that of the hospitals."""

import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from aggregator.context import AppContext
from aggregator.dashboard import conditions
from aggregator.dashboard.conditions import WriteProbe
from aggregator.rounds.clock_steps import ClockSteps
from aggregator.store import Change, people, record
from aggregator.store.tables import SiteReport
from tests.aggregator.conftest import StandingClock
from tests.aggregator.dashboard_fixtures import PASSWORD, words_of
from tests.aggregator.test_dashboard_now import first_screen


class Seconds:
    """A monotonic clock that moves when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def holder(running: AppContext) -> Iterator[sqlite3.Connection]:
    """Another program's connection to the database."""
    connection = sqlite3.connect(str(running.store.engine.url.database), isolation_level=None)
    yield connection
    connection.close()


def test_a_locked_database_is_the_aggregators_trouble_and_not_the_hospitals(
    enrolled: AppContext, ada: TestClient, holder: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "PROBE_EVERY_S", 0.0)
    assert "south silent for 2 h" in first_screen(ada)
    holder.execute("BEGIN IMMEDIATE")
    ada.get("/")  # one refusal may be a long write
    page = words_of(ada.get("/").text)
    assert "The aggregator cannot write: database locked, for" in page
    assert "south not known here, the aggregator cannot write" in first_screen(ada)
    assert "silent" not in first_screen(ada)
    holder.execute("ROLLBACK")
    assert "cannot write" not in ada.get("/").text


def test_one_refusal_is_no_fault_and_the_database_is_asked_every_two_seconds_at_most(
    running: AppContext, holder: sqlite3.Connection
) -> None:
    seconds = Seconds()
    probe = WriteProbe(running.store, seconds)
    holder.execute("BEGIN IMMEDIATE")
    assert probe.fault() == ""
    seconds.now = 1.0
    assert probe.fault() == ""
    seconds.now = 62.0
    assert probe.fault().startswith("The aggregator cannot write: database locked, for 1 min 2 s at least.")
    holder.execute("ROLLBACK")
    seconds.now = 63.0
    assert probe.fault()
    seconds.now = 64.0
    assert probe.fault() == ""


def test_a_file_that_cannot_be_written_is_said_at_once(running: AppContext) -> None:
    Path(str(running.store.engine.url.database)).rename(running.settings.state.folder / "elsewhere")
    assert "The aggregator cannot write: unable to open database file" in WriteProbe(running.store).fault()


def test_an_act_that_a_locked_database_refuses_is_answered_with_the_reason(
    app: AppContext, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OperationalError("INSERT secret", {}, sqlite3.OperationalError("database is locked"))

    monkeypatch.setattr(people, "renew_hash", refuse)
    reply = client.post("/login", data={"name": "ada", "password": PASSWORD})
    assert reply.status_code == 503
    assert reply.text == "The aggregator cannot use its database: database locked."


def test_a_report_from_before_the_clock_was_set_back_is_not_shown_as_young(
    enrolled: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    assert "clock" not in ada.get("/").text
    clock.advance(hours=-3)
    page = words_of(ada.get("/").text)
    assert "The clock was set back: the newest entry is of 2026-11-23 09:00:00 UTC, 3 h ahead of now." in page
    assert "north unknown, the clock was set back" in first_screen(ada)
    assert "3 h ahead of now" in words_of(ada.get("/sites").text)
    assert "0 s ago" not in page


def test_a_step_of_the_clock_that_drivers_have_followed_is_said_for_a_day(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    steps = ClockSteps(running, lambda: 0.0)
    clock.advance(hours=-3)
    steps.follow()
    with running.store.read() as session:
        report = session.query(SiteReport).filter_by(site="north").one()
    assert clock() - report.seen_at == timedelta(0)
    assert "06:00 UTC: the host's clock was set by -10800 s; deadlines move with it." in words_of(ada.get("/").text)


def test_a_clock_that_was_not_set_is_not_mentioned(running: AppContext, ada: TestClient, clock: StandingClock) -> None:
    with running.store.write() as session:
        record(session, Change(clock(), "driver:clock", "round:00/1", "the clock was set by 9 s"), None, "times moved")
    clock.advance(days=2)
    ada.post("/login", data={"name": "ada", "password": PASSWORD})
    assert "clock was" not in ada.get("/").text
