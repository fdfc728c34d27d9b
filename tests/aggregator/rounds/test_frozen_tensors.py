"""A plan that trains some tensors: the others are neither sent nor changed, and everything else goes on as before."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from federation.encoding import HEADER_WORDS, Layout
from federation.manifest import load_model
from federation.plan import ServerKind, Trainable
from federation.v1 import blobs_pb2

from aggregator.runs import export
from aggregator.states import RoundState, RunState
from aggregator.store import run_rows
from tests.federation.invariants import check
from tests.federation.nursery import PARAMETERS
from tests.federation.world import World

MOVING = 4  # of the tensor "bias", the last one


@pytest.mark.parametrize("server", [ServerKind.FEDAVG, ServerKind.FEDADAM])
def test_only_the_moving_tensors_are_uploaded_and_only_they_move(
    make_world: Callable[..., World], tmp_path: Path, server: ServerKind
) -> None:
    world = make_world(sites=4, rounds=2, server=server, trainable=Trainable.HEADS)
    plan = world.plan
    assert (plan.manifest.size, plan.moving.size) == (PARAMETERS, MOVING)
    world.until(RunState.COMPLETED)
    world.everybody()
    check(world)  # sums are of the members' plain words, models of those sums
    assert [row.state for row in world.rounds()] == [RoundState.PUBLISHED] * 3

    offers = [one.message for one in world.wire.heard if isinstance(one.message, blobs_pb2.BlobOffer)]
    sizes = {offer.round.round: offer.size_bytes for offer in offers}
    training = Layout.of(plan, MOVING).bytes
    assert sizes == {1: training, 2: training, 3: 8 * HEADER_WORDS}
    assert training == 8 * (HEADER_WORDS + 1)  # four lanes are one word
    assert {row.number: row.sum_size_bytes for row in world.rounds()} == {
        number: Layout.of_round(plan, number).sum_bytes_for(4) for number in (1, 2, 3)
    }

    with world.aggregator.app.store.read() as session:
        versions = run_rows.models(session, world.run_id)
    models = [world.model(version.blob) for version in versions]
    for before, after in itertools.pairwise(models):
        changed = np.flatnonzero(before.weights != after.weights)
        # A coordinate whose levels cancel out stays as it is.
        assert changed.size > 0
        assert changed.min() >= PARAMETERS - MOVING
    state = [vector.size for vector in models[-1].server_state]
    assert state == ([MOVING, MOVING] if server is ServerKind.FEDADAM else [])
    assert {site.rounds.model_files.newest for site in world.sites.values()} == {models[-1].digest}

    out = tmp_path / "exported.safetensors"
    export.export(world.aggregator.app, versions[-1], world.run, out)
    assert load_model(out).digest == models[-1].digest
