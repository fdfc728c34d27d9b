"""Attacks on a hospital that was away: whole models, certificates and chains of sums of an aggregator's own."""

from collections.abc import Callable
from typing import Any

import pytest
from federation.v1 import blobs_pb2, rounds_pb2
from google.protobuf.message import Message

from aggregator.states import RoundState
from aggregator.store import run_rows
from site_client.agent.rounds.closing import Closing
from site_client.errors import ModelMismatch
from tests.federation.attacks import MakeWorld, members_of, run_on
from tests.federation.invariants import check
from tests.federation.nursery import TRAINING_S
from tests.federation.world import World


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


@pytest.mark.parametrize(
    "lie",
    [_another_first_model, pytest.param(_one_sum_twice, marks=pytest.mark.slow), _leads_to_another_model],
)
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
