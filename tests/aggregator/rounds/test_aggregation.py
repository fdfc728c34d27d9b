"""Aggregation: the run ends with the model that the plain sums lead to, and a damaged base model is not built upon."""

from collections.abc import Callable
from dataclasses import replace

from federation.manifest import save_model
from federation.v1 import rounds_pb2 as pb
from google.protobuf.message import Message

from aggregator.states import RoundState, RunState
from aggregator.store import fault_rows, run_rows
from tests.federation.invariants import check
from tests.federation.world import World


def test_the_run_ends_with_the_model_that_the_plain_sums_lead_to(make_world: Callable[..., World]) -> None:
    """`check` computes every sum from the members' plain encodings, and every model from those sums."""
    world = make_world(sites=5, rounds=2)
    outcomes = outcomes_of(world)
    world.until(RunState.COMPLETED)
    world.everybody()
    assert [(row.state, row.members) for row in world.rounds()] == [(RoundState.PUBLISHED, 5)] * 3
    check(world)
    for name, site in world.sites.items():
        assert site.rounds.model_files.newest == world.round.next_model
        assert site.rounds.journal.current is None
        assert outcomes[name] == [pb.CloseStep.PUBLISHED] * 3


def test_an_aborted_run_tells_every_site_to_erase_wherever_its_round_is(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3, phase="upload")
    outcomes = outcomes_of(world)
    world.abort()
    world.everybody()
    assert outcomes == {name: [pb.CloseStep.RUN_OVER] for name in world.sites}
    assert world.round.state is RoundState.ABANDONED
    assert not world.aggregator.driver.turn()
    check(world)


def test_a_base_model_that_was_replaced_on_disk_abandons_the_round_and_says_so(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=3, phase="reveal")
    with world.aggregator.app.store.read() as session:
        blob = run_rows.newest_model(session, world.run_id).blob
    model = world.model(blob)
    (stored,) = (path for path in (world.folder / "aggregator" / "blobs").rglob(f"*{blob.hex()}*") if path.is_file())
    stored.chmod(0o600)
    save_model(stored, replace(model, weights=model.weights + 1))
    world.everybody()
    assert world.rounds()[0].state is RoundState.ABANDONED
    assert "restore the state folder" in (world.rounds()[0].reason or "")


def test_an_upload_that_changed_on_disk_is_in_no_sum_and_no_hospital_is_blamed(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=3, phase="reveal")
    stored = next(path for path in (world.folder / "aggregator" / "uploads" / "whole").rglob("*") if path.is_file())
    stored.chmod(0o600)
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1  # one bit of one masked word: the sum would be another one, and nothing would show it
    stored.write_bytes(data)
    world.everybody()
    row = world.rounds()[0]
    assert (row.state, row.sum_blob) == (RoundState.ABANDONED, None)
    assert "has changed on the aggregator's disk since it was stored" in (row.reason or "")
    assert world.run.state is RunState.PAUSED
    with world.aggregator.app.store.read() as session:
        assert fault_rows.of_round(session, row.id) == []


def outcomes_of(world: World) -> dict[str, list[int]]:
    """By site, the outcome of every Close that it gets from now on."""
    outcomes: dict[str, list[int]] = {name: [] for name in world.sites}

    def watch(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, pb.PollReply) and reply.HasField("close"):
            outcomes[site].append(reply.close.outcome)
        return reply

    world.wire.lies_down.append(watch)
    return outcomes
