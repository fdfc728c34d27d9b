"""Whoever dies, wherever: the same bytes again, and nothing that was not on disk first."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from federation.secagg import Phase
from federation.secagg import state as member_state
from federation.v1 import secagg_pb2
from google.protobuf.message import Message

from aggregator.states import RoundState
from tests.federation.invariants import check
from tests.federation.nursery import PHASES
from tests.federation.wire import FAULTS, Fault
from tests.federation.world import World

CALLS = {
    "keys": "Rounds/SendKeys",
    "shares": "Rounds/SendShares",
    "upload": "Rounds/SendUpload",
    "confirm": "Rounds/SendConfirm",
    "reveal": "Rounds/SendReveal",
}
LAST_MESSAGE = {"keys": 1, "shares": 1, "upload": 3, "confirm": 1, "reveal": 1}  # poll, (offer, chunk,) message


@pytest.mark.parametrize(
    "fault",
    [
        fault if fault in ("request lost", "killed after") else pytest.param(fault, marks=pytest.mark.slow)
        for fault in FAULTS
    ],
)
@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_site_that_lost_its_answer_or_its_process_says_the_same_again(
    make_world: Callable[..., World], phase: str, fault: str
) -> None:
    world = make_world(sites=3, phase=phase)
    world.step("site-b", Fault(fault, LAST_MESSAGE[phase]))
    world.sites["site-b"].boot()
    for _ in range(7):
        if world.rounds()[0].state is RoundState.PUBLISHED:
            break
        world.everybody()
    assert (world.rounds()[0].members, world.rounds()[0].attempt) == (3, 1)
    said = [one.data for one in world.wire.heard if (one.site, one.call) == ("site-b", CALLS[phase])]
    assert len(said) == (2 if fault == "request lost" else 1)  # what was killed before was never heard
    assert len(set(said)) == 1
    check(world)


@pytest.mark.parametrize("phase", PHASES[1:])
def test_an_aggregator_that_is_restarted_in_any_phase_goes_on(make_world: Callable[..., World], phase: str) -> None:
    world = make_world(sites=3, phase=phase)
    world.step("site-a")
    world.aggregator.boot()
    while world.rounds()[0].state is not RoundState.PUBLISHED:
        world.everybody()
        world.aggregator.boot()
    assert (world.rounds()[0].members, world.rounds()[0].attempt) == (3, 1)
    check(world)


@pytest.mark.parametrize("kill_in", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 9))])
def test_a_driver_killed_after_the_last_share_is_followed_by_one_that_publishes(
    make_world: Callable[..., World], kill_in: int
) -> None:
    world = make_world(sites=3, phase="reveal")
    for name in world.sites:
        world.step(name)
    world.drive(kill_in)
    world.clock.advance(world.aggregator.app.settings.driver.lease_s + 1)
    world.drive()
    assert world.rounds()[0].state is RoundState.PUBLISHED
    check(world)


def test_the_one_answer_is_synced_to_disk_before_it_leaves(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(sites=3, phase="reveal")
    synced: set[tuple[int, bytes]] = set()  # inode and what it held when it was synced
    real = os.fsync

    def watched(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.add((os.fstat(handle).st_ino, path.read_bytes() if path.is_file() else b""))
        real(handle)

    seen = []

    def on_arrival(site: str, call: str, message: Message) -> Message:
        if isinstance(message, secagg_pb2.RevealMessage):
            ((file, member),) = world.sites[site].member_files()
            assert member.phase is Phase.REVEALED
            assert (file.stat().st_ino, file.read_bytes()) in synced
            assert member_state.from_bytes(file.read_bytes()).answer
            assert (file.parent.stat().st_ino, b"") in synced
            assert json.loads((file.parents[1] / "round.json").read_bytes().splitlines()[0])["revealed_attempt"] == 1
            seen.append(site)
        return message

    monkeypatch.setattr(os, "fsync", watched)
    world.wire.lies_up.append(on_arrival)
    for name in world.sites:
        world.step(name)
    assert seen == sorted(world.sites)


def test_a_site_that_lost_its_round_draws_no_second_keys_that_the_attempt_accepts(
    make_world: Callable[..., World],
) -> None:
    """The one loss that a restart cannot repair: its keys went out, and are gone. The others open their sum without."""
    world = make_world(sites=4, phase="keys")
    world.step("site-d")
    site = world.sites["site-d"]
    shutil.rmtree(site.agent_folder / "rounds")
    site.boot()
    for _ in range(10):
        world.everybody()
        world.clock.advance(31)
    assert (world.rounds()[0].state, world.rounds()[0].members) == (RoundState.PUBLISHED, 3)
    said = [one.round for one in world.wire.heard if (one.site, one.call) == ("site-d", "Rounds/SendKeys")]
    assert [(ref.round, ref.attempt) for ref in said if ref.round == 1] == [(1, 1)]
    check(world)
