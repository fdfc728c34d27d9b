"""A trainer that was taken over: whatever it leaves in the spool, the agent refuses it in one sentence and goes on."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from federation.vocabulary import SiteState, StateReason

from aggregator.states import RoundState, RunState, SeatState
from site_client.errors import SpoolRefused
from site_client.records import RunId
from tests.federation.invariants import check
from tests.federation.nursery import TRAINING_S
from tests.federation.places import Site
from tests.federation.world import World
from tests.site_client.hostile_files import HOSTILE

HANGS_AFTER_S = 60


def spool_file(site: Site, name: str) -> Path:
    return next(site.settings.folders.spool.glob(f"to_agent/**/{name}"))


def a_site_with_an_update(world: World) -> Site:
    """site-a has a delivered update and a status, and has not looked at them yet; the others are ready."""
    for name in world.sites:
        world.step(name)
        world.train(name)
        if name != "site-a":
            world.step(name)
    return world.sites["site-a"]


def publish(world: World) -> None:
    """Until the first round has its model."""
    for _ in range(20):
        if world.rounds()[0].state is RoundState.PUBLISHED:
            return
        world.everybody()
        world.clock.advance(TRAINING_S / 8)
    raise AssertionError(f"the first round is {world.rounds()[0].state}")


@pytest.mark.timeout(HANGS_AFTER_S)
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("name", ["update.json", "delta.f32"])
def test_a_hostile_update_is_declined_and_the_agent_starts_again(
    make_world: Callable[..., World], name: str, case: str
) -> None:
    world = make_world(sites=3)
    site = world.sites["site-a"]
    world.step("site-a")
    world.train("site-a")
    HOSTILE[case](spool_file(site, name))
    world.step("site-a")
    assert world.refused == []
    assert world.seats()["site-a"] is SeatState.DECLINED
    current = site.rounds.journal.current
    assert current is not None
    assert current.declined is StateReason.TRAINING_FAILED
    assert site.trainer.jobs() == []
    site.boot()


@pytest.mark.timeout(HANGS_AFTER_S)
def test_after_a_hostile_update_the_others_publish_and_the_next_round_holds_everybody(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=4, rounds=2)
    site = a_site_with_an_update(world)
    HOSTILE["terabyte"](spool_file(site, "delta.f32"))
    publish(world)
    assert world.rounds()[0].members == 3
    world.until(RunState.COMPLETED)
    assert [row.members for row in world.rounds()] == [3, 4, 4]
    assert world.refused == []
    check(world)


@pytest.mark.timeout(HANGS_AFTER_S)
def test_a_hostile_status_is_one_sentence_and_stops_no_round(make_world: Callable[..., World]) -> None:
    world = make_world(sites=4)
    site = a_site_with_an_update(world)
    status = spool_file(site, "status.json")
    for case, spoil in HOSTILE.items():
        spoil(status)
        situation = site.rounds.situation()
        assert situation.state is (SiteState.READY if case == "missing" else SiteState.ATTENTION), case
        assert situation.refusal.count("status") == (0 if case == "missing" else 1), case
        world.step("site-a")
        site.boot()
        if status.is_dir():
            status.rmdir()
    assert world.refused == []
    assert world.seats()["site-a"] is SeatState.READY
    publish(world)
    assert world.rounds()[0].members == 4
    check(world)


@pytest.mark.timeout(HANGS_AFTER_S)
@pytest.mark.parametrize(("name", "case"), [("update.json", "pipe"), ("delta.f32", "terabyte")])
def test_an_update_spoiled_after_ready_is_refused_in_the_masking(
    make_world: Callable[..., World], name: str, case: str
) -> None:
    """The agent has started again since, and so has nothing in memory."""
    world = make_world(sites=4, phase="upload")
    site = world.sites["site-a"]
    site.boot()
    HOSTILE[case](spool_file(site, name))
    world.step("site-a")
    ((refused, error),) = world.refused
    assert (refused, type(error)) == ("site-a", SpoolRefused)
    for _ in range(6):
        world.everybody()
        world.clock.advance(31)
    assert (world.rounds()[0].state, world.rounds()[0].members) == (RoundState.PUBLISHED, 3)
    check(world)


@pytest.mark.timeout(HANGS_AFTER_S)
@pytest.mark.parametrize("street", ["to_agent", "update"])
def test_a_folder_exchanged_for_a_link_is_not_entered(make_world: Callable[..., World], street: str) -> None:
    world = make_world(sites=3)
    site = world.sites["site-a"]
    world.step("site-a")
    world.train("site-a")
    update = spool_file(site, "update.json").parent
    exchanged = update if street == "update" else update.parent
    exchanged.rename(site.folder / "elsewhere")
    exchanged.symlink_to(site.folder / "elsewhere")
    world.step("site-a")
    site.boot()
    assert world.refused == []
    if street == "update":
        assert world.seats()["site-a"] is SeatState.DECLINED
    else:  # nothing was delivered, for all the agent knows
        assert world.seats()["site-a"] is SeatState.OFFERED
        assert "to_agent is no folder" in site.rounds.situation().refusal


@pytest.mark.timeout(HANGS_AFTER_S)
def test_a_delta_that_changes_while_it_is_read_is_taken_whole_or_refused(make_world: Callable[..., World]) -> None:
    world = make_world(sites=4, phase="upload")
    site = world.sites["site-a"]
    update = site.rounds._files.spool.update(RunId(world.run_id), 1)
    assert update is not None
    path, done = spool_file(site, "delta.f32"), threading.Event()
    whole, taken, refused = path.read_bytes(), 0, 0

    def change() -> None:
        while not done.is_set():
            path.write_bytes(b"")  # a mapped file would now end the process by SIGBUS
            path.write_bytes(whole)
            path.write_bytes(whole[:-4] + bytes(4))
            path.write_bytes(whole + whole)
            path.write_bytes(whole)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        while not (taken and refused):
            try:
                delta = site.rounds._files.spool.delta(update, len(whole) // 4)
                assert delta.tobytes() == whole
                taken += 1
            except SpoolRefused:
                refused += 1
    finally:
        done.set()
        changing.join()
