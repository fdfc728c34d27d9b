"""An aggregator that shows a site another history of a run than the one that it has followed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from federation import encoding
from federation.chain import next_model
from federation.encoding import Layout
from federation.manifest import Model
from federation.v1 import rounds_pb2
from google.protobuf.message import Message

from aggregator.store import run_rows
from site_client.agent.rounds.lineage import Lineage
from site_client.errors import StepRefused
from tests.federation.attacks import run_on
from tests.federation.world import World

MakeWorld = Callable[..., World]


def _models(world: World) -> list[Model]:
    with world.aggregator.app.store.read() as session:
        return [world.model(model.blob) for model in run_rows.models(session, world.run_id)]


@pytest.mark.parametrize("begins_at", ["the first model", "the newest model"])
def test_a_site_that_followed_a_run_takes_no_other_history_of_it(make_world: MakeWorld, begins_at: str) -> None:
    """The sum of round 2 is shown as that of round 1, from the plan's first model or once more from the newest."""
    world = make_world(sites=4, rounds=6)
    run_on(world, lambda: len(world.rounds()) == 3)
    world.lied_down = True
    site, second = world.sites["site-d"], world.rounds()[1]
    true = _models(world)
    assert second.sum_blob
    with world.aggregator.app.blobs.open(second.sum_blob) as blob:
        data = blob.read()
    published = encoding.unpack_sum(Layout.of_round(world.plan, 1), data, second.members or 0)
    first = begins_at == "the first model"
    forged = next_model(world.plan, true[0] if first else true[-1], published)
    with world.aggregator.app.store.read() as session:
        row = run_rows.models(session, world.run_id)[0]
    told = []

    def lie(name: str, call: str, reply: Message, request: Message) -> Message:
        if name == "site-d" and isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "train":
            train = reply.train
            del train.chain[:]
            link = train.chain.add(round=1, members=second.members or 0, model_digest=forged.digest)
            link.sum.digest, link.sum.size_bytes = second.sum_blob or b"", len(data)
            if first:
                train.initial_model.digest, train.initial_model.size_bytes = row.blob, row.size_bytes
            train.base_model_digest = forged.digest
            train.ClearField("certificate")
            told.append(name)
        return reply

    world.wire.lies_down.append(lie)
    for _ in range(3):
        world.step("site-d")
    assert told
    assert site.rounds.model_files.newest == true[-1].digest
    assert site.jobs() == []
    assert any("passes by the model that round 2 has led to here" in str(refusal) for _, refusal in world.refused)


def test_a_kept_model_of_another_run_is_no_model_of_this_one(make_world: MakeWorld, tmp_path: Path) -> None:
    plan, lineage = make_world(sites=3).plan, Lineage(tmp_path)
    other = bytes([1]) * 32
    assert lineage.holds(plan, other)  # a folder of an earlier version
    lineage.record(replace(plan, run_id=bytes([1]) * 16), 1, other)
    assert not lineage.holds(plan, other)
    assert lineage.holds(plan, plan.initial_model_digest)
    for number in (1, 2, 3):
        lineage.record(plan, number, bytes([number + 1]) * 32)
    assert [lineage.holds(plan, bytes([number + 1]) * 32) for number in (1, 2, 3)] == [False, True, True]
    assert not lineage.holds(plan, plan.initial_model_digest)


def test_a_chain_begins_at_the_newest_model_or_leads_through_it(make_world: MakeWorld, tmp_path: Path) -> None:
    plan, lineage = make_world(sites=3).plan, Lineage(tmp_path)
    models = {number: bytes([number]) * 32 for number in range(1, 6)}

    def chain(*numbers: int) -> list[rounds_pb2.PublishedSum]:
        return [rounds_pb2.PublishedSum(round=number, model_digest=models[number]) for number in numbers]

    lineage.check_chain(plan, plan.initial_model_digest, chain(1, 2))
    lineage.record(plan, 1, models[1])
    lineage.record(plan, 2, models[2])
    lineage.check_chain(plan, models[2], chain(3))
    lineage.check_chain(plan, models[1], chain(2, 3))  # it crashed before it had kept the model of round 2
    lineage.check_chain(plan, plan.initial_model_digest, chain(1, 2, 3))
    for base, numbers in ((models[2], (1, 3)), (plan.initial_model_digest, (1, 3)), (models[4], (3,))):
        with pytest.raises(StepRefused, match="passes by the model that round 2"):
            lineage.check_chain(plan, base, chain(*numbers))
