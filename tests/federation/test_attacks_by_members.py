"""Attacks by hospitals: sums that are spoiled, shares of no secret or none at all, complaints, silence."""

from typing import Any

import pytest
from federation.secagg import Member
from federation.v1 import rounds_pb2, secagg_pb2
from google.protobuf.message import Message

from aggregator.states import FaultKind, RoundState, RunState
from aggregator.store import fault_rows
from tests.federation import crooks
from tests.federation.attacks import MakeWorld, members_of, revealed, run_on
from tests.federation.invariants import check
from tests.federation.lies import flipped
from tests.federation.world import World


def faults(world: World) -> dict[str, list[FaultKind]]:
    with world.aggregator.app.store.read() as session:
        held = fault_rows.of_run(session, world.run_id)
    return {site: [fault.kind for fault in of_site] for site, of_site in held.items()}


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
    assert not revealed(world, 2)


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
