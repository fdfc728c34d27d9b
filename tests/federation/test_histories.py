"""Histories drawn from seeds: whatever is lost, killed, replayed or lied about, the invariants hold.

A history that breaks one is made as short as it gets and printed with its seed: freeze it as a named story.
"""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from tests.federation.invariants import check
from tests.federation.nursery import Nursery
from tests.federation.operations import History, draw, play
from tests.federation.world import World

HISTORIES, HISTORIES_ALL = 60, 2000
BATCHES = 6
UNFORESEEN = ("call failed", "round step failed", "housekeeping failed")
TRIES_TO_SHORTEN = 40


@pytest.mark.parametrize("batch", range(BATCHES))
def test_drawn_histories_break_nothing(nursery: Nursery, batch: int) -> None:
    for seed in range(batch, HISTORIES, BATCHES):
        _expect_unbroken(nursery, draw(seed, length=5))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # fifty long histories; a busy machine takes ten times as long as an idle one
@pytest.mark.parametrize("batch", range(HISTORIES_ALL // 50))
def test_many_longer_histories_break_nothing(nursery: Nursery, batch: int) -> None:
    for seed in range(10_000 + 50 * batch, 10_050 + 50 * batch):
        _expect_unbroken(nursery, draw(seed, length=12))


def test_a_seed_draws_the_same_history_again() -> None:
    assert draw(7, length=20) == draw(7, length=20) != draw(8, length=20)


def _expect_unbroken(nursery: Nursery, history: History) -> None:
    broken = _broken_by(nursery, history)
    if broken is not None:
        shortest = _shortened(nursery, history)
        pytest.fail(
            f"{_broken_by(nursery, shortest) or broken}\n{shortest}\n(drawn as {len(history.operations)} operations)"
        )


def _broken_by(nursery: Nursery, history: History) -> str | None:
    world = World.begin(nursery, history.kind)
    try:
        with capture_logs() as logs:
            play(world, history)
        check(world)
        unforeseen = [one for one in logs if one["event"] in UNFORESEEN]
        assert not unforeseen, f"an error that nobody foresaw: {unforeseen}"
    except AssertionError as broken:
        return str(broken)
    finally:
        world.end()
    return None


def _shortened(nursery: Nursery, history: History) -> History:
    """Without the operations that it also breaks without, as far as TRIES_TO_SHORTEN goes."""
    at = len(history.operations)
    for _ in range(TRIES_TO_SHORTEN):
        at -= 1
        if at < 0:
            break
        shorter = replace(history, operations=history.operations[:at] + history.operations[at + 1 :])
        if _broken_by(nursery, shorter):
            history = shorter
    return history
