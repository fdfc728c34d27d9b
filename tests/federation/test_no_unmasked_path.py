"""No way for an update to leave a site without masks: by the calls in the code, and by what crosses the wire."""

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from federation import secagg
from federation.encoding import HEADER_WORDS
from federation.v1 import blobs_pb2

from tests.federation.invariants import plain_words
from tests.federation.world import World

ROOT = Path(__file__).parents[2]
UNIFORM_BYTE_CHI2 = 255 + 6 * (2 * 255) ** 0.5  # mean and six standard deviations, 255 degrees of freedom


def callers(name: str, *folders: str) -> set[str]:
    """Files that call a function or method of this name."""
    found = set()
    for path in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == name:
                found.add(str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("mask_contribution", {"site_client/agent/rounds/masking.py"}),  # encodes and masks, in two lines
        (
            "upload_of",
            {"site_client/agent/rounds/masking.py"},
        ),  # tells the guard which bytes may leave: what `mask_contribution` gave
        (
            "send_chunks",
            {"site_client/agent/egress/transfer.py"},
        ),  # the only call with room for an update; an echo takes fixed bytes
    ],
)
def test_one_place_encodes_masks_and_sends(name: str, only: set[str]) -> None:
    assert callers(name, "site_client/agent") == only


def test_only_sealing_encodes_an_update_in_any_program_that_has_a_network() -> None:
    importing = {
        str(path.relative_to(ROOT))
        for folder in ("site_client", "aggregator")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("federation.encoding")
        if "encode" in {alias.name for alias in node.names}
    }
    assert importing == {"site_client/agent/rounds/contribution.py"}


@pytest.mark.parametrize("evaluation_only", [False, True])
def test_what_a_site_uploads_looks_like_random_bytes_header_words_too(
    make_world: Callable[..., World], evaluation_only: bool
) -> None:
    world = make_world(sites=4, rounds=1)
    number = 2 if evaluation_only else 1
    while len(world.rounds()) < number or world.rounds()[number - 1].next_model is None:
        world.everybody()
    row, attempt = world.rounds()[number - 1], {}
    ctx = secagg.context(world.plan.digest, row.base_model, row.run_id, number, row.attempt, row.roster_epoch)
    for one in world.wire.heard:
        if isinstance(one.message, blobs_pb2.BlobOffer) and one.message.round.round == number:
            attempt[one.message.digest] = one.site
    sent = {
        attempt[one.message.digest]: np.frombuffer(one.message.data, "<u8")
        for one in world.wire.heard
        if isinstance(one.message, blobs_pb2.BlobChunk) and one.message.digest in attempt
    }
    assert set(sent) == set(world.sites)
    for site, words in sent.items():
        (mask_key,) = (key for key, state in world.sites[site].states.items() if state.ctx == ctx)
        plain = plain_words(world, row, site, mask_key)
        assert plain.shape == words.shape
        assert not (words[:HEADER_WORDS] == plain[:HEADER_WORDS]).any(), "a header word left in clear"
        assert not (words == plain).any()
        counts = np.bincount(words.view(np.uint8), minlength=256)
        assert ((counts - words.nbytes / 256) ** 2 / (words.nbytes / 256)).sum() < UNIFORM_BYTE_CHI2
