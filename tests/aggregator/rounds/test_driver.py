"""The driver: leases, deadlines, what a failed attempt keeps, and a run that asks for a person."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from federation.v1 import secagg_pb2
from sqlalchemy import func, select, update
from structlog.testing import capture_logs

from aggregator.rounds import driver, snapshot
from aggregator.rounds.driver import LEFT_ALONE_S, Driver, is_dead, own_name
from aggregator.rounds.failures import sum_history
from aggregator.runs.faults import offered_to
from aggregator.states import RoundState, RunState, SeatState
from aggregator.store import round_rows
from aggregator.store.tables import Audit, Run, Seat
from tests.federation.nursery import PHASE_S, TRAINING_S
from tests.federation.world import World

MakeWorld = Callable[..., World]


def test_a_round_leased_by_another_driver_is_left_to_it_until_the_lease_expires(make_world: MakeWorld) -> None:
    world = make_world(sites=3)
    world.ready()
    now = world.clock()
    with world.aggregator.app.store.write() as session:
        assert round_rows.lease(session, world.round.id, "another", now, now + timedelta(minutes=5))
    assert not world.aggregator.driver.turn()
    leased = world.round.state
    world.clock.advance(6 * 60)
    world.drive()
    assert (leased, world.round.state) == (RoundState.TRAINING, RoundState.KEYS)


def test_a_driver_whose_database_refuses_for_a_while_goes_on_afterwards(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing waits: the clock of this world stands, and the table may go in the middle of a step.
    monkeypatch.setattr(driver, "LEFT_ALONE_S", 0.0)
    world = make_world(sites=3)
    app, stop = world.aggregator.app, threading.Event()
    loop = threading.Thread(target=world.aggregator.driver.run, args=(stop,))
    with capture_logs() as events:
        loop.start()
        until(lambda: "driver started" in [event["event"] for event in events])
        rename(world, "rounds", "away")
        until(lambda: "database refused" in [event["event"] for event in events])
        rename(world, "away", "rounds")
        world.ready()
        until(lambda: world.round.state is RoundState.KEYS)
    stop.set()
    app.work_due.notify()
    loop.join()


def rename(world: World, table: str, name: str) -> None:
    with world.aggregator.app.store.write() as session:
        session.connection().exec_driver_sql(f"ALTER TABLE {table} RENAME TO {name}")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_one_drivers_and_may_be_renewed_and_given_back_by_it_alone(make_world: MakeWorld) -> None:
    world = make_world(sites=3)
    round_id, now = world.round.id, world.clock()
    until = now + timedelta(minutes=5)
    with world.aggregator.app.store.write() as session:
        assert round_rows.lease(session, round_id, "first", now, until)
        assert not round_rows.lease(session, round_id, "second", now, until)
        assert round_rows.lease(session, round_id, "first", now, until)
        round_rows.release(session, round_id, "second")
        assert round_rows.leases(session) == [(round_id, "first")]
        round_rows.release(session, round_id, "first")
        assert round_rows.leases(session) == []


def test_two_drivers_that_both_aggregate_publish_once(make_world: MakeWorld) -> None:
    """The slower one stands still in the middle until its lease has expired and the other has published."""
    world = make_world(sites=3, phase="reveal")
    for name in world.sites:
        world.step(name)
    quick = world.aggregator.driver
    assert quick.turn()
    assert world.round.state is RoundState.AGGREGATING

    def stands_still() -> float:
        row = world.rounds()[0]
        if row.state is RoundState.AGGREGATING and row.lease_owner == "slow":  # asked in the middle of aggregating
            world.clock.advance(world.aggregator.app.settings.driver.lease_s + 1)
            while quick.turn():
                pass
        return 0.0

    with capture_logs() as events:
        assert not Driver(world.aggregator.app, "slow", stands_still).turn()
    assert [event["event"] for event in events].count("round published") == 1
    assert events[-1]["event"] == "race lost"
    with world.aggregator.app.store.read() as session:
        assert session.scalar(select(func.count()).where(Audit.after == "published")) == 1
    assert [row.state for row in world.rounds()] == [RoundState.PUBLISHED, RoundState.TRAINING]


def test_the_other_rounds_of_a_run_are_read_once_a_step(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the history of sums and for who sits out; a step looks at its own round three times."""
    world = make_world(sites=3)
    world.ready()
    read: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> None:
        def reads(*arguments: Any) -> Any:
            read.append(name)
            return real(*arguments)

        monkeypatch.setattr(snapshot, name, reads)

    counted("sum_history", sum_history)
    counted("offered_to", offered_to)
    assert world.aggregator.driver.turn()
    assert world.round.state is RoundState.KEYS
    assert sorted(read) == ["offered_to", "sum_history"]


def test_the_leases_of_a_dead_process_of_this_machine_are_known() -> None:
    own = own_name()
    host, pid, _process, driver = own.split("/")
    assert not is_dead(own)
    assert is_dead(f"{host}/{pid}/of-an-earlier-start/{driver}")
    assert is_dead(f"{host}/4194304/x/{driver}")
    assert not is_dead(f"elsewhere/{pid}/x/{driver}")
    assert not is_dead("no driver's name")


def test_a_member_silent_in_a_phase_is_missed_and_the_others_continue(make_world: MakeWorld) -> None:
    world = make_world(sites=5, phase="upload")
    for name in list(world.sites)[:4]:
        world.step(name)
    world.drive()
    before = world.round.state
    world.clock.advance(PHASE_S + 1)
    world.drive()
    assert (before, world.round.state) == (RoundState.UPLOAD, RoundState.CONFIRM)
    assert world.seats()["site-e"] is SeatState.MISSED


def test_below_the_threshold_the_attempt_starts_over_with_fresh_keys_and_keeps_no_payload(
    make_world: MakeWorld,
) -> None:
    world = make_world(sites=5, phase="shares")
    for name in ("site-a", "site-b"):
        world.step(name)
    world.clock.advance(PHASE_S + 1)
    world.drive()
    row = world.round
    assert (row.state, row.attempt, row.roster_epoch) == (RoundState.TRAINING, 2, 0)
    assert sorted(world.seats().values()) == [*[SeatState.MISSED] * 3, *[SeatState.READY] * 2]
    with world.aggregator.app.store.read() as session:
        for column in (Seat.advertisement, Seat.shares_digest):
            assert round_rows.senders(session, row.id, column) == []
    world.until(RoundState.SHARES)
    keys = [message.message for message in world.wire.heard if message.site == "site-a"]
    mask_keys = [key.advertisement.mask_key for key in keys if isinstance(key, secagg_pb2.KeysMessage)]
    assert len(mask_keys) == len(set(mask_keys)) == 2
    world.until(RunState.COMPLETED)


def test_a_reveal_waits_for_late_members_as_long_as_training_may_take(make_world: MakeWorld) -> None:
    world = make_world(sites=5, rounds=2, phase="reveal")
    for name in list(world.sites)[:3]:
        world.step(name)
    world.clock.advance(TRAINING_S - 1)
    world.drive()
    assert world.round.state is RoundState.REVEAL
    world.step("site-d")
    world.drive()
    assert world.rounds()[0].state is RoundState.PUBLISHED


def test_a_failed_reveal_abandons_the_round_publishes_nothing_and_pauses_the_run(make_world: MakeWorld) -> None:
    world = make_world(sites=5, rounds=2, phase="reveal")
    for name in list(world.sites)[:3]:
        world.step(name)
    world.clock.advance(TRAINING_S + 1)
    world.drive()
    (first,) = world.rounds()
    assert (first.state, first.sum_blob) == (RoundState.ABANDONED, None)
    assert world.run.state is RunState.PAUSED
    assert "begin a new run from another" in str(world.run.reason)


def test_three_abandoned_rounds_in_a_row_pause_the_run_and_say_why_and_a_person_resumes_it(
    make_world: MakeWorld,
) -> None:
    world = make_world(sites=3, rounds=10)
    for number in (1, 2, 3):
        assert world.round.number == number
        world.clock.advance(TRAINING_S + 1)
        world.drive()
    assert world.run.state is RunState.PAUSED
    assert "3 rounds in a row" in (world.run.reason or "")
    world.clock.advance(TRAINING_S + 1)
    world.drive()
    assert world.round.number == 3
    world.resume()
    assert (world.round.number, world.round.state) == (4, RoundState.TRAINING)


def test_a_paused_run_ends_its_round_and_begins_no_other(make_world: MakeWorld) -> None:
    world = make_world(sites=3, rounds=2, phase="keys")
    world.pause()
    for _ in range(8):
        world.everybody()
    assert (world.round.number, world.round.state) == (1, RoundState.PUBLISHED)
    world.resume()
    world.until(RunState.COMPLETED)


def test_a_round_whose_step_fails_is_left_alone_for_a_while_and_then_tried_again(make_world: MakeWorld) -> None:
    """Its run's plan is damaged for a moment. The loop itself does not stop."""
    world = make_world(sites=3)
    world.ready()
    store, whole = world.aggregator.app.store, world.run.signed_plan
    with store.write() as session:
        session.execute(update(Run).values(signed_plan=b"damaged"))
    with capture_logs() as events:
        assert not world.aggregator.driver.turn()
        assert not world.aggregator.driver.turn()  # it does not look at the round
    assert [(event["event"], event["exc_info"]) for event in events] == [("round step failed", True)]
    with store.write() as session:
        session.execute(update(Run).values(signed_plan=whole))
    assert not world.aggregator.driver.turn()
    world.clock.advance(LEFT_ALONE_S + 1)
    assert world.aggregator.driver.turn()
    assert world.round.state is RoundState.KEYS
