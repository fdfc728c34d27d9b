"""The loop beside the drivers: uploads that are over, byte counts, and a run that a crash left without a round."""

import hashlib
import threading
from collections.abc import Callable

import pytest
from federation.encoding import Layout
from sqlalchemy import delete, select
from structlog.testing import capture_logs

from aggregator.rounds.housekeeping import INTERVAL_S, Housekeeping
from aggregator.states import RoundState
from aggregator.store import round_rows
from aggregator.store.tables import Round, Seat
from tests.federation.nursery import PHASE_S
from tests.federation.world import World

MakeWorld = Callable[..., World]


def upload_digests(world: World) -> list[bytes]:
    """Of every upload that some seat still expects or has."""
    with world.aggregator.app.store.read() as session:
        return [digest for digest in session.scalars(select(Seat.upload_digest)) if digest is not None]


def is_stored(world: World, digest: bytes) -> bool:
    size_bytes = Layout.of_round(world.plan, 1).bytes
    return world.aggregator.app.uploads.offer(digest, size_bytes).complete


def test_uploads_are_deleted_when_their_round_is_over(make_world: MakeWorld) -> None:
    world = make_world(sites=3, phase="reveal")
    digests = upload_digests(world)
    assert len(digests) == 3
    assert all(is_stored(world, digest) for digest in digests)
    world.aggregator.housekeeping.turn()
    assert all(is_stored(world, digest) for digest in digests)  # the round still needs them
    for name in world.sites:
        world.step(name)
    while world.aggregator.driver.turn():
        pass
    assert world.rounds()[0].state is RoundState.PUBLISHED
    world.aggregator.housekeeping.turn()
    assert not any(is_stored(world, digest) for digest in digests)
    assert upload_digests(world) == []


def test_an_upload_of_a_failed_attempt_is_deleted_before_the_next_one(make_world: MakeWorld) -> None:
    world = make_world(sites=5, phase="upload")
    world.step("site-a")
    (digest,) = upload_digests(world)
    world.clock.advance(PHASE_S + 1)
    while world.aggregator.driver.turn():
        pass
    assert (world.round.state, world.round.attempt) == (RoundState.TRAINING, 2)
    world.aggregator.housekeeping.turn()
    assert not is_stored(world, digest)
    assert upload_digests(world) == []


def test_an_upload_that_a_stream_wrote_after_its_seat_had_offered_another_is_deleted(make_world: MakeWorld) -> None:
    """A hostile member could fill the disk that way: no seat names these uploads."""
    world = make_world(sites=3, phase="upload")
    world.step("site-a")
    uploads, size_bytes = world.aggregator.app.uploads, Layout.of_round(world.plan, 1).bytes
    for number in range(12):
        uploads.put(bytes([number]) * 32, size_bytes, 0, bytes(size_bytes - 1))
    whole = bytes(range(256)) * (size_bytes // 256) + bytes(size_bytes % 256)
    uploads.put(hashlib.sha256(whole).digest(), size_bytes, 0, whole)
    world.aggregator.housekeeping.turn()
    assert uploads.digests() == set(upload_digests(world))
    assert len(uploads.digests()) == 1


def test_a_run_that_a_crash_left_without_an_unfinished_round_continues(make_world: MakeWorld) -> None:
    world = make_world(sites=3)
    with world.aggregator.app.store.write() as session:
        session.execute(delete(Seat))
        session.execute(delete(Round))
    count = world.aggregator.app.work_due.count
    world.aggregator.housekeeping.turn()
    assert (world.round.number, world.round.state) == (1, RoundState.TRAINING)
    assert sorted(world.seats()) == sorted(world.sites)
    assert world.aggregator.app.work_due.count > count  # a driver looks at once


def test_bytes_are_written_every_few_seconds_and_not_at_every_turn(make_world: MakeWorld) -> None:
    world = make_world(sites=3)
    housekeeping = Housekeeping(world.aggregator.app, world.clock.seconds)
    housekeeping.turn()
    world.step("site-a")
    housekeeping.turn()
    assert bytes_up(world, "site-a") == 0
    world.clock.advance(INTERVAL_S)
    housekeeping.turn()
    assert bytes_up(world, "site-a") > 0


def test_a_task_that_fails_is_logged_and_the_others_are_done(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(sites=3)
    world.step("site-a")

    def fail(_session: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(round_rows, "leftovers", fail)
    with capture_logs() as events:
        Housekeeping(world.aggregator.app, world.clock.seconds).turn()
    assert [(event["event"], event["task"], event["exc_info"]) for event in events] == [
        ("housekeeping failed", "drop_leftovers", True)
    ]
    assert bytes_up(world, "site-a") > 0


def test_the_loop_ends_at_once_when_told_and_writes_the_last_bytes(make_world: MakeWorld) -> None:
    world = make_world(sites=3)
    stop = threading.Event()
    loop = threading.Thread(target=Housekeeping(world.aggregator.app).run, args=(stop,))
    loop.start()
    world.step("site-a")
    stop.set()
    world.aggregator.app.phase_changed.notify()
    loop.join(INTERVAL_S / 2)
    assert not loop.is_alive()
    assert bytes_up(world, "site-a") > 0


def bytes_up(world: World, site: str) -> int:
    with world.aggregator.app.store.read() as session:
        return round_rows.held_seat(session, world.round.id, site).bytes_up
