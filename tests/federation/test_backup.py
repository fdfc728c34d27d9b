"""What docs/OPERATIONS.md says of a backup: taken while the aggregator works, put back after its machine is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator.states import RoundState, RunState
from aggregator.store import backup as copies
from tests.federation.nursery import PHASE_S, PHASES, TRAINING_S
from tests.federation.world import World


def restore(world: World, backup: Path) -> None:
    """On a new machine."""
    settings = world.aggregator.app.settings
    world.aggregator.shut()
    shutil.rmtree(world.aggregator.folder)
    copies.restore(settings, backup)
    world.aggregator.boot()


@pytest.mark.parametrize(
    "phase", [phase if phase == "confirm" else pytest.param(phase, marks=pytest.mark.slow) for phase in PHASES]
)
def test_an_aggregator_restored_from_any_phase_finishes_its_run_without_the_round_in_hand(
    make_world: Callable[..., World], tmp_path: Path, phase: str
) -> None:
    """No site's update of a round gets into a second sum, so nobody comes to that round again."""
    world = make_world(sites=3, rounds=2, phase=phase)
    copies.back_up(world.aggregator.app.settings, tmp_path / "backup")
    while world.round.number == 1:
        world.everybody()
    world.everybody()  # the sites have taken the first round's model
    restore(world, tmp_path / "backup")
    assert world.round.number == 1
    for _ in range(120):  # a reveal is waited for as long as a training
        if world.run.state is not RunState.RUNNING:
            break
        world.everybody()
        world.clock.advance(PHASE_S + 1 if world.round.state is not RoundState.TRAINING else TRAINING_S / 8)
    assert world.run.state is RunState.COMPLETED
    ended = [(row.number, row.state, row.members) for row in world.rounds()]
    assert ended == [
        (1, RoundState.ABANDONED, None),
        (2, RoundState.PUBLISHED, 3),
        (3, RoundState.PUBLISHED, 3),
    ]
