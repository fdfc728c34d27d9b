"""The last state of a run."""

from collections.abc import Callable

import pytest
from federation.v1 import rounds_pb2 as pb
from federation.v1.blobs_pb2 import RoundRef
from federation.vocabulary import DECLINE_REASONS, StateReason

from aggregator.errors import MessageRefused
from aggregator.rounds import submissions
from aggregator.runs.lifecycle import EVALUATIONS_MAX
from aggregator.states import RoundState, RunState
from aggregator.store import run_rows
from tests.federation.world import World


def test_a_run_whose_every_training_round_was_abandoned_is_aborted_and_says_why(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=5)
    for name in list(world.sites)[:3]:
        decline(world, name, StateReason.TOO_FEW_STUDIES)
    world.drive()
    assert world.round.state is RoundState.ABANDONED
    assert world.run.state is RunState.ABORTED
    assert "every round of the plan was abandoned" in (world.run.reason or "")
    with world.aggregator.app.store.read() as session:
        assert run_rows.newest_model(session, world.run_id).digest == world.plan.initial_model_digest


def test_an_abandoned_evaluation_is_repeated_and_given_up_with_a_reason_that_says_so(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=3)
    world.until(RoundState.KEYS)
    while world.round.number == 1:
        world.everybody()
    for number in range(2, 2 + EVALUATIONS_MAX):
        assert (world.round.number, world.round.state, world.run.state) == (number, RoundState.TRAINING, "running")
        assert world.plan.evaluates_only(number)
        decline(world, "site-a", StateReason.TOO_FEW_STUDIES, number)
        world.drive()
    assert (world.round.number, world.run.state) == (1 + EVALUATIONS_MAX, RunState.COMPLETED)
    assert "nothing evaluates the last model" in (world.run.reason or "")


def test_an_evaluation_that_succeeds_at_the_second_try_completes_the_run(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    while world.round.number == 1:
        world.everybody()
    decline(world, "site-a", StateReason.TOO_FEW_STUDIES, 2)
    world.until(RunState.COMPLETED)
    assert [row.state for row in world.rounds()] == ["published", "abandoned", "published"]
    assert world.run.reason == "every round of the plan is over"


@pytest.mark.parametrize("reason", StateReason)
def test_a_site_declines_with_a_reason_of_the_closed_list_only(
    make_world: Callable[..., World], reason: StateReason
) -> None:
    world = make_world(sites=3)
    if reason in DECLINE_REASONS:
        assert decline(world, "site-a", reason) == "accepted"
        assert world.seats()["site-a"] == "declined"
    else:
        with pytest.raises(MessageRefused, match="expected one of NO_LABELS, PLAN_REFUSED, "):
            decline(world, "site-a", reason)


def decline(world: World, name: str, reason: StateReason, number: int = 1) -> str:
    ref = RoundRef(run_id=world.run_id, round=number, attempt=1)
    return submissions.accept_decline(world.aggregator.app, name, pb.DeclineMessage(round=ref, reason=reason.number))
