"""The clock of one host is set by an hour or a day, in each phase: no round notices."""

from collections.abc import Callable

import pytest
from sqlalchemy import select

from aggregator.states import RoundState, RunState
from aggregator.store.tables import Audit
from tests.federation.invariants import check
from tests.federation.nursery import PHASE_S, PHASES
from tests.federation.places import Clock
from tests.federation.world import World

HOUR_S, DAY_S = 3600, 86_400


class HostClock(Clock):
    """`monotonic` goes on when `now` is set."""

    def __init__(self, world: World) -> None:
        super().__init__(world.clock.now)
        self.steps_s = 0.0

    def set_by(self, seconds: float) -> None:
        self.advance(seconds)
        self.steps_s += seconds

    def seconds(self) -> float:
        return super().seconds() - self.steps_s


def with_own_clock(world: World, host: str) -> HostClock:
    machine = world.aggregator if host == "aggregator" else world.sites[host]
    machine.clock = clock = HostClock(world)
    machine.boot()
    return clock


@pytest.mark.parametrize(
    "step_s", [-HOUR_S, HOUR_S, *(pytest.param(step_s, marks=pytest.mark.slow) for step_s in (-DAY_S, DAY_S))]
)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("host", ["aggregator", pytest.param("site-b", marks=pytest.mark.slow)])
def test_a_clock_that_is_set_in_any_phase_costs_no_round_and_no_member(
    make_world: Callable[..., World], host: str, phase: str, step_s: int
) -> None:
    world = make_world(sites=3, phase=phase)
    clock = with_own_clock(world, host)
    world.drive()
    world.step("site-a")
    clock.set_by(step_s)
    world.drive()  # before the others have answered
    while world.run.state is RunState.RUNNING:
        world.everybody()
        for other in (world.clock, clock):
            other.advance(5)
    assert [(row.state, row.members, row.attempt) for row in world.rounds()] == [(RoundState.PUBLISHED, 3, 1)] * 2
    check(world)


def test_a_phase_ends_when_its_time_is_over_by_the_monotonic_clock_after_a_step_back(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=4, phase="upload")
    clock = with_own_clock(world, "aggregator")
    world.silent.add("site-d")
    world.everybody()
    clock.set_by(-HOUR_S)
    world.drive()
    assert world.rounds()[0].state is RoundState.UPLOAD
    for other in (world.clock, clock):
        other.advance(PHASE_S + 1)
    world.drive()
    assert [row.state for row in world.rounds()] == [RoundState.CONFIRM]


@pytest.mark.parametrize("step_s", [-4, 4])
def test_small_steps_add_up_so_that_no_phase_ends_early_or_never(make_world: Callable[..., World], step_s: int) -> None:
    world = make_world(sites=4, phase="upload")
    clock = with_own_clock(world, "aggregator")
    world.silent.add("site-d")
    world.everybody()
    for second in range(0, PHASE_S - 10, 5):
        clock.set_by(step_s)
        for other in (world.clock, clock):
            other.advance(5)
        world.drive()
        assert world.rounds()[0].state is RoundState.UPLOAD, second
    for _ in range(4):
        clock.set_by(step_s)
        for other in (world.clock, clock):
            other.advance(5)
        world.drive()
    assert [row.state for row in world.rounds()] == [RoundState.CONFIRM]


def test_the_audit_says_that_the_clock_was_set(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    clock = with_own_clock(world, "aggregator")
    world.drive()
    clock.set_by(HOUR_S)
    world.drive()
    with world.aggregator.app.store.read() as session:
        (row,) = session.scalars(select(Audit).where(Audit.after == "times moved"))
    assert row.why == "the host's clock was set by 3600 s; deadlines move with it"


def test_a_silent_site_is_given_up_after_its_time_although_the_clock_went_back(
    make_world: Callable[..., World],
) -> None:
    grace_s = 600
    world = make_world(sites=4, grace_s=grace_s)
    clock = with_own_clock(world, "aggregator")
    for name in world.sites:
        world.step(name)
    world.silent.add("site-d")
    clock.set_by(-HOUR_S)
    for _ in range(3):
        for other in (world.clock, clock):
            other.advance(grace_s / 2)
        world.everybody()
    assert world.rounds()[0].state is not RoundState.TRAINING
