"""Attacks by an aggregator: a difference of two sums, a second evaluation, rounds and models of its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federation.encoding import size_class
from federation.limits import COHORT_MAX
from federation.secagg.transcript import confirm_statement
from federation.v1 import blobs_pb2, rounds_pb2, secagg_pb2
from google.protobuf.message import Message

from aggregator.rounds import aggregation, decisions, regrouping, uploads
from aggregator.runs import lifecycle
from aggregator.runs.plans import plan_of
from aggregator.states import RoundState, RunState
from site_client.agent.rounds.journal import CurrentRound, RoundJournal
from site_client.agent.rounds.revealed_sums import KEPT, RevealedSums
from site_client.errors import StepRefused
from site_client.records import Job, RunId
from site_client.typed_json import Digest
from tests.federation import crooks
from tests.federation.attacks import MakeWorld, members_of, revealed, run_on
from tests.federation.invariants import check, contribution_of
from tests.federation.nursery import PARAMETERS, TRAINING_S
from tests.federation.places import an_update
from tests.federation.wire import Killed
from tests.federation.world import World


def test_an_aggregator_that_calls_a_good_sum_refused_is_found_out(make_world: MakeWorld) -> None:
    """It wants another sum on the same model. A site sees that the sum leads to a model, and leaves the run."""
    world = make_world(sites=3, rounds=2, phase="reveal")
    world.lied_down = True
    run_on(world, lambda: world.rounds()[0].state is RoundState.PUBLISHED)

    def refused(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "close":
            reply.close.outcome = rounds_pb2.CloseStep.REFUSED
            reply.close.published.model_digest = b""
        return reply

    world.wire.lies_down.append(refused)
    for name in world.sites:
        world.step(name)
    assert len(world.refused) == 3
    for _, refusal in world.refused:
        assert "of a refused sum" in str(refusal) or "was said to lead to no model" in str(refusal)


def _lose_answers(world: World) -> None:
    """All reveal, and the aggregator says that nothing arrived."""

    def lost(site: str, call: str, message: Message) -> Message:
        if isinstance(message, secagg_pb2.RevealMessage):
            del message.shares[:]
        return message

    world.wire.lies_up.append(lost)


def test_after_a_reveal_without_a_sum_no_site_works_on_that_model_again(make_world: MakeWorld) -> None:
    """The aggregator of the attack abandoned behind the reveal phase, and asked three of the four again."""
    world = make_world(sites=4, rounds=2, phase="reveal")
    world.lied_down = True
    _lose_answers(world)
    for name in world.sites:
        world.step(name)
    world.clock.advance(TRAINING_S + 61)
    world.drive()
    assert world.rounds()[0].state is RoundState.ABANDONED
    assert world.run.state is RunState.RUNNING  # by its rows nobody has revealed, as after a restore
    for _ in range(4):
        world.everybody()
    assert world.rounds()[1].base_model == world.rounds()[0].base_model
    refusing = {name for name, refusal in world.refused if isinstance(refusal, StepRefused)}
    assert refusing == set(world.sites)
    assert not revealed(world, 2)
    assert world.rounds()[1].state is RoundState.ABANDONED  # they declined: nobody waits for the deadline
    assert "declined" in str(world.rounds()[1].reason)


def test_a_second_sum_on_one_model_that_differs_by_one_member_is_not_confirmed(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aggregator spoils the first sum with a corrupt member's help, shows it, and leaves out one victim."""
    crooks.let_in(monkeypatch, crooks.Crooks({"site-e": crooks.NOISE}))
    monkeypatch.setattr(regrouping, "_is_admissible", lambda *_: True)
    world = make_world(sites=5, rounds=2)
    world.corrupt, world.lied_down = {"site-e"}, True
    run_on(world, lambda: len(world.rounds()) > 1)
    assert world.rounds()[0].state is RoundState.ABANDONED
    world.silent.add("site-a")
    run_on(world, lambda: bool(world.refused))
    honest = [refusal for name, refusal in world.refused if name != "site-e"]
    assert honest
    assert all("would differ by 1 known members" in str(refusal) for refusal in honest)
    assert not revealed(world, 2)


def test_a_second_sum_is_not_confirmed_where_a_hospital_has_another_name_in_it(tmp_path: Path) -> None:
    """`a` is called `b` by now. With `f` in the place of `e`, the difference would tell of two hospitals."""
    sums, base = RevealedSums(tmp_path), Digest(bytes(32))
    current = CurrentRound(RunId(bytes(16)), 1, Digest(bytes(32)), base, evaluation_only=False)
    sums.record(current, "acde")
    sums.settle(current)
    later = replace(current, number=2)
    sums.check_set(later, "bcdfg", 3, "bcdefg")
    with pytest.raises(StepRefused, match="would differ by 2 known members"):
        sums.check_set(later, "bcdf", 3, "bcdefg")


def test_a_model_whose_sum_is_no_longer_on_record_is_taken_up_by_nobody(tmp_path: Path) -> None:
    """An aggregator waits until a site has forgotten the sum, and wants another one that differs by one member."""
    sums, members = RevealedSums(tmp_path), ("a", "b", "c", "d")
    for number in range(1, KEPT + 3):
        base = Digest(number.to_bytes(32, "big"))
        sums.check_offer(base)
        current = CurrentRound(RunId(bytes(16)), number, Digest(bytes(32)), base, evaluation_only=False)
        sums.record(current, members)
        sums.settle(current, published=True)
    for number in (1, 2):
        with pytest.raises(StepRefused, match="long ago"):
            RevealedSums(tmp_path).check_offer(number.to_bytes(32, "big"))
    for number in range(3, KEPT + 3):
        base = Digest(number.to_bytes(32, "big"))
        sums.check_offer(base)
        current = CurrentRound(RunId(bytes(16)), KEPT + 3, Digest(bytes(32)), base, evaluation_only=False)
        with pytest.raises(StepRefused, match="only the very same members"):
            sums.check_set(current, members[1:], 3, members)


def test_the_record_of_sums_of_the_largest_cohorts_can_be_read(tmp_path: Path) -> None:
    sums, members = RevealedSums(tmp_path), [f"{number:032}" for number in range(COHORT_MAX)]
    for number in range(1, KEPT + 1):
        base = Digest(number.to_bytes(32, "big"))
        current = CurrentRound(RunId(bytes(16)), number, Digest(bytes(32)), base, evaluation_only=False)
        sums.record(current, members)
        sums.settle(current, exposed=members)
    RevealedSums(tmp_path).check_offer(bytes(32))


def test_each_site_away_in_turn_and_no_count_follows_but_its_size_class(make_world: MakeWorld) -> None:
    """Everybody is honest. Four sums over three of four sites each determine what each site put in: classes."""
    world = make_world(sites=4, rounds=6)
    sums = []
    for away in world.sites:
        number = len(world.rounds())
        world.silent = {away}
        for _ in range(3):
            world.everybody()
        world.clock.advance(TRAINING_S + 1)
        run_on(world, lambda number=number: world.rounds()[number - 1].state is RoundState.PUBLISHED)  # type: ignore[misc]
        world.everybody()  # they close the round, and sign its model for the one that was away
        assert members_of(world, number) == set(world.sites) - {away}
        sums.append(number)
    said = [put_in(world, number, site) for number in sums for site in members_of(world, number)]
    assert len(said) == 12
    for exact, left in said:
        assert left == [max(size_class(exact[0]), 1), *map(size_class, exact[1:])]
    assert any(exact != left for exact, left in said)
    check(world)  # the published sums are the sums of these words, and of nothing else


def put_in(world: World, number: int, site: str) -> tuple[list[int], list[int]]:
    """Studies, examples, and slices by label and truth: as the trainer counted them, and as they left."""
    row = world.rounds()[number - 1]
    job = Job(world.run_id, number, world.plan.evaluates_only(number), row.base_model, world.plan.digest)  # type: ignore[arg-type]
    update, _ = an_update(job, world.seed_of(site), PARAMETERS)
    header = contribution_of(world, row, site).header
    exact = [min(update.studies, world.plan.encoding.weight_cap), update.example_count]
    exact += [sum(side) for label in update.histograms for side in label]
    return exact, [header.studies, header.example_count, *header.histograms.sum(axis=2).ravel().tolist()]


def test_a_round_said_to_lead_to_its_own_base_model_is_signed_by_nobody(
    make_world: MakeWorld,
) -> None:
    """There is no sum: all answers were lost. Every site holds the model that it is said to lead to."""
    world = make_world(sites=4, rounds=3, phase="reveal")
    world.lied_down = True
    _lose_answers(world)
    for name in world.sites:
        world.step(name)
    base = world.round.base_model

    def lie(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply):
            reply.Clear()
            reply.close.round.CopyFrom(blobs_pb2.RoundRef(run_id=world.run_id, round=1, attempt=1))
            reply.close.outcome = rounds_pb2.CloseStep.PUBLISHED
            reply.close.uploaded.extend(sorted(world.sites))
            reply.close.published.round, reply.close.published.members = 1, 4
            reply.close.published.model_digest = base
        return reply

    world.wire.lies_down.append(lie)
    before = len(world.wire.heard)
    for name in world.sites:
        world.step(name)
    assert not any(isinstance(one.message, rounds_pb2.ModelSignature) for one in world.wire.heard[before:])
    assert {name for name, refusal in world.refused if isinstance(refusal, StepRefused)} == set(world.sites)


@pytest.mark.parametrize("shown", ["nothing", "another size", "no sum"])
def test_an_evaluation_without_its_sum_leaves_the_model_barred(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    """All revealed. An aggregator that keeps the sum to itself asks for another one on that model in vain."""
    world = make_world(sites=3, rounds=1)
    run_on(world, lambda: world.round.number == 2 and world.round.state is RoundState.REVEAL)
    world.lied_down = True
    for name in world.sites:
        world.step(name)
    base = world.round.base_model
    world.drive()
    assert world.round.state is RoundState.PUBLISHED

    def lie(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "close":
            if shown == "nothing":
                reply.close.published.ClearField("sum")
            elif shown == "another size":
                reply.close.published.sum.size_bytes -= 8
            else:  # a blob of that size that holds more than so many members can have counted
                size = reply.close.published.sum.size_bytes
                blob = world.aggregator.app.blobs.add(b"\xff" * size)
                monkeypatch.setattr(uploads, "readable", lambda app, site, digest: app_reads(site, digest, blob.digest))
                reply.close.published.sum.digest = blob.digest
        return reply

    readable = uploads.readable

    def app_reads(site: str, digest: bytes, junk: bytes) -> Any:
        app = world.aggregator.app
        if digest != junk:
            return readable(app, site, digest)
        true, seat = readable(app, site, world.round.sum_blob or b"")
        true.close()
        return app.blobs.open(junk), seat

    world.wire.lies_down.append(lie)
    for name in world.sites:
        world.step(name)
    assert {name for name, _ in world.refused} == set(world.sites)
    for site in world.sites.values():
        with pytest.raises(StepRefused, match="takes part in no other round on that model"):
            RevealedSums(site.agent_folder / "rounds").check_offer(base)
    world.wire.lies_down.remove(lie)
    for name in world.sites:
        world.step(name)
    for site in world.sites.values():
        RevealedSums(site.agent_folder / "rounds").check_offer(base)


def test_a_run_is_evaluated_once_so_that_no_further_sums_isolate_one_hospital(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aggregator goes on to evaluate after the evaluation: pairwise its sums would differ by three hospitals."""
    cohorts: dict[int, tuple[str, ...]] = {number: ("site-a", "site-b", "site-c") for number in (1, 2)}
    cohorts[3] = tuple(f"site-{letter}" for letter in "defg")
    cohorts[4] = tuple(f"site-{letter}" for letter in "abcdef")

    def one_more(session: Any, run: Any, cause: Any) -> None:
        lifecycle._begin_next(session, run, plan_of(run), cause)

    def chosen(ranked: Sequence[str], *_: object) -> tuple[str, ...] | None:
        cohort = cohorts.get(len(world.rounds()), ())
        return cohort if cohort and set(cohort) <= set(ranked) else None

    monkeypatch.setattr(aggregation, "continue_run", one_more)
    monkeypatch.setattr(decisions, "choose_cohort", chosen)
    world = make_world(sites=7, rounds=1)
    world.lied_down = True
    run_on(world, lambda: len(world.rounds()) == 4 and world.round.state is RoundState.CONFIRM)
    assert [row.state for row in world.rounds()[:3]] == [RoundState.PUBLISHED] * 3
    assert world.round.base_model == world.rounds()[1].base_model
    for _ in range(2):
        world.everybody()
    refusing = {name for name, refusal in world.refused if "no other evaluation" in str(refusal)}
    assert refusing == set(cohorts[4])
    assert not revealed(world, 4)


def test_a_site_that_crashed_while_it_confirmed_still_knows_what_it_revealed_for(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the member's file and the journal, and then asked to reveal without another confirm step."""
    world = make_world(sites=3, rounds=2, phase="confirm")
    world.lied_down = True
    site = world.sites["site-a"]
    save = RoundJournal.save

    def killed(journal: RoundJournal, changed: CurrentRound) -> CurrentRound:
        if changed.confirmed and not changed.revealed_attempt and journal is site.rounds.journal:
            raise Killed
        return save(journal, changed)

    with monkeypatch.context() as patch:
        patch.setattr(RoundJournal, "save", killed)
        world.step("site-a")
    for name in ("site-b", "site-c"):
        world.step(name)
    confirmed = [one.message for one in world.wire.heard if isinstance(one.message, secagg_pb2.ConfirmMessage)]
    ((_, member),) = site.member_files()
    key = site.identity.keys.signing
    own = key.sign(confirm_statement(member.uctx, list(member.uploaded)))

    def reveal(name: str, call: str, reply: Message, request: Message) -> Message:
        if name == "site-a" and isinstance(reply, rounds_pb2.PollReply):
            reply.Clear()
            step = rounds_pb2.RevealStep(round=confirmed[0].round, uploaded=sorted(world.sites))
            step.confirmations.add(site="site-a", signature=own)
            step.confirmations.extend(message.confirmation for message in confirmed)
            reply.reveal.CopyFrom(step)
        return reply

    world.wire.lies_down.append(reveal)
    world.step("site-a")
    assert revealed(world, 1) == {"site-a"}
    sums = RevealedSums(site.agent_folder / "rounds")
    current = site.rounds.journal.current
    assert current is not None
    with pytest.raises(StepRefused, match="would differ by"):
        sums.check_set(current, ["site-a", "site-b"], 3, list(world.sites))


def test_a_round_number_that_no_journal_could_read_again_begins_nothing(make_world: MakeWorld) -> None:
    world = make_world(sites=3)
    site = world.sites["site-a"]
    plan, base = world.plan.digest, world.plan.initial_model_digest

    def offer(name: str, call: str, reply: Message, request: Message) -> Message:
        if name == "site-a" and isinstance(reply, rounds_pb2.PollReply):
            reply.train.CopyFrom(rounds_pb2.TrainStep(plan_digest=plan, base_model_digest=base, evaluation_only=True))
            reply.train.round.run_id, reply.train.round.round = world.run_id, 2**32 - 1
        return reply

    world.wire.lies_down.append(offer)
    world.step("site-a")
    assert site.rounds.journal.current is None
    world.wire.lies_down.clear()
    site.shut()
    site.boot()
    run_on(world, lambda: world.rounds()[0].state is RoundState.PUBLISHED)
    check(world)
