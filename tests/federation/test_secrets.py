"""A search for secrets where none may be: the aggregator's folder, and everything that either side logs."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import structlog
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.typing import EventDict, WrappedLogger

from aggregator.states import RoundState, RunState
from tests.federation.invariants import contribution_of, find, plain_words, raw_secrets, spellings
from tests.federation.world import World


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Every log line of both sides, with tracebacks, as text."""
    lines: list[str] = []

    def keep(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        lines.append(repr(event))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[structlog.processors.format_exc_info, keep])
    yield lines
    structlog.configure(**before)


def test_no_secret_of_a_site_is_in_the_aggregators_folder_or_in_anybodys_log(
    make_world: Callable[..., World], logged: list[str]
) -> None:
    world = make_world(sites=4, rounds=1)
    keys = [key for site in world.sites.values() for key in _own_keys(world, site.name)]
    updates: list[bytes] = []
    for _ in range(30):
        if world.round.state is RoundState.UPLOAD:
            world.silent.add("site-d")  # its mask key is opened, its update is not
            world.clock.advance(61)
        world.everybody()
        world.silent.clear()
        if world.round.state is RoundState.CONFIRM and not updates:
            updates = _updates(world)
    assert world.run.state is RunState.COMPLETED
    assert updates
    secrets = [one for site in world.sites.values() for one in raw_secrets(site.secrets.values())]
    assert len(secrets) >= 4 * 4 * 2
    spelt = [form for secret in (*keys, *secrets, *updates) for form in spellings(secret)]
    assert find(spelt, world.aggregator.folder) == []
    text = "\n".join(logged)
    assert "round published" in text
    assert [form for form in spelt if form.decode("latin-1") in text or repr(form)[2:-1] in text] == []


def test_the_search_finds_what_is_there(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3, phase="upload")
    site = world.sites["site-a"]
    (secret, *_), here = raw_secrets(site.secrets.values()), world.aggregator.folder / "log.txt"
    assert find([secret], site.agent_folder) == ["member.bin"]
    for form in spellings(secret):
        here.write_bytes(b"something " + form + b" something")
        assert find(spellings(secret), world.aggregator.folder) == ["log.txt"]


def _own_keys(world: World, name: str) -> list[bytes]:
    keys = world.sites[name].identity.keys
    signing = keys.signing.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return [signing, *(keys.sealing.to_bytes()[at : at + 32] for at in (0, 32, 64))]


def _updates(world: World) -> list[bytes]:
    """Out of the middle of every update: 32 bytes as trained and as the words before masking, a third of its counts."""
    found = []
    for site in world.sites.values():
        contribution = contribution_of(world, world.round, site.name)
        assert contribution.delta is not None
        (mask_key,) = site.states
        words = plain_words(world, world.round, site.name, mask_key)
        for raw in (contribution.delta.tobytes(), words[-8:].tobytes()):
            found.append(raw[len(raw) // 2 : len(raw) // 2 + 32])
        # Counts are small: a few in a row stand in the sum of all sites by chance.
        histograms = contribution.header.histograms.astype(np.uint64).tobytes()
        found.append(histograms[len(histograms) // 3 : len(histograms) * 2 // 3])
    return found
