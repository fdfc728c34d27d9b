"""The aggregator's time in its answers changes nothing in a round, whatever it is."""

from collections.abc import Callable

import pytest
from federation.v1 import rounds_pb2
from google.protobuf.message import Message

from aggregator.states import RunState
from tests.federation.invariants import check
from tests.federation.world import World


def test_every_answer_to_a_poll_has_the_aggregator_s_time(make_world: Callable[..., World]) -> None:
    world, times = make_world(sites=3, phase="upload"), []

    def note(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply):
            times.append(reply.aggregator_time_ms == round(1000 * world.clock.now.timestamp()))
        return reply

    world.wire.lies_down.append(note)
    for _ in range(6):
        world.everybody()
        world.clock.advance(31)
    assert len(times) >= 18
    assert all(times)


@pytest.mark.parametrize("time_ms", [0, 1, 2**63, 2**64 - 1])
def test_rounds_are_the_same_under_any_time_of_the_aggregator(make_world: Callable[..., World], time_ms: int) -> None:
    world = make_world(sites=3, rounds=1)

    def lie(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply):
            reply.aggregator_time_ms = time_ms
        return reply

    world.wire.lies_down.append(lie)
    for _ in range(40):
        if world.run.state is RunState.COMPLETED:
            break
        world.everybody()
        world.clock.advance(31)
    assert world.run.state is RunState.COMPLETED
    assert world.refused == []
    check(world)
