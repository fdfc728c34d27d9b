"""A site whose state folder was put back to an earlier day: it notices, reveals nothing again, and tells a person."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from federation.v1 import blobs_pb2, rounds_pb2, secagg_pb2
from federation.vocabulary import SiteState
from google.protobuf.message import Message

from aggregator.states import RoundState, RunState, SeatState
from site_client.agent.rounds.rollback import acknowledge, read_rollback
from site_client.errors import ConfigRefused, StepRefused
from tests.federation.invariants import check
from tests.federation.places import Site
from tests.federation.world import World

NAME = "site-a"


def snapshot(site: Site, target: Path) -> None:
    """The whole machine."""
    shutil.copytree(site.folder, target)


def restore(site: Site, backup: Path, *folders: str) -> None:
    """Put these folders back, each whole, and start the agent."""
    site.shut()
    for folder in folders:
        shutil.rmtree(site.folder / folder)
        shutil.copytree(backup / folder, site.folder / folder)
    site.boot()


def reveals(world: World) -> list[bytes]:
    return [
        one.data for one in world.wire.heard if one.site == NAME and isinstance(one.message, secagg_pb2.RevealMessage)
    ]


def calls_since(world: World, before: int) -> set[str]:
    return {one.call for one in world.wire.heard[before:] if one.site == NAME}


def without_the_echo(site: str, call: str, reply: Message, request: Message) -> Message:
    """An aggregator that keeps to itself what it has seen of a ledger."""
    if isinstance(reply, rounds_pb2.PollReply):
        reply.ledger_entries_seen, reply.ledger_head_seen = 0, b""
    return reply


@pytest.fixture
def revealed(make_world: Callable[..., World], tmp_path: Path) -> World:
    """Site-a was backed up before it confirmed, and has revealed since; the others have not, and the round waits."""
    world = make_world(sites=4, rounds=3, phase="confirm")
    snapshot(world.sites[NAME], tmp_path / "backup")
    for name in world.sites:
        world.step(name)
    world.drive()
    assert world.round.state is RoundState.REVEAL
    world.step(NAME)
    world.step(NAME)
    assert len(reveals(world)) == 1
    return world


@pytest.mark.parametrize(
    ("folders", "lie", "witness"),
    [
        (("state", "spool"), False, "the aggregator"),
        (("state",), True, "the mark in this machine's spool"),
    ],
    ids=["the whole machine, an honest aggregator", "the state folder, a lying aggregator"],
)
def test_a_site_restored_from_before_its_confirmation_reveals_nothing_again(
    revealed: World, tmp_path: Path, folders: tuple[str, ...], lie: bool, witness: str
) -> None:
    world, site, before = revealed, revealed.sites[NAME], len(revealed.wire.heard)
    if lie:
        world.wire.lies_down.append(without_the_echo)
    restore(site, tmp_path / "backup", *folders)
    asked: list[rounds_pb2.PollReply] = []
    other = sorted(set(world.sites) - {"site-d"})

    def ask_again(name: str, call: str, reply: Message, request: Message) -> Message:
        """A second question: about another set than the one that was answered."""
        if name == NAME and isinstance(reply, rounds_pb2.PollReply):
            ref = next(
                one.message.round for one in world.wire.heard if isinstance(one.message, secagg_pb2.ConfirmMessage)
            )
            asked.append(reply)
            reply.confirm.CopyFrom(rounds_pb2.ConfirmStep(round=ref, uploaded=other))
        return reply

    world.wire.lies_down.append(ask_again)
    for _ in range(3):
        world.step(NAME)
    assert calls_since(world, before) == {"Rounds/Poll"}
    assert len(asked) == len(world.refused) == 3
    for _, refusal in world.refused:
        assert isinstance(refusal, StepRefused)
        assert witness in str(refusal)
        assert "hemofed-site ledger acknowledge" in str(refusal)
    assert site.rounds.journal.current is None
    assert site.member_files() == []
    situation = site.rounds.situation()
    assert (situation.state, situation.refusal) == (SiteState.ATTENTION, str(world.refused[0][1]))
    site.boot()
    assert site.rounds.situation() == situation  # a restart forgets nothing
    assert len(reveals(world)) == 1


def test_a_restored_site_takes_part_again_once_acknowledged_and_on_another_base(
    revealed: World, tmp_path: Path
) -> None:
    world, site = revealed, revealed.sites[NAME]
    restore(site, tmp_path / "backup", "state", "spool")
    world.step(NAME)
    while world.round.number == 1:
        world.everybody()
        world.clock.advance(31)
    world.until(RoundState.TRAINING)
    world.step(NAME)
    assert world.seats(2)[NAME] is SeatState.DECLINED
    acknowledge(site.agent_folder)
    with pytest.raises(ConfigRefused, match="nothing to do"):
        acknowledge(site.agent_folder)
    world.refused.clear()
    world.until(RunState.COMPLETED)
    assert [row.members for row in world.rounds()] == [4, 3, 4, 4]
    assert not any("put back" in str(error) for _, error in world.refused)
    assert site.rounds.situation().state is not SiteState.ATTENTION
    check(world)


def offer(world: World, steps: Sequence[rounds_pb2.TrainStep]) -> None:
    """The aggregator's next answers to NAME's polls."""
    left = iter(steps)

    def lie(name: str, call: str, reply: Message, request: Message) -> Message:
        if name == NAME and isinstance(reply, rounds_pb2.PollReply):
            reply.train.CopyFrom(next(left))
        return reply

    world.wire.lies_down.append(lie)


def test_a_site_acknowledged_at_once_joins_neither_that_round_nor_one_on_its_base(
    revealed: World, tmp_path: Path
) -> None:
    """The aggregator says that the round failed, and offers it and the next one on the same model."""
    world, site = revealed, revealed.sites[NAME]
    restore(site, tmp_path / "backup", "state", "spool")
    world.step(NAME)
    acknowledge(site.agent_folder)
    before, base = len(world.wire.heard), world.rounds()[0].base_model
    offer(
        world,
        [
            rounds_pb2.TrainStep(
                plan_digest=world.plan.digest,
                base_model_digest=base,
                round=blobs_pb2.RoundRef(run_id=world.run_id, round=number),
            )
            for number in (1, 2, 2, 3)
        ],
    )
    for _ in range(4):
        world.step(NAME)
    assert calls_since(world, before) == {"Rounds/Poll", "Rounds/Decline"}
    assert len(world.refused) == 5
    assert site.rounds.journal.current is None


def test_an_invented_offer_does_not_spend_the_bar_on_the_base_of_a_restored_site(
    revealed: World, tmp_path: Path
) -> None:
    """First another run, another first model and a round of the wrong kind; then the round that was revealed in."""
    world, site = revealed, revealed.sites[NAME]
    restore(site, tmp_path / "backup", "state", "spool")
    world.step(NAME)
    acknowledge(site.agent_folder)
    before, base = len(world.wire.heard), world.rounds()[0].base_model
    invented = [
        rounds_pb2.TrainStep(base_model_digest=bytes(32)),
        rounds_pb2.TrainStep(base_model_digest=bytes(32)),
        rounds_pb2.TrainStep(base_model_digest=bytes(32), evaluation_only=True),
        rounds_pb2.TrainStep(base_model_digest=base),
        rounds_pb2.TrainStep(base_model_digest=base),
    ]
    for train, (run_id, number) in zip(
        invented, [(bytes(16), 1), *((world.run_id, number) for number in (1, 2, 1, 2))], strict=True
    ):
        train.plan_digest, train.round.run_id, train.round.round = world.plan.digest, run_id, number
    offer(world, invented)
    barred = []
    for _ in invented:
        world.step(NAME)
        record = read_rollback(site.agent_folder)
        assert record is not None
        barred.append(record.barred_base)
    assert barred == [None, None, None, base, base]
    assert calls_since(world, before) == {"Rounds/Poll", "Rounds/Decline"}
    assert site.rounds.journal.current is None
    assert len(reveals(world)) == 1


def test_a_state_folder_that_grew_beyond_the_lost_one_without_the_aggregator_is_noticed(
    revealed: World, tmp_path: Path
) -> None:
    """Its polls do not arrive, and stand in its ledger all the same."""
    world, site = revealed, revealed.sites[NAME]
    longest = site.egress.ledger.entries
    restore(site, tmp_path / "backup", "state", "spool")

    def lost(name: str, call: str, message: Message) -> Message:
        raise ConnectionError

    world.wire.lies_up.append(lost)
    while site.egress.ledger.entries <= longest:
        with pytest.raises(ConnectionError):
            site.step()
    world.wire.lies_up.clear()
    world.step(NAME)
    record = read_rollback(site.agent_folder)
    assert record is not None
    assert record.seen_entries <= longest < record.held_entries
    assert len(reveals(world)) == 1


def test_an_aggregator_that_invents_a_longer_ledger_stops_a_site_and_gets_nothing_from_it(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=4, phase="reveal")

    def invent(name: str, call: str, reply: Message, request: Message) -> Message:
        if name == NAME and isinstance(reply, rounds_pb2.PollReply):
            reply.ledger_entries_seen, reply.ledger_head_seen = 2**64 - 1, b"x"
        return reply

    world.wire.lies_down.append(invent)
    before = len(world.wire.heard)
    world.step(NAME)
    assert calls_since(world, before) == {"Rounds/Poll"}
    world.wire.lies_down.clear()
    for _ in range(4):
        world.everybody()
        world.clock.advance(31)
    assert (world.rounds()[0].state, world.rounds()[0].members) == (RoundState.PUBLISHED, 4)
    site = world.sites[NAME]
    acknowledge(site.agent_folder)
    site.boot()
    assert site.rounds.situation().state is not SiteState.ATTENTION
    check(world)


def test_the_longest_ledger_outlives_the_aggregator_s_process(revealed: World, tmp_path: Path) -> None:
    world, site = revealed, revealed.sites[NAME]
    world.clock.advance(6)
    world.step(NAME)
    world.aggregator.boot()
    restore(site, tmp_path / "backup", "state", "spool")
    world.step(NAME)
    world.aggregator.boot()
    restore(site, tmp_path / "backup", "state", "spool")
    world.step(NAME)
    assert len(world.refused) == 2
    assert all("put back to an earlier day" in str(error) for _, error in world.refused)


def test_an_honest_site_is_never_stopped(make_world: Callable[..., World]) -> None:
    """Whatever restarts: agent, aggregator, or both."""
    world = make_world(sites=3, rounds=1)
    while world.run.state is not RunState.COMPLETED:
        world.everybody()
        world.sites[NAME].boot()
        world.aggregator.boot()
    assert world.refused == []
    assert read_rollback(world.sites[NAME].agent_folder) is None
