"""What the tests of attacks have in common: a world that goes on, and what was held against whom."""

from collections.abc import Callable

from federation.v1 import secagg_pb2

from tests.federation.world import World

MakeWorld = Callable[..., World]


def run_on(world: World, until: Callable[[], bool], turns: int = 200) -> None:
    """Everybody steps, and time passes, until it is so."""
    for _ in range(turns):
        if until():
            return
        world.everybody()
        world.clock.advance(31)
    raise AssertionError(f"after {turns} turns the rounds are {[(row.state, row.reason) for row in world.rounds()]}")


def members_of(world: World, number: int) -> set[str]:
    """The sites whose uploads are in the sum of a round."""
    heard = (one.message for one in world.wire.heard)
    return {
        message.claim.site
        for message in heard
        if isinstance(message, secagg_pb2.UploadMessage) and message.round.round == number
    }


def revealed(world: World, number: int) -> set[str]:
    return {
        one.site
        for one in world.wire.heard
        if isinstance(one.message, secagg_pb2.RevealMessage) and one.message.round.round == number
    }
