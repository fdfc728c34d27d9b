"""The last state of a run."""

from collections.abc import Callable

import pytest
from federation.v1 import rounds_pb2 as pb
from federation.v1.blobs_pb2 import RoundRef
from federation.vocabulary import DECLINE_REASONS, StateReason

from aggregator.errors import MessageRefused
from aggregator.rounds import submissions
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


def decline(world: World, name: str, reason: StateReason) -> str:
    ref = RoundRef(run_id=world.run_id, round=1, attempt=1)
    return submissions.accept_decline(world.aggregator.app, name, pb.DeclineMessage(round=ref, reason=reason.number))
