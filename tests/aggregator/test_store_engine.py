"""Transitions: one guarded UPDATE, one audit row, one transaction."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import event, select, text, update

from aggregator.errors import LostRace
from aggregator.states import RunState
from aggregator.store import Change, Store, guarded, open_store, transition
from aggregator.store.people import audit_trail
from aggregator.store.tables import Audit, Run
from tests.aggregator.conftest import StandingClock

RUN = b"r" * 16


@pytest.fixture
def change(clock: StandingClock) -> Change:
    return Change(clock(), "operator", f"run:{RUN.hex()}", "because a test says so")


@pytest.fixture
def running(store: Store, clock: StandingClock) -> Store:
    with store.write() as session:
        session.add(
            Run(
                run_id=RUN,
                name="pilot",
                signed_plan=b"plan",
                plan_digest=b"d" * 32,
                state=RunState.RUNNING,
                created_at=clock(),
            )
        )
    return store


def state_of(store: Store) -> RunState:
    with store.read() as session:
        run = session.get(Run, RUN)
        assert run is not None
        return run.state


def test_a_transition_changes_the_row_and_writes_one_audit_row(running: Store, change: Change) -> None:
    with running.write() as session:
        transition(
            session, Run.state, {Run.run_id: RUN}, RunState.RUNNING, RunState.PAUSED, change, {"reason": "holiday"}
        )
    with running.read() as session:
        run = session.get(Run, RUN)
        assert run is not None
        assert (run.state, run.reason) == (RunState.PAUSED, "holiday")
        [row] = audit_trail(session)
        assert (row.at, row.actor, row.subject) == (change.at, change.actor, change.subject)
        assert (row.before, row.after, row.why) == ("running", "paused", change.why)


def test_a_transition_from_another_state_loses_and_leaves_no_audit_row(running: Store, change: Change) -> None:
    with pytest.raises(LostRace), running.write() as session:
        transition(session, Run.state, {Run.run_id: RUN}, RunState.PAUSED, RunState.RUNNING, change)
    with running.read() as session:
        assert audit_trail(session) == []
    assert state_of(running) is RunState.RUNNING


def test_a_transition_that_the_tables_do_not_know_is_a_bug(running: Store, change: Change) -> None:
    with pytest.raises(ValueError, match="no transition from completed"), running.write() as session:
        transition(session, Run.state, {Run.run_id: RUN}, RunState.COMPLETED, RunState.RUNNING, change)


def test_a_change_that_would_hit_several_rows_is_a_bug_and_undone(
    running: Store, change: Change, clock: StandingClock
) -> None:
    with running.write() as session:
        session.add(
            Run(
                run_id=b"s" * 16,
                name="second",
                signed_plan=b"plan",
                plan_digest=b"e" * 32,
                state=RunState.RUNNING,
                created_at=clock(),
            )
        )
    with pytest.raises(RuntimeError, match="2 rows"), running.write() as session:
        guarded(session, update(Run).values(reason="all"), change, None, "changed")
    with running.read() as session:
        assert list(session.scalars(select(Run.reason))) == [None, None]


def test_an_exception_later_in_the_block_undoes_the_transition(running: Store, change: Change) -> None:

    def fail_after_the_transition() -> None:
        with running.write() as session:
            transition(session, Run.state, {Run.run_id: RUN}, RunState.RUNNING, RunState.ABORTED, change)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_after_the_transition()
    assert state_of(running) is RunState.RUNNING
    with running.read() as session:
        assert list(session.scalars(select(Audit))) == []


def test_of_many_that_make_one_transition_at_once_exactly_one_wins(
    running: Store, change: Change, tmp_path: Path
) -> None:
    """Eight threads, each with a connection of its own, as eight processes would have."""
    start, outcomes = threading.Barrier(8), []

    def race() -> None:
        mine = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}")
        start.wait()
        try:
            with mine.write() as session:
                transition(session, Run.state, {Run.run_id: RUN}, RunState.RUNNING, RunState.PAUSED, change)
            outcomes.append("won")
        except LostRace:
            outcomes.append("lost")
        finally:
            mine.close()

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    with running.read() as session:
        assert len(audit_trail(session)) == 1


def test_a_writer_does_not_block_a_reader(running: Store) -> None:
    with running.write() as writing:
        writing.execute(update(Run).values(reason="unfinished"))
        with running.read() as reading:
            assert reading.scalar(select(Run.reason)) is None


def test_what_is_written_while_reading_is_rolled_back(running: Store) -> None:
    with running.read() as session:
        session.execute(update(Run).values(reason="never"))
    with running.read() as session:
        assert session.scalar(select(Run.reason)) is None


def test_sqlite_runs_in_wal_with_full_synchronisation_and_foreign_keys(store: Store) -> None:
    with store.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_the_audit_trail_is_newest_first_filtered_and_paged(store: Store, clock: StandingClock) -> None:
    with store.write() as session:
        for number in range(5):
            subject = "site:b_d" if number == 3 else "site:bcd"
            session.add(Audit(at=clock(), actor="operator", subject=subject, after=str(number), why="test"))
    with store.read() as session:
        assert [row.after for row in audit_trail(session, limit=2)] == ["4", "3"]
        oldest = audit_trail(session, limit=2)[-1].id
        assert [row.after for row in audit_trail(session, limit=2, before_id=oldest)] == ["2", "1"]
        # An underscore is a letter of the name here, not SQL's wildcard.
        assert [row.after for row in audit_trail(session, subject="site:b_")] == ["3"]


def test_a_second_writer_asks_the_database_only_when_the_first_is_done(store: Store) -> None:
    """SQLite would have it sleep longer and longer, and wake long after the lock is free."""
    begun: list[int] = []
    event.listen(store.engine, "begin", lambda _connection: begun.append(threading.get_ident()))

    def write() -> None:
        with store.write() as session:
            session.execute(text("SELECT 1"))

    second = threading.Thread(target=write)
    with store.write() as session:
        session.execute(text("SELECT 1"))
        second.start()
        second.join(0.3)
        assert begun == [threading.get_ident()]
    second.join(10)
    assert len(begun) == 2
