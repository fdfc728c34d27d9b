"""A model or sum that was damaged is fetched again; only one whose signatures do not fit is a lie."""

from collections.abc import Callable

import pytest
from federation.v1 import blobs_pb2, rounds_pb2, secagg_pb2
from federation.vocabulary import StateReason
from google.protobuf.message import Message

from aggregator.states import RunState
from tests.federation.invariants import check
from tests.federation.lies import Lies, flipped
from tests.federation.world import World

NAME = "site-a"


def to_the_end(world: World) -> None:
    for _ in range(60):
        if world.run.state is RunState.COMPLETED:
            return
        world.everybody()
        world.clock.advance(31)
    raise AssertionError(f"the run is {world.run.state}")


def rounds_of(world: World) -> set[int]:
    """The rounds in which the site has revealed."""
    return {
        said.message.round.round
        for said in world.wire.heard
        if said.site == NAME and isinstance(said.message, secagg_pb2.RevealMessage)
    }


def reasons(world: World) -> set[int]:
    polls = [said.message for said in world.wire.heard if said.site == NAME]
    return {reason for poll in polls if isinstance(poll, rounds_pb2.PollRequest) for reason in poll.reasons}


@pytest.mark.parametrize("turn", [1, 3, 5, 7, 9, 11])
def test_one_flipped_bit_in_a_stored_model_costs_at_most_a_round_and_never_the_run(
    make_world: Callable[..., World], turn: int
) -> None:
    world = make_world(sites=4, rounds=3)
    site = world.sites[NAME]
    for _ in range(turn):
        world.everybody()
    for path in (site.agent_folder / "models").glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    site.boot()
    to_the_end(world)
    assert len(rounds_of(world) & {1, 2, 3}) >= 2
    assert not site.rounds.plans.distrusts_any()
    assert StateReason.MODEL_MISMATCH.number not in reasons(world)
    check(world)


def test_a_model_found_damaged_is_reported_to_the_hospital_and_to_the_coordinator(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=4, rounds=3, phase="reveal")
    site = world.sites[NAME]
    (path,) = (site.agent_folder / "models").glob("*.safetensors")
    path.write_bytes(flipped(path.read_bytes()))
    site.boot()
    while not site.rounds.model_files.damage:
        world.everybody()
    assert "is damaged on this machine's disk; it is fetched again" in site.rounds.situation().refusal
    assert path.with_name(f"{path.name}.damaged").exists()
    to_the_end(world)
    assert StateReason.MODEL_DAMAGED.number in reasons(world)
    assert site.rounds.model_files.damage == ""
    assert rounds_of(world) >= {2, 3}
    check(world)


def test_a_bit_that_flips_on_the_way_is_fetched_again(make_world: Callable[..., World]) -> None:
    world = make_world(sites=4, rounds=2)
    flips = [0]

    def flip(site: str, call: str, reply: Message, request: Message) -> Message:
        if site == NAME and isinstance(reply, blobs_pb2.BlobChunk) and flips[0] < 5:
            flips[0] += 1
            reply.data = flipped(reply.data)
        return reply

    world.wire.lies_down.append(flip)
    to_the_end(world)
    assert flips == [5]
    assert rounds_of(world) >= {1, 2}
    assert not world.sites[NAME].rounds.plans.distrusts_any()
    assert StateReason.MODEL_DAMAGED.number in reasons(world)
    check(world)


def test_the_way_back_from_a_lie_is_in_the_status_and_works(make_world: Callable[..., World]) -> None:
    world = make_world(sites=4, rounds=3, phase="reveal")
    Lies(world).tell_down(NAME, "close", 0)
    for _ in range(4):
        world.everybody()
    situation = world.sites[NAME].rounds.situation()
    assert situation.reasons == (StateReason.MODEL_MISMATCH,)
    command, _, path = situation.refusal.rpartition("`rm ")
    assert "ask the coordinator" in command
    (file,) = (world.sites[NAME].agent_folder / "plans").glob("run-*.mismatch")
    assert path == f"{file}`"
    file.unlink()
    to_the_end(world)
    assert rounds_of(world) >= {3}
    check(world)
