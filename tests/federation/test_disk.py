"""An aggregator that offers other files than it should fills no hospital's disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from federation.v1 import blobs_pb2, rounds_pb2
from google.protobuf.message import Message

from aggregator.states import RoundState
from site_client.errors import StepRefused
from tests.federation.places import Site
from tests.federation.world import World

OFFERS = 12


def downloads(site: Site) -> list[Path]:
    """Every file of the models' folder that is no verified model, and no record of them."""
    models = site.agent_folder / "models"
    return [path for path in models.iterdir() if path.suffix not in (".json", ".safetensors")]


def offer(world: World, size_bytes: int, sent: Callable[[int], bytes]) -> None:
    """Site-a is offered another file at each poll, and gets `sent` of it."""
    count = iter(range(1000))
    chunks: dict[bytes, bytes] = {}

    def lie(site: str, call: str, reply: Message, request: Message) -> Message:
        if site == "site-a" and isinstance(reply, rounds_pb2.PollReply) and reply.HasField("train"):
            data = sent(next(count))
            digest = hashlib.sha256(data + bytes(size_bytes - len(data))).digest()
            chunks[digest] = data
            reply.train.whole_model.CopyFrom(rounds_pb2.BlobRef(digest=digest, size_bytes=size_bytes))
        if site == "site-a" and isinstance(request, blobs_pb2.BlobRequest):
            return blobs_pb2.BlobChunk(digest=request.digest, offset=request.offset, data=chunks[request.digest])
        return reply

    world.wire.lies_down.append(lie)


@pytest.mark.parametrize("share", [0.5, 1.0], ids=["half a file", "a whole file that is no model"])
def test_twelve_offers_of_other_models_leave_one_part_at_most_and_nothing_after_the_close(
    make_world: Callable[..., World], share: float
) -> None:
    world = make_world(sites=4)
    site, size_bytes = world.sites["site-a"], world.plan.manifest.file_bytes_max
    assert size_bytes < 10_000  # 240 bytes of weights, two vectors of a server optimizer, a header
    offer(world, size_bytes, lambda number: bytes([number]) * int(share * size_bytes))
    for number in range(OFFERS):
        world.step("site-a")
        assert len(world.refused) == number + 1
        assert len(downloads(site)) <= 1
        assert sum(path.stat().st_size for path in downloads(site)) <= size_bytes
    site.boot()
    assert len(downloads(site)) <= 1  # kept, so that a slow line gets on
    world.silent.add("site-a")
    world.wire.lies_down.clear()
    while world.rounds()[0].state is not RoundState.PUBLISHED:
        world.everybody()
        world.clock.advance(31)
    world.step("site-a")
    assert site.rounds.journal.current is None
    assert downloads(site) == []


def test_a_file_larger_than_the_plan_s_model_is_not_begun(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    size_bytes = world.plan.manifest.file_bytes_max + 1
    offer(world, size_bytes, lambda number: bytes([number]) * size_bytes)
    world.step("site-a")
    ((_, refusal),) = world.refused
    assert isinstance(refusal, StepRefused)
    assert str(size_bytes - 1) in str(refusal)
    assert downloads(world.sites["site-a"]) == []


def test_downloads_of_a_version_before_are_swept_when_the_agent_starts_between_two_rounds(
    make_world: Callable[..., World],
) -> None:
    site = make_world(sites=3).sites["site-a"]
    for name in (".00.part", ".11.part", "sum-22", "whole-33"):
        (site.agent_folder / "models" / name).write_bytes(bytes(1000))
    site.boot()
    assert downloads(site) == []
