"""What docs/OPERATIONS.md says of a backup: taken while the aggregator works, put back after its machine is lost."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator.states import RoundState, RunState
from tests.federation.nursery import PHASE_S, PHASES, TRAINING_S
from tests.federation.world import World


def back_up(state: Path, target: Path) -> None:
    """The database first, by SQLite's own copy; then the files, which are written before the database names them."""
    target.mkdir()
    with sqlite3.connect(state / "hub.sqlite") as source, sqlite3.connect(target / "hub.sqlite") as copy:
        source.backup(copy)
    for each in state.iterdir():
        if each.is_dir():
            shutil.copytree(each, target / each.name)
        elif not each.name.startswith("hub.sqlite"):
            shutil.copy2(each, target / each.name)


def restore(world: World, backup: Path) -> None:
    """On a new machine."""
    world.aggregator.shut()
    shutil.rmtree(world.aggregator.folder)
    shutil.copytree(backup, world.aggregator.folder)
    world.aggregator.boot()


@pytest.mark.parametrize(
    "phase", [phase if phase == "confirm" else pytest.param(phase, marks=pytest.mark.slow) for phase in PHASES]
)
def test_an_aggregator_restored_from_any_phase_finishes_its_run_without_the_round_in_hand(
    make_world: Callable[..., World], tmp_path: Path, phase: str
) -> None:
    """No site's update of a round gets into a second sum, so nobody comes to that round again."""
    world = make_world(sites=3, rounds=2, phase=phase)
    back_up(world.aggregator.folder, tmp_path / "backup")
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
