"""A run goes back to an earlier model by the custodian's signature: every site sees it, and believes no other."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.errors import BadSignature
from federation.release import Release
from federation.rollback import RunRollback, sign_rollback
from federation.v1 import rounds_pb2
from federation.v1.plan_pb2 import SignedRollback

from aggregator.commands import listings
from aggregator.commands.run_story import tell
from aggregator.errors import WrongState
from aggregator.runs import export
from aggregator.runs.rollback import import_rollback, request_rollback
from aggregator.states import ModelStanding, RunState
from aggregator.store import backup as copies
from aggregator.store import round_rows
from site_client.agent.rounds.lineage import Lineage
from site_client.agent.rounds.model_files import ModelFiles
from site_client.agent.rounds.models import Models
from site_client.agent.rounds.released_keys import ReleasedKeys
from site_client.errors import StepRefused
from tests.custodian import CUSTODIAN
from tests.federation.learning import LearningWorld
from tests.federation.nursery import Kind, Nursery
from tests.federation.test_backup import restore
from tests.federation.world import World

Make = Callable[..., LearningWorld]
STRANGER = Ed25519PrivateKey.generate()


@pytest.fixture
def make_learning(nursery: Nursery) -> Iterator[Make]:
    """make_learning(rounds, release): four sites that learn under a plan with a gate."""
    made: list[LearningWorld] = []

    def make(rounds: int, release: Release | None = None) -> LearningWorld:
        world = LearningWorld.begin(nursery, Kind(4, rounds=rounds, gated=True, release=release))
        assert isinstance(world, LearningWorld)
        made.append(world)
        return world

    yield make
    for world in made:
        world.end()


def until(world: World, number: int, *, over: bool = False) -> None:
    """Everybody steps, and time passes, until a round begins or is over; deadlines of the absent pass."""
    for _ in range(80):
        is_over = world.round.state in round_rows.OVER
        if world.round.number > number or (world.round.number == number and (is_over or not over)):
            return
        world.everybody()
        world.clock.advance(300)
    raise AssertionError(f"round {world.round.number} is {world.round.state}: {world.refused}")


def signed_rollback(world: World, number: int, key: Ed25519PrivateKey = CUSTODIAN) -> SignedRollback:
    with world.aggregator.app.store.read() as session:
        rollback = request_rollback(session, world.run, export.choose(session, world.run, number))
    return sign_rollback(rollback, key)


def roll_back(world: World, signed: SignedRollback) -> None:
    import_rollback(world.aggregator.app, signed, CUSTODIAN.public_key(), "person:ada")


@pytest.mark.parametrize("release", [None, pytest.param(Release(), marks=pytest.mark.slow)], ids=["clear", "sealed"])
def test_a_run_goes_on_from_the_signed_model_and_a_site_that_was_away_follows(
    make_learning: Make, release: Release | None
) -> None:
    world = make_learning(5, release)
    until(world, 3)
    world.silent.add("site-d")  # it missed round 3, whose sum the others followed
    world.pause()
    until(world, 3, over=True)
    world.everybody()
    for state, key in (("another key", STRANGER), ("a round too early", CUSTODIAN)):
        signed = signed_rollback(world, 1, key)
        if state == "a round too early":
            earlier = replace(RunRollback.from_bytes(signed.rollback), after_round=2)
            signed = sign_rollback(earlier, CUSTODIAN)
        with pytest.raises((BadSignature, WrongState)):
            roll_back(world, signed)
    signed = signed_rollback(world, 1)
    roll_back(world, signed)
    world.silent.clear()
    world.resume()
    first = world.models()[1]
    assert (world.round.base_model, world.round.predecessor) == (first.digest, None)
    for name, site in world.sites.items():
        for _ in range(3):  # it closes the round before, and takes the offer
            world.step(name)
        assert site.rounds.model_files.newest == first.digest
        assert site.rounds.rolled_back == "after round 3 to the model of round 1, by the custodian's signature"
    with pytest.raises(WrongState):
        roll_back(world, signed)
    world.until(RunState.COMPLETED)
    world.everybody()
    with world.aggregator.app.store.read() as session:
        rows = {row["round"]: row for row in listings.list_models(session, world.run)}
        story = "\n".join(tell(session, world.run, world.clock.now, world.aggregator.app.settings.pacing).lines())
    assert [rows[number]["standing"] for number in range(6)] == ["accepted"] * 2 + ["rolled_back"] * 2 + [
        "accepted"
    ] * 2
    assert [rows[number]["trained_from"] for number in range(6)] == [None, 0, 1, 2, 1, 4]
    assert rows[3]["why"] == "after round 3 the run went back to the model of round 1"
    assert "rolled back by person:ada: rolled back by the custodian to the model of round 1" in story
    assert {site.rounds.model_files.newest for site in world.sites.values()} == {world.models()[-1].digest}
    assert not world.refused


@pytest.mark.slow
def test_a_newcomer_believes_a_rollback_and_takes_up_the_run_behind_it(make_learning: Make) -> None:
    """No sum of before the rollback leads it anywhere; it comes in once there is a new model."""
    world = make_learning(4)
    world.silent.add("site-d")
    until(world, 2)
    world.pause()
    until(world, 2, over=True)
    world.everybody()
    roll_back(world, signed_rollback(world, 1))
    world.silent.clear()
    world.resume()
    world.until(RunState.COMPLETED)
    world.everybody()
    assert not world.refused
    assert {site.rounds.model_files.newest for site in world.sites.values()} == {world.models()[-1].digest}
    members = [row.members for row in world.rounds()]
    assert members == [3, 3, 3, 4, 4], "in round 3 only the very members of round 2, then all"


def test_a_rollback_leads_on_after_a_backup_that_lost_a_model_which_sites_hold(
    make_learning: Make, tmp_path: Path
) -> None:
    world = make_learning(8)
    until(world, 2)
    copies.back_up(world.aggregator.app.settings, tmp_path / "backup")
    until(world, 3)
    for name in world.sites:
        world.step(name)
    restore(world, tmp_path / "backup")
    for _ in range(60):
        if world.run.state is RunState.PAUSED:
            break
        world.everybody()
        world.clock.advance(1900)
    assert any("shows two histories of a run" in str(error) for _, error in world.refused)
    roll_back(world, signed_rollback(world, 1))
    world.refused.clear()
    world.resume()
    number = world.round.number
    until(world, number, over=True)
    assert world.rounds()[number - 1].members == 4
    assert dict((model.round_number, model.standing) for model in world.models())[1] is ModelStanding.ACCEPTED
    assert not world.refused


def test_a_site_follows_no_rollback_of_another_key_or_run_or_one_that_was_shown_before(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    plan = replace(make_world(sites=3).plan, rounds=20)
    # Without a release level no key is ever asked for.
    models, lineage = Models(tmp_path, ModelFiles(tmp_path, cast(ReleasedKeys, None))), Lineage(tmp_path)
    newest, earlier = bytes([9]) * 32, bytes([3]) * 32
    lineage.record(plan, 9, newest)

    def offer(
        number: int = 1,
        after: int = 9,
        model: bytes = earlier,
        key: Ed25519PrivateKey = CUSTODIAN,
        of_plan: bytes = plan.digest,
    ) -> None:
        rollback = RunRollback(of_plan, number, after, model, model_round=3)
        step = rounds_pb2.TrainStep(rollback=sign_rollback(rollback, key))
        step.round.round = 10
        models.follow_rollback(plan, step, CUSTODIAN.public_key())

    def reached() -> bytes:
        found = lineage.newest(plan)
        assert found is not None
        return found.model_digest

    with pytest.raises(BadSignature):
        offer(key=STRANGER)
    with pytest.raises(StepRefused, match="of another run"):
        offer(of_plan=bytes(32))
    with pytest.raises(StepRefused, match="is not over"):
        offer(after=10)
    offer(after=8)  # put off until this site had followed round 9
    assert reached() == newest
    offer()
    assert reached() == earlier
    offer(number=2, model=newest)
    offer()
    offer(number=2)
    assert reached() == newest, "an old one, shown again, changes nothing"


@pytest.mark.parametrize("torn", ["lineage", "model_files", "run_rollbacks"])
def test_a_site_that_dies_while_it_follows_a_rollback_follows_it_again(
    make_world: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    plan = replace(make_world(sites=3).plan, rounds=20)
    models, lineage = Models(tmp_path, ModelFiles(tmp_path, cast(ReleasedKeys, None))), Lineage(tmp_path)
    earlier = bytes([3]) * 32
    lineage.record(plan, 9, bytes([9]) * 32)
    step = rounds_pb2.TrainStep(rollback=sign_rollback(RunRollback(plan.digest, 1, 9, earlier, 3), CUSTODIAN))
    step.round.round = 10

    def dies(path: Path, data: bytes) -> None:
        raise OSError(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(f"site_client.agent.rounds.{torn}.replace_file", dies)
        with pytest.raises(OSError, match="json"):
            models.follow_rollback(plan, step, CUSTODIAN.public_key())
    models.follow_rollback(plan, step, CUSTODIAN.public_key())
    newest, followed = lineage.newest(plan), models.rollbacks.newest(plan.run_id)
    assert newest is not None
    assert followed is not None
    assert (newest.model_digest, newest.round, followed.number) == (earlier, 9, 1)
