"""Every crash point of a round, at a site and at the aggregator: the round completes with everybody in it.

`./tests/run` walks every 97th point of each fault. `./tests/run --all` walks all points of a process that ends, and
every 5th of a disk that fails for a while. Each walk is a round and an evaluation of three sites, with the invariants
of every history at its end.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import get_args

import pytest

from aggregator.states import RoundState, RunState
from site_client.errors import SiteError, Unreachable
from tests.federation.crash_points import CrashPoints, Fault
from tests.federation.invariants import check
from tests.federation.nursery import Kind, Nursery
from tests.federation.wire import Killed
from tests.federation.world import World

VICTIMS = ("site-b", "aggregator")
TURNS_MAX = 60
EVERY: dict[Fault, int] = {"killed": 1, "power cut": 1, "full disk": 5, "broken disk": 5}  # with --all
FAILING_TURNS = 3  # of a disk, before a person mends it


def walk(world: World, victim: str, points: CrashPoints) -> None:
    """Play the run to its end. The victim boots as soon as it has ended, and its disk is mended after a few turns."""
    machine = world.aggregator if victim == "aggregator" else world.sites[victim]
    call = world.wire.call
    turns = count()

    def ended() -> None:
        machine.shut()
        points.cut()
        points.boot(machine.boot)

    def called(*arguments: object) -> object:
        try:
            return call(*arguments)  # type: ignore[arg-type]  # as they came
        except Killed:
            if victim != "aggregator":
                raise
            ended()
            raise Unreachable("the connection was cut") from None

    world.wire.call = called  # type: ignore[method-assign, assignment]  # of this World alone

    def act(step: Callable[[], object]) -> None:
        try:
            step()
        except Killed:
            ended()
        except (SiteError, OSError):  # the service says it and takes its next turn later
            pass

    failed_at: int | None = None
    with points.watching(machine.folder):
        while world.run.state is not RunState.COMPLETED:
            turn = next(turns)
            assert turn < TURNS_MAX, f"{world.run.state}, round in {world.round.state}: {world.refused[-3:]}"
            for name, site in world.sites.items():
                act(site.step)
                act(lambda name=name: world.train(name))  # type: ignore[misc]  # bound now
            act(world.aggregator.settle)
            if points.happened and failed_at is None:
                failed_at = turn
            if failed_at is not None:
                if turn == failed_at + FAILING_TURNS:
                    points.mend()
                # A driver leaves a round that failed alone for seconds, and one that died keeps its lease.
                aggregates = world.round.state is RoundState.AGGREGATING
                world.clock.advance(world.aggregator.app.settings.driver.lease_s + 1 if aggregates else 6)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize(
    ("fault", "every"),
    [
        *((fault, 97) for fault in get_args(Fault)),
        *(pytest.param(fault, every, marks=pytest.mark.slow) for fault, every in EVERY.items()),
    ],
)
def test_a_round_completes_whatever_point_its_victim_or_its_disk_ends_at(
    nursery: Nursery, victim: str, fault: Fault, every: int
) -> None:
    counted = CrashPoints(fault=None)
    with three_sites(nursery) as world:
        walk(world, victim, counted)
    assert len(counted.reached) > 200
    for at in range(0, len(counted.reached), every):
        points = CrashPoints(fault, at)
        with three_sites(nursery) as world:
            try:
                walk(world, victim, points)
                assert points.happened
                assert [row.state for row in world.rounds()] == [RoundState.PUBLISHED] * 2
                assert [row.members for row in world.rounds()] == [3] * 2
                assert max(row.attempt for row in world.rounds()) <= 2
                check(world)
            except BaseException as error:
                where = f"{at} of {len(counted.reached)}: {points.reached[at : at + 1]}"
                error.add_note(f"{victim}, {fault} at point {where}; refused: {world.refused[-3:]}")
                raise


@contextmanager
def three_sites(nursery: Nursery) -> Iterator[World]:
    world = World.begin(nursery, Kind(sites=3))
    yield world
    world.end()
