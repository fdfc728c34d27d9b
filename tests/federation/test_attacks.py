"""Attacks that span rounds: members that spoil sums or deal nothing, an aggregator that wants a difference."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from federation.encoding import size_class
from federation.limits import COHORT_MAX
from federation.secagg import Member
from federation.secagg.transcript import confirm_statement
from federation.v1 import blobs_pb2, rounds_pb2, secagg_pb2
from google.protobuf.message import Message

from aggregator.rounds import aggregation, decisions, regrouping, uploads
from aggregator.runs import lifecycle
from aggregator.runs.plans import plan_of
from aggregator.states import FaultKind, RoundState, RunState
from aggregator.store import fault_rows, run_rows
from site_client.agent.rounds.closing import Closing
from site_client.agent.rounds.journal import CurrentRound, RoundJournal
from site_client.agent.rounds.revealed_sums import KEPT, RevealedSums
from site_client.errors import ModelMismatch, StepRefused
from site_client.records import Job, RunId
from site_client.typed_json import Digest
from tests.federation import crooks
from tests.federation.invariants import check, contribution_of
from tests.federation.lies import flipped
from tests.federation.nursery import PARAMETERS, TRAINING_S
from tests.federation.places import an_update
from tests.federation.wire import Killed
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


def faults(world: World) -> dict[str, list[FaultKind]]:
    with world.aggregator.app.store.read() as session:
        held = fault_rows.of_run(session, world.run_id)
    return {site: [fault.kind for fault in of_site] for site, of_site in held.items()}


def members_of(world: World, number: int) -> set[str]:
    """The sites whose uploads are in the sum of a round."""
    heard = (one.message for one in world.wire.heard)
    return {
        message.claim.site
        for message in heard
        if isinstance(message, secagg_pb2.UploadMessage) and message.round.round == number
    }


# --- a member that spoils sums ---


@pytest.mark.parametrize("how", [crooks.NOISE, crooks.COUNTS])
def test_a_member_that_spoils_sums_is_found_and_the_others_publish(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    crooks.let_in(monkeypatch, crooks.Crooks({"site-d": how}))
    world = make_world(sites=6, rounds=24)
    world.corrupt = {"site-d"}
    run_on(world, lambda: "site-d" in faults(world))
    assert {site: kinds for site, kinds in faults(world).items() if FaultKind.SPOILED_SUM in kinds} == {
        "site-d": [FaultKind.SPOILED_SUM]
    }
    number = len(world.rounds())
    run_on(world, lambda: world.rounds()[number - 1].state is RoundState.PUBLISHED)
    assert members_of(world, number) <= {"site-a", "site-b", "site-c", "site-e", "site-f"}
    assert world.run.state is RunState.RUNNING
    check(world)


def test_a_dealer_of_wrong_pair_secrets_that_vanishes_gets_no_honest_member_named(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its masks with the others do not come off the sum, and it is no member of it. It comes first in the order."""
    crooks.let_in(monkeypatch, crooks.Crooks(pads={"site-a"}))
    world = make_world(sites=7, rounds=12)
    world.corrupt = {"site-a"}
    before_upload = (RoundState.TRAINING, RoundState.KEYS, RoundState.SHARES)
    for _ in range(150):
        if len(world.rounds()) > 5 or world.run.state is not RunState.RUNNING:
            break
        world.silent = set() if world.round.state in before_upload else {"site-a"}
        world.everybody()
        world.clock.advance(31)
    refused = [row.number for row in world.rounds() if row.sum_blob and row.state is RoundState.ABANDONED]
    assert refused
    assert not any("site-a" in members_of(world, number) for number in refused)
    assert set(faults(world)) == {"site-a"}
    check(world)


def test_an_evaluation_that_was_spoiled_is_repeated_until_there_is_one(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilers: dict[str, str] = {}
    crooks.let_in(monkeypatch, crooks.Crooks(spoilers))
    world = make_world(sites=6, rounds=1)
    world.corrupt = {"site-d"}
    run_on(world, lambda: len(world.rounds()) == 2)
    spoilers["site-d"] = crooks.NOISE
    run_on(world, lambda: world.run.state is not RunState.RUNNING)
    assert world.run.state is RunState.COMPLETED
    spoiled, *_, last = world.rounds()[1:]
    assert spoiled.state is RoundState.ABANDONED
    assert world.plan.evaluates_only(last.number)
    assert last.state is RoundState.PUBLISHED
    check(world)


def test_with_too_few_for_another_cohort_the_run_pauses_and_says_why(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    crooks.let_in(monkeypatch, crooks.Crooks({"site-d": crooks.NOISE}))
    world = make_world(sites=4, rounds=3)
    world.corrupt = {"site-d"}
    run_on(world, lambda: world.run.state is RunState.PAUSED)
    assert "6 sites are enough to form another" in str(world.run.reason)
    check(world)


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


# --- a member that deals shares of no secret ---


def test_a_dealer_of_no_secret_is_proven_guilty_and_the_others_publish_on_the_same_model(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    crooks.let_in(monkeypatch, crooks.Crooks(dealers={"site-d"}))
    world = make_world(sites=4, rounds=2)
    world.corrupt = {"site-d"}
    run_on(world, lambda: len(world.rounds()) > 1 and world.rounds()[1].state is RoundState.PUBLISHED)
    first, second = world.rounds()[:2]
    assert (first.state, second.base_model) == (RoundState.ABANDONED, first.base_model)
    assert faults(world) == {"site-d": [FaultKind.BAD_DEALING]}
    assert second.members == 3
    assert world.refused == []
    check(world)


def test_without_the_evidence_no_site_works_on_that_model_again(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    crooks.let_in(monkeypatch, crooks.Crooks(dealers={"site-d"}))
    world = make_world(sites=4, rounds=2)
    world.corrupt, world.lied_down = {"site-d"}, True

    def withheld(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "close":
            del reply.close.bad_dealings[:]
        return reply

    world.wire.lies_down.append(withheld)
    run_on(world, lambda: bool(world.refused))
    assert all("takes part in no other round on that model" in str(refusal) for _, refusal in world.refused)
    assert not _revealed(world, 2)


# --- an aggregator that wants the difference of two sums ---


def _revealed(world: World, number: int) -> set[str]:
    return {
        one.site
        for one in world.wire.heard
        if isinstance(one.message, secagg_pb2.RevealMessage) and one.message.round.round == number
    }


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
    assert world.run.state is RunState.PAUSED
    world.resume()
    for _ in range(4):
        world.everybody()
    assert world.rounds()[1].base_model == world.rounds()[0].base_model
    refusing = {name for name, refusal in world.refused if isinstance(refusal, StepRefused)}
    assert refusing == set(world.sites)
    assert not _revealed(world, 2)
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
    assert not _revealed(world, 2)


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


# --- a member that is ready and then silent ---


def test_who_is_ready_and_then_silent_sits_out_and_comes_back(make_world: MakeWorld) -> None:
    world = make_world(sites=5, rounds=8)
    sat_out: list[int] = []

    def step(name: str) -> Any:
        world.step(name)
        world.train(name)

    for _ in range(400):
        if len(world.rounds()) >= 7 or world.run.state is not RunState.RUNNING:
            break
        row = world.round
        for name in world.sites:
            if name != "site-e" or row.state is RoundState.TRAINING:
                step(name)
        if "site-e" not in world.seats() and row.number not in sat_out:
            sat_out.append(row.number)
        world.drive()
        world.clock.advance(20)
    assert faults(world)["site-e"][:2] == [FaultKind.SILENT, FaultKind.SILENT]
    assert sat_out[0] == 3
    assert {name for name, kinds in faults(world).items() if kinds} == {"site-e"}


# --- an aggregator that offers a model of its own ---


def _away_in_round_1(make_world: MakeWorld) -> World:
    """site-d missed round 1; its model was published, and the three members signed it."""
    world = make_world(sites=4, rounds=3)
    world.silent = {"site-d"}
    for _ in range(3):
        world.everybody()
    world.clock.advance(TRAINING_S + 1)
    run_on(world, lambda: world.rounds()[0].state is RoundState.PUBLISHED)
    world.everybody()
    world.silent = set()
    world.lied_down = True
    return world


def _signs_no_model(monkeypatch: pytest.MonkeyPatch, crook: str) -> None:
    honest = Closing._sign

    def sign(closing: Closing, *arguments: Any) -> None:
        if closing._identity.site != crook:
            honest(closing, *arguments)

    monkeypatch.setattr(Closing, "_sign", sign)


def _no_whole_model_but_the_first(world: World) -> None:
    """Every whole model that site-d asked for is the plan's first one."""
    said = [one.message for one in world.wire.heard if one.site == "site-d"]
    wanted = {message.digest for message in said if isinstance(message, blobs_pb2.BlobRequest)}
    with world.aggregator.app.store.read() as session:
        _first, *later = run_rows.models(session, world.run_id)
    assert later
    assert not wanted & {model.blob for model in later}


def test_a_member_that_signs_no_model_keeps_no_newcomer_out(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """site-d was away from the start, two models long. It computes both from the plan's first one."""
    _signs_no_model(monkeypatch, "site-c")
    world = make_world(sites=4, rounds=4)
    world.corrupt, world.silent = {"site-c"}, {"site-d"}
    run_on(world, lambda: len(world.rounds()) == 3, turns=400)
    world.silent = set()
    run_on(world, lambda: "site-d" in members_of(world, world.round.number))
    _no_whole_model_but_the_first(world)
    assert not any(isinstance(refusal, ModelMismatch) for _, refusal in world.refused)
    check(world)


def _another_first_model(train: rounds_pb2.TrainStep) -> None:
    train.initial_model.CopyFrom(train.whole_model)


def _one_sum_twice(train: rounds_pb2.TrainStep) -> None:
    train.chain.add().CopyFrom(train.chain[-1])


def _leads_to_another_model(train: rounds_pb2.TrainStep) -> None:
    train.chain[-1].model_digest = train.base_model_digest = bytes(32)


@pytest.mark.parametrize("lie", [_another_first_model, _one_sum_twice, _leads_to_another_model])
def test_a_chain_that_does_not_begin_at_the_plan_s_first_model_or_skips_a_sum_leads_nowhere(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, lie: Callable[[rounds_pb2.TrainStep], None]
) -> None:
    _signs_no_model(monkeypatch, "site-c")
    world = make_world(sites=4, rounds=4)
    world.corrupt, world.silent, world.lied_down = {"site-c"}, {"site-d"}, True
    run_on(world, lambda: len(world.rounds()) == 3, turns=400)
    world.clock.advance(61)
    told = []

    def lied(site: str, call: str, reply: Message, request: Message) -> Message:
        if site == "site-d" and isinstance(reply, rounds_pb2.PollReply) and reply.train.HasField("initial_model"):
            lie(reply.train)
            told.append(lie)
        return reply

    world.wire.lies_down.append(lied)
    world.step("site-d")
    assert told
    assert [name for name, _ in world.refused if name == "site-d"]
    assert world.sites["site-d"].jobs() == []


def _no_certificate(train: rounds_pb2.TrainStep) -> None:
    train.ClearField("certificate")


def _of_another_model(train: rounds_pb2.TrainStep) -> None:
    train.base_model_digest = bytes(32)


def _too_few_signatures(train: rounds_pb2.TrainStep) -> None:
    del train.certificate.signatures[-1]


def _smaller_cohort(train: rounds_pb2.TrainStep) -> None:
    del train.certificate.cohort[-1]
    del train.certificate.signatures[-1]


def _a_signature_over_another_model(train: rounds_pb2.TrainStep) -> None:
    train.base_model_digest = train.certificate.model_digest = bytes(32)


@pytest.mark.parametrize(
    "lie", [_no_certificate, _of_another_model, _too_few_signatures, _smaller_cohort, _a_signature_over_another_model]
)
def test_a_whole_model_without_the_signatures_of_its_cohort_is_not_trained(
    make_world: MakeWorld, lie: Callable[[rounds_pb2.TrainStep], None]
) -> None:
    world = _away_in_round_1(make_world)

    def lied(site: str, call: str, reply: Message, request: Message) -> Message:
        if site == "site-d" and isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "train":
            lie(reply.train)
        return reply

    world.wire.lies_down.append(lied)
    world.step("site-d")
    world.step("site-d")
    assert [name for name, _ in world.refused if name == "site-d"]
    assert world.sites["site-d"].jobs() == []
    world.wire.lies_down.remove(lied)
    if lie is not _of_another_model and lie is not _a_signature_over_another_model:  # that offer stays as it was begun
        world.step("site-d")
        assert [job.round for job in world.sites["site-d"].jobs()] == [2]


def test_a_site_that_holds_the_model_before_takes_no_whole_model(make_world: MakeWorld) -> None:
    world = make_world(sites=4, rounds=3, phase="keys")
    world.silent = {"site-d"}  # it trained, so it holds the first model, and falls silent
    world.clock.advance(61)
    run_on(world, lambda: world.rounds()[0].state is RoundState.PUBLISHED)
    world.everybody()
    world.lied_down = True

    def no_chain(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "train":
            del reply.train.chain[:]
        elif isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "close":
            reply.close.outcome = rounds_pb2.CloseStep.NOT_IN_COHORT  # so that it does not compute the model here
        return reply

    world.wire.lies_down.append(no_chain)
    for _ in range(3):
        world.step("site-d")
    assert any("takes the published sum, and no whole model" in str(refusal) for _, refusal in world.refused)
    assert [job.round for job in world.sites["site-d"].jobs()] in ([], [1])
    world.wire.lies_down.remove(no_chain)
    for _ in range(2):
        world.step("site-d")
    assert [job.round for job in world.sites["site-d"].jobs()] == [2]


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
    assert not _revealed(world, 4)


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
    assert _revealed(world, 1) == {"site-a"}
    sums = RevealedSums(site.agent_folder / "rounds")
    current = site.rounds.journal.current
    assert current is not None
    with pytest.raises(StepRefused, match="would differ by"):
        sums.check_set(current, ["site-a", "site-b"], 3, list(world.sites))


def test_a_false_complaint_and_one_slow_answer_end_no_run(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    crooks.let_in(monkeypatch, crooks.Crooks(garbage={"site-d": {"site-a"}}))  # one complaint, by site-a
    world = make_world(sites=4, rounds=2, phase="shares")
    world.corrupt = {"site-d"}
    run_on(world, lambda: world.round.state is RoundState.REVEAL)
    for name in ("site-a", "site-b", "site-d"):  # two shares about site-d, and the one that it opened for site-a
        world.step(name)
    world.drive()
    assert world.round.state is RoundState.REVEAL
    world.clock.advance(120)
    world.drive()
    assert world.rounds()[0].state is RoundState.PUBLISHED
    check(world)


@pytest.mark.parametrize(("sites", "victims"), [(4, {"site-a"}), (7, {"site-a", "site-b"})])
@pytest.mark.parametrize("silent_in", [RoundState.CONFIRM, RoundState.REVEAL])
def test_a_dealer_of_garbage_to_few_that_falls_silent_ends_no_round(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, sites: int, victims: set[str], silent_in: RoundState
) -> None:
    """It opens what it dealt and its silence costs nothing, or it does not and the others try again without it."""
    world = make_world(sites=sites, rounds=2)
    crook = max(world.sites)
    crooks.let_in(monkeypatch, crooks.Crooks(garbage={crook: victims}))
    world.corrupt = {crook}
    for _ in range(60):
        if world.rounds()[0].state is RoundState.PUBLISHED:
            break
        row = world.rounds()[0]
        world.silent = {crook} if (row.attempt, row.state) == (1, silent_in) or row.attempt > 1 else set()
        world.everybody()
        world.clock.advance(31)
    (first, *_) = world.rounds()
    assert first.state is RoundState.PUBLISHED
    assert (first.attempt, first.members) == ((2, sites - 1) if silent_in is RoundState.CONFIRM else (1, sites))
    assert faults(world) == {crook: [FaultKind.SILENT]}
    with world.aggregator.app.store.read() as session:
        ((fault, _),) = fault_rows.newest(session, world.run_id, 5)
    if silent_in is RoundState.CONFIRM:
        assert fault.detail == f"did not open the shares that {', '.join(sorted(victims))} complained about"
        evidence = secagg_pb2.BadShares.FromString(fault.evidence or b"")
        assert {complaint.site for complaint in evidence.complaints} == victims
    assert world.run.state is RunState.RUNNING
    check(world)


def test_a_dealer_that_opens_other_shares_than_it_dealt_is_refused_and_left_out(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(sites=4, rounds=2)
    crooks.let_in(monkeypatch, crooks.Crooks(garbage={"site-d": {"site-a"}}))
    world.corrupt = {"site-d"}

    def another(site: str, call: str, message: Message) -> Message:
        if isinstance(message, secagg_pb2.ConfirmMessage):
            for opened in message.confirmation.opened:
                opened.seed_share = flipped(opened.seed_share)
        return message

    world.wire.lies_up.append(another)
    run_on(world, lambda: world.rounds()[0].state is RoundState.PUBLISHED, turns=30)
    assert any("are not those that it dealt" in sentence for *_, sentence in world.wire.refusals)
    assert "site-d did not open the shares" in str(world.rounds()[0].reason)
    assert world.rounds()[0].members == 3
    check(world)


def test_a_member_that_complains_falsely_and_falls_silent_excludes_nobody_and_ends_no_round(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round about another member. The accused open what the liar knows, and the sum is recovered without it."""
    world = make_world(sites=4, rounds=3)
    world.corrupt = {"site-d"}
    honest = Member._decrypt_shares

    def lie(member: Member, secrets: Any, dealt: Any) -> Any:
        held, complained = honest(member, secrets, dealt)
        if member.site == "site-d":
            accused = f"site-{'abc'[world.round.number % 3]}"
            held.pop(accused, None)
            complained = (accused,)
        return held, complained

    monkeypatch.setattr(Member, "_decrypt_shares", lie)

    for _ in range(200):
        if world.round.number > 3 or world.run.state is not RunState.RUNNING:
            break
        world.silent = {"site-d"} if world.round.state is RoundState.REVEAL else set()
        world.everybody()
        world.clock.advance(31)
    assert [(row.state, row.attempt) for row in world.rounds()[:3]] == [(RoundState.PUBLISHED, 1)] * 3
    assert set(faults(world)) == {"site-d"}
    accused = {
        one.site
        for one in world.wire.heard
        if isinstance(one.message, secagg_pb2.ConfirmMessage) and one.message.confirmation.opened
    }
    assert len(accused) == 3
    check(world)


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
