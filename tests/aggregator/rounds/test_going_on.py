"""A round goes on with those who are ready, if they are enough: by `run close-now`, or by the plan's grace."""

from collections.abc import Callable

import pytest

from aggregator.errors import WrongState
from aggregator.runs import lifecycle
from aggregator.states import RoundState, SeatState
from aggregator.store import round_rows
from aggregator.store.people import audit_trail
from tests.federation.world import World

MakeWorld = Callable[..., World]


def make_ready(world: World, *names: str) -> None:
    for name in names:
        world.step(name)
        world.train(name)
        world.step(name)


def test_a_silent_hospital_no_longer_holds_the_others_up(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    make_ready(world, "site-a", "site-b", "site-c")
    world.drive()
    waited = world.round.state
    lifecycle.close_now(world.aggregator.app, world.run_id)
    world.drive()
    assert (waited, world.round.state) == (RoundState.TRAINING, RoundState.KEYS)
    with world.aggregator.app.store.read() as session:
        seats = round_rows.seat_states(session, world.round.id)
        closed = [row for row in audit_trail(session, None, 100) if row.after == "training closed"]
    assert seats["site-d"] is SeatState.LEFT_OUT
    assert [(row.actor, row.why) for row in closed] == [("operator", "training closed by the coordinator")]


def test_too_few_that_are_ready_are_told_and_the_round_waits_on(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    make_ready(world, "site-a")
    with pytest.raises(WrongState, match="expected 3 ready hospitals at least, got 1; wait for them, or abort the run"):
        lifecycle.close_now(world.aggregator.app, world.run_id)
    world.drive()
    assert world.round.state is RoundState.TRAINING


def test_a_round_that_is_being_masked_cannot_be_closed(make_world: MakeWorld) -> None:
    world = make_world(sites=3, phase="keys")
    with pytest.raises(WrongState, match="expected a round in training, got round 1 in keys; see `run status`"):
        lifecycle.close_now(world.aggregator.app, world.run_id)


def test_a_hospital_that_is_silent_for_the_plan_s_grace_is_not_waited_for(make_world: MakeWorld) -> None:
    world = make_world(sites=4, grace_s=600)
    make_ready(world, "site-a", "site-b", "site-c")
    states = []
    for seconds, speaks in ((599, False), (0, True), (599, False), (1, False)):
        world.clock.advance(seconds)
        if speaks:
            world.step("site-d")  # it trains, or waits because somebody works at the machine
        world.drive()
        states.append(world.round.state)
    assert states == [RoundState.TRAINING] * 3 + [RoundState.KEYS]


def test_below_the_minimum_a_silent_hospital_is_waited_for(make_world: MakeWorld) -> None:
    world = make_world(sites=4, grace_s=600)
    make_ready(world, "site-a", "site-b")
    world.clock.advance(1200)
    world.drive()
    assert world.round.state is RoundState.TRAINING
