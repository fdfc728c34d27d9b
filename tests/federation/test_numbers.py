"""Numbers that the aggregator chooses: none makes a site count to it, or write what it cannot read back."""

from collections.abc import Callable

import pytest
from federation.v1 import rounds_pb2
from google.protobuf.message import Message

from aggregator.states import RoundState
from site_client.errors import StepRefused
from tests.federation.invariants import check
from tests.federation.world import World

COUNTING_TAKES_S = 60


@pytest.mark.timeout(COUNTING_TAKES_S)
@pytest.mark.parametrize("attempt", [2**31, 2**32 - 1])
def test_an_attempt_of_an_absurd_number_costs_the_site_that_round_at_most(
    make_world: Callable[..., World], attempt: int
) -> None:
    world = make_world(sites=4, rounds=2, phase="keys")
    world.lied_down = True

    def lie(site: str, call: str, reply: Message, request: Message) -> Message:
        if site == "site-a" and isinstance(reply, rounds_pb2.PollReply) and reply.HasField("keys"):
            reply.keys.round.attempt = attempt
        return reply

    world.wire.lies_down.append(lie)
    world.step("site-a")
    if attempt > 2**31:
        ((_, refusal),) = world.refused
        assert isinstance(refusal, StepRefused)
    site = world.sites["site-a"]
    site.boot()  # reads the journal
    world.wire.lies_down.clear()
    for _ in range(12):
        if world.rounds()[0].state is RoundState.PUBLISHED:
            break
        world.everybody()
        world.clock.advance(31)
    world.step("site-a")
    assert world.rounds()[0].members in (3, 4)
    current = site.rounds.journal.current
    assert current is None or current.number == 2
    check(world)
