"""One damaged file of a hospital's state: a round is lost at most, or the site takes part in nothing and says why."""

import itertools
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from federation.errors import FederationError
from federation.v1 import secagg_pb2

from aggregator.states import RoundState, RunState
from site_client.agent.rounds.rollback import Rollback, Witness
from site_client.errors import SiteError
from site_client.typed_json import Digest, encode
from tests.federation.invariants import check
from tests.federation.nursery import Kind, Nursery
from tests.federation.world import Past, World

NAME = "site-a"
KIND = Kind(sites=4, rounds=3)
ROUND = "rounds/000102030405060708090a0b0c0d0e0f-2"
# Damaged, these end every part that the site takes, until a person has done what the sentence says.
CLOSED = (
    *("ledger.jsonl", "privacy.jsonl", "rolled_back.json"),
    *("rounds/closed.json", "rounds/sums.json", "rounds/left_bases.bin", "models/lineage.json"),
    *("identity/signing.key", "identity/sealing.key", "identity/ca.pem", "identity/custodian.pem"),
    *("identity/roster.bin", "identity/membership.json", "identity/approved.json"),
)
# Damaged, these are fetched or made again, or the round or the attempt is left.
# Damaged, these could be other true words: a checksum tells.
CHECKED = ("rounds/closed.json", "rounds/sums.json")
MENDED = (
    *("identity/seen.json", "models/history.json", "plans/PLAN"),
    *(f"{ROUND}/round.json", f"{ROUND}/attempt-1/member.bin", f"{ROUND}/attempt-1/coins.bin"),
)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_bytes(b"else")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, int(path.stat().st_size * 0.3)),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "folder": _folder,
}


@pytest.fixture(scope="module")
def past(nursery: Nursery) -> Iterator[Past]:
    """The second round, in its upload phase: every file of a site's state is there."""
    world = World.begin(nursery, KIND)
    while (world.round.number, world.round.state) != (2, RoundState.UPLOAD):
        world.everybody()
    past, agent = world.stand_still(), world.sites[NAME].agent_folder
    old = Rollback(
        world.clock.now - timedelta(days=9), Witness.SPOOL, 9, 3, acknowledged=True, barred_base=Digest(bytes(32))
    )
    (agent / "rolled_back.json").write_bytes(encode(old))
    (agent / "rounds" / "left_bases.bin").write_bytes(b"\x01" * 32 + b"\x02" * 32)
    yield past
    world.end()


@pytest.fixture
def second_round(nursery: Nursery, past: Past) -> Iterator[World]:
    world = World.of(nursery, KIND, past)
    yield world
    world.end()


def damaged(world: World, name: str, damage: str) -> Path:
    site = world.sites[NAME]
    site.shut()
    if name == "plans/PLAN":
        name = f"plans/{world.plan.digest.hex()}.plan"
    path = site.agent_folder / name
    assert path.stat().st_size > 0, name
    (DAMAGES | {"other digit": _other_digit})[damage](path)
    return path


def reveals(world: World, number: int) -> set[str]:
    return {
        said.site
        for said in world.wire.heard
        if isinstance(said.message, secagg_pb2.RevealMessage) and said.message.round.round == number
    }


def _other_digit(path: Path) -> None:
    """Make a round's number another one, by one bit; the text stays well formed."""
    text = path.read_bytes()
    at = text.rindex(b"1") if path.name == "closed.json" else text.index(b'"number":') + len(b'"number":')
    path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])


@pytest.mark.parametrize(
    "damage", ["emptied", "zeros", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("cut", "folder"))]
)
@pytest.mark.parametrize("name", MENDED)
def test_a_file_that_can_be_had_again_costs_at_most_the_round(second_round: World, name: str, damage: str) -> None:
    world = second_round
    damaged(world, name, damage)
    world.sites[NAME].boot()
    for _ in range(40):
        if world.run.state is RunState.COMPLETED:
            break
        world.everybody()
        world.clock.advance(31)
    assert world.run.state is RunState.COMPLETED
    assert NAME in reveals(world, 3)
    check(world)


@pytest.mark.parametrize(
    ("name", "damage"), [*itertools.product(CLOSED, DAMAGES), *((name, "other digit") for name in CHECKED)]
)
def test_a_file_that_protects_patients_ends_the_site_s_part_with_a_sentence(
    second_round: World, name: str, damage: str
) -> None:
    world = second_round
    path = damaged(world, name, damage)
    try:
        world.sites[NAME].boot()
    except (SiteError, FederationError) as error:
        said = {str(error)}
    else:
        for _ in range(12):
            world.everybody()
            world.clock.advance(31)
        said = {str(error) for site, error in world.refused if site == NAME}
    (sentence,) = said
    assert path.name in sentence or "ledger has" in sentence
    assert "; " in sentence
    assert str(world.folder) not in sentence
    assert NAME not in reveals(world, 3)
    # The lineage is about the next base model: the round in progress was begun with a good one.
    assert NAME not in reveals(world, 2) or name == "models/lineage.json"
    check(world)
