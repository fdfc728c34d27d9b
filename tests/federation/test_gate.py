"""The gate in real rounds: a candidate that is worse than its predecessor is not built upon, and every site agrees."""

from collections.abc import Callable, Iterator

import pytest
from federation import encoding
from federation.chain import next_model
from federation.encoding import Layout
from federation.errors import ChainRefused
from federation.v1 import rounds_pb2
from google.protobuf.message import Message

from aggregator.commands import listings
from aggregator.commands.run_story import tell
from aggregator.dashboard.run_views import run_view
from aggregator.states import ModelStanding, RoundState, RunState
from tests.federation.learning import LearningWorld, let_poison
from tests.federation.nursery import Kind, Nursery

POISONER = "site-d"
Make = Callable[[int], LearningWorld]


@pytest.fixture
def make_learning(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """make_learning(rounds): four sites that learn under a plan with a gate."""
    made: list[LearningWorld] = []

    def make(rounds: int) -> LearningWorld:
        world = LearningWorld.begin(nursery, Kind(4, rounds=rounds, gated=True))
        assert isinstance(world, LearningWorld)
        let_poison(monkeypatch, world)
        made.append(world)
        return world

    yield make
    for world in made:
        world.end()


def standings(world: LearningWorld) -> list[tuple[int, ModelStanding | None]]:
    return [(model.round_number, model.standing) for model in world.models()]


def newest_at_sites(world: LearningWorld) -> set[bytes]:
    return {site.rounds.model_files.newest for site in world.sites.values()}


def until_round(world: LearningWorld, number: int) -> None:
    for _ in range(60):
        if world.round.number >= number or world.run.state is not RunState.RUNNING:
            return
        world.everybody()
    raise AssertionError(f"round {number} did not begin: {world.round.number} is {world.round.state}: {world.refused}")


def test_each_model_of_honest_sites_is_accepted_the_last_one_by_the_evaluation(make_learning: Make) -> None:
    world = make_learning(2)
    world.until(RunState.COMPLETED)
    assert standings(world) == [(number, ModelStanding.ACCEPTED) for number in range(3)]
    losses = [world.loss_of_model(model.digest) for model in world.models()]
    assert losses == sorted(losses, reverse=True)
    assert newest_at_sites(world) == {world.models()[-1].digest}


def test_a_poisoned_update_of_one_site_in_four_is_refused_and_not_built_upon(make_learning: Make) -> None:
    """The poisoner praises its own model as well."""
    world = make_learning(4)
    until_round(world, 2)
    accepted = world.round.base_model
    world.poisoners.add(POISONER)
    until_round(world, 3)
    poisoned = world.round.base_model
    assert world.loss_of_model(poisoned) > world.loss_of_model(accepted)
    world.poisoners.clear()
    world.liars.add(POISONER)
    until_round(world, 4)
    assert dict(standings(world))[2] is ModelStanding.REFUSED
    assert world.rounds()[2].next_model == accepted, "the round that refuses leads back"
    assert world.round.base_model == accepted
    assert world.round.predecessor is None, "a model that was accepted is no candidate again"
    world.until(RunState.COMPLETED)
    with world.aggregator.app.store.read() as session:
        view = run_view(world.aggregator.app, session, world.run)
        judged = {row.number: row.judgement.model_number for row in view.rounds}
        assert judged == {1: 0, 2: 1, 3: 2, 4: 1, 5: 4}, "each round judges the model that it began from"
        rows = {row["round"]: row for row in listings.list_models(session, world.run)}
        story = "\n".join(tell(session, world.run, world.clock.now, world.aggregator.app.settings.pacing).lines())
    assert (rows[2]["standing"], rows[4]["standing"]) == ("refused", "accepted")
    assert str(rows[2]["why"]).startswith("refused: worse than its predecessor by 0.0")
    assert "the model it began from was refused: worse" in story
    assert "what was trained from it is not used" in story
    # Round 3 trained from the poisoned model, in vain; round 4 went on from the accepted one.
    assert standings(world) == [
        (number, ModelStanding.REFUSED if number == 2 else ModelStanding.ACCEPTED) for number in (0, 1, 2, 4)
    ]
    assert newest_at_sites(world) == {world.models()[-1].digest}
    assert not world.refused


def test_two_refusals_in_a_row_pause_the_run_with_the_reason_in_words(make_learning: Make) -> None:
    world = make_learning(5)
    world.poisoners.add(POISONER)
    world.until(RunState.PAUSED)
    assert [standing for _, standing in standings(world)] == [
        ModelStanding.ACCEPTED,
        ModelStanding.REFUSED,
        ModelStanding.REFUSED,
    ]
    reason = world.run.reason or ""
    assert reason.startswith("two models in a row were refused; the last, of round 3, was refused: worse than its")
    assert world.round.state is RoundState.PUBLISHED


def test_a_poisoned_last_model_is_refused_by_the_evaluation_at_the_end(make_learning: Make) -> None:
    world = make_learning(1)
    accepted = world.round.base_model
    world.poisoners.add(POISONER)
    world.until(RunState.COMPLETED)
    world.everybody()
    assert standings(world) == [(0, ModelStanding.ACCEPTED), (1, ModelStanding.REFUSED)]
    assert world.round.next_model == accepted
    assert newest_at_sites(world) == {accepted}


def test_a_site_that_was_away_follows_the_sums_through_a_refusal(make_learning: Make) -> None:
    """The others go on without it after the poisoned round, and it comes back to the accepted model."""
    world = make_learning(4)
    until_round(world, 2)
    world.poisoners.add(POISONER)
    until_round(world, 3)
    world.poisoners.clear()
    for _ in range(4):  # it has followed the sum to the poisoned model, and is gone
        world.step("site-a")
    world.silent.add("site-a")
    while world.round.number == 3 and world.run.state is RunState.RUNNING:
        world.everybody()
        world.clock.advance(1800)
    assert dict(standings(world))[2] is ModelStanding.REFUSED
    world.silent.clear()
    world.until(RunState.COMPLETED)
    assert world.sites["site-a"].rounds.model_files.newest == world.models()[-1].digest
    assert standings(world)[-1] == (4, ModelStanding.ACCEPTED)


@pytest.mark.parametrize("lie", ["back", "back, with a chain", "another", "none"])
def test_an_aggregator_that_misstates_which_model_is_judged_gets_nothing(make_learning: Make, lie: str) -> None:
    """It goes back to the accepted model without a sum that refuses the newest, or names another predecessor."""
    world = make_learning(2)
    until_round(world, 2)
    newest, accepted = world.round.base_model, world.round.predecessor
    assert accepted is not None
    (initial,) = [model.blob for model in world.models() if model.digest == accepted]
    world.step("site-a")  # follows the sum of round 1, and closes it
    assert world.sites["site-a"].rounds.model_files.newest == newest

    def misstate(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply) and reply.HasField("train"):
            reply.train.predecessor_digest = bytes(32) if lie == "another" else b""
            if lie.startswith("back"):
                reply.train.base_model_digest = accepted
                reply.train.whole_model.digest = initial
                del reply.train.chain[:]
            if lie == "back, with a chain":  # which it cannot follow, without a model
                reply.train.chain.add(round=1, members=4, model_digest=accepted)
        return reply

    if lie == "back, with a chain":  # its list of models is lost; its memory of the run is another file
        (world.sites["site-a"].agent_folder / "models" / "history.json").unlink()
    world.wire.lies_down.append(misstate)
    before = len(world.refused)
    for _ in range(3):
        world.step("site-a")
    expected = "which no published sum refuses" if lie.startswith("back") else "is a candidate against another model"
    assert any(expected in str(error) for _, error in world.refused[before:]), world.refused
    assert not world.sites["site-a"].jobs()


def test_a_driver_that_is_killed_anywhere_in_a_refusal_leaves_verdict_and_next_round_together(
    make_learning: Make,
) -> None:
    world = make_learning(4)
    until_round(world, 2)
    accepted = world.round.base_model
    world.poisoners.add(POISONER)
    until_round(world, 3)
    world.until(RoundState.REVEAL)
    for name in world.sites:
        world.step(name)
    kills = 0
    while len(world.rounds()) == 3:
        world.drive(kill_in=kills)
        kills += 1
        refused = dict(standings(world)).get(2) is ModelStanding.REFUSED
        assert refused == (len(world.rounds()) == 4) == (world.rounds()[2].state is RoundState.PUBLISHED)
    assert kills > 3
    assert (world.round.base_model, world.round.predecessor) == (accepted, None)


def test_a_sum_that_refuses_its_base_is_no_sum_that_leads_to_no_model(make_learning: Make) -> None:
    """Its vector is too long besides. If it could be called a refused sum, the poisoned model would stay in force."""
    world = make_learning(4)
    until_round(world, 2)
    world.poisoners.add(POISONER)
    until_round(world, 3)
    world.excess = 1.9  # the others point the other way
    until_round(world, 4)
    refusing = world.rounds()[2]
    assert refusing.next_model == world.rounds()[1].base_model
    assert refusing.sum_blob is not None
    with world.aggregator.app.blobs.open(refusing.sum_blob) as blob:
        published = encoding.unpack_sum(Layout.of_round(world.plan, 3), blob.read(), 4)
    (poisoned,) = [model.blob for model in world.models() if model.digest == refusing.base_model]
    with pytest.raises(ChainRefused):
        next_model(world.plan, world.model(poisoned), published)

    def call_it_refused(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply) and reply.HasField("close"):
            reply.close.outcome = rounds_pb2.CloseStep.REFUSED
            reply.close.published.model_digest = b""
        return reply

    world.wire.lies_down.append(call_it_refused)
    for name in world.sites:
        world.step(name)
    assert len(world.refused) == 4
    assert all("was said to lead to no model, and leads to one" in str(error) for _, error in world.refused)


def test_a_newcomer_is_told_no_other_predecessor_than_the_model_s_certificate_names(make_learning: Make) -> None:
    world = make_learning(3)
    world.silent.add("site-d")
    for _ in range(60):
        if world.round.number == 3:
            break
        world.everybody()
        world.clock.advance(600)
    for name in ("site-a", "site-b", "site-c"):
        world.step(name)  # they sign the model of round 2
    lies = [bytes([1]) * 32]

    def misstate(site: str, call: str, reply: Message, request: Message) -> Message:
        if lies and site == "site-d" and isinstance(reply, rounds_pb2.PollReply) and reply.HasField("train"):
            assert reply.train.HasField("certificate")
            reply.train.predecessor_digest = lies.pop()
        return reply

    world.wire.lies_down.append(misstate)
    world.step("site-d")
    assert [(site, "by its certificate" in str(error)) for site, error in world.refused] == [("site-d", True)]
    assert not world.sites["site-d"].jobs()


def test_a_candidate_that_loses_the_auc_of_a_label_is_refused_though_its_losses_are_the_same(
    make_learning: Make,
) -> None:
    world = make_learning(3)
    until_round(world, 2)
    accepted = world.round.base_model
    world.auc_lost = 0.04
    until_round(world, 3)
    assert dict(standings(world))[1] is ModelStanding.REFUSED
    assert world.round.base_model == world.models()[0].digest != accepted
    with world.aggregator.app.store.read() as session:
        why = {row["round"]: str(row["why"]) for row in listings.list_models(session, world.run)}
    expected = "it loses 0.040 of the AUC of any over 4 sites, at least 0.028, where the plan allows 0.01"
    assert why[1] == f"refused: {expected}"
    world.auc_lost = 0.0
    world.until(RunState.COMPLETED)
    assert newest_at_sites(world) == {world.models()[-1].digest}
    assert not world.refused
