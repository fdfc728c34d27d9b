"""Histories with a name: what an honest federation comes to."""

from collections.abc import Callable

import pytest
from federation.manifest import load_model
from federation.plan import ServerKind

from aggregator.states import RunState
from tests.federation.invariants import check
from tests.federation.world import World


@pytest.mark.parametrize(
    ("bits", "server"),
    [
        (6, ServerKind.FEDADAM),
        pytest.param(4, ServerKind.FEDAVG, marks=pytest.mark.slow),
        pytest.param(8, ServerKind.FEDYOGI, marks=pytest.mark.slow),
    ],
)
def test_with_and_without_masks_the_result_agrees_round_by_round(
    make_world: Callable[..., World], bits: int, server: ServerKind
) -> None:
    """`check` computes every sum from the members' plain encodings, and every model from those sums."""
    world = make_world(sites=3, rounds=2, bits=bits, server=server)
    while world.run.state is RunState.RUNNING:
        world.everybody()
        check(world)
    assert world.run.state is RunState.COMPLETED
    assert [(row.number, row.members) for row in world.rounds()] == [(1, 3), (2, 3), (3, 3)]
    world.everybody()
    assert {site.rounds.model_files.newest for site in world.sites.values()} == {world.round.next_model}
    assert world.refused == []
    assert world.wire.refusals == []


def test_a_site_that_has_said_ready_comes_back_at_once(make_world: Callable[..., World]) -> None:
    """It may be the one that the others wait for. Before, it comes back when its trainer may be done."""
    world = make_world(sites=3, rounds=1)
    name = next(iter(world.sites))
    site = world.sites[name]
    world.drive()
    before = site.step()
    world.train(name)
    ready = site.step()
    assert (before.asked, ready.asked) == ("train", "train")
    assert before.wait_s > ready.wait_s == site.settings.agent.poll_min_s


def test_a_model_s_file_that_somebody_else_still_holds_is_never_written_over(make_world: Callable[..., World]) -> None:
    """An agent writes a new model over the file of the one it pushes out, but not while that has another name."""
    world = make_world(sites=3, rounds=4)
    models = next(iter(world.sites.values())).rounds.model_files
    held = models.path(world.plan, b"").parent / "held"
    held.mkdir()
    while world.run.state is RunState.RUNNING:
        world.everybody()
        newest = models.path(world.plan, models.newest)
        if models.newest and not (held / newest.name).exists():
            (held / newest.name).hardlink_to(newest)
    assert len(list(held.iterdir())) == 5
    for path in held.iterdir():
        assert load_model(path).digest.hex() == path.stem
    assert len(list(held.parent.glob("*.safetensors"))) == 2
