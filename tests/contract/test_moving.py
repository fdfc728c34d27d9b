"""The part of a model that a run moves: what a plan may name, and what the chain does with it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from federation.chain import next_model
from federation.encoding import HISTOGRAM_SHAPE, Layout, SiteHeader, decode_sum, encode
from federation.errors import ChainRefused, PlanRefused
from federation.manifest import Manifest, Model, TensorSpec, load_model, save_model
from federation.moving import MovingPart
from federation.plan import LocalTraining, ServerKind, ServerOptimizer, Trainable, TrainingPlan

Make = Callable[..., TrainingPlan]
MANIFEST = Manifest(tuple(TensorSpec(name, (size,)) for name, size in zip("abcde", (3, 4, 5, 6, 7), strict=True)))


def _plan(make_plan: Make, places: tuple[int, ...], server: ServerOptimizer | None = None) -> TrainingPlan:
    plan = make_plan(manifest=MANIFEST)
    training = replace(plan.training, trainable=Trainable.HEADS)
    return replace(plan, training=training, moving_tensors=places, server=server or plan.server)


@pytest.mark.parametrize("places", [(0,), (1, 2), (0, 2, 3), (4,)])
def test_places_travel_and_give_the_numbers_of_their_tensors(make_plan: Make, places: tuple[int, ...]) -> None:
    plan = _plan(make_plan, places)
    assert TrainingPlan.from_bytes(plan.to_bytes()) == plan
    vector = np.arange(MANIFEST.size)
    named = np.split(vector, np.cumsum([3, 4, 5, 6]))
    assert plan.moving.take(vector).tolist() == np.concatenate([named[place] for place in places]).tolist()
    assert plan.moving.size == sum(MANIFEST.tensors[place].size for place in places)


def test_putting_back_what_was_taken_changes_nothing_and_nothing_else() -> None:
    moving, vector = MovingPart.of(MANIFEST, (1, 3)), np.arange(25.0)
    target = np.full(25, -1.0)
    moving.put(target, moving.take(vector))
    assert (target[3:7] == vector[3:7]).all()
    assert (target[12:18] == vector[12:18]).all()
    assert (np.delete(target, np.r_[3:7, 12:18]) == -1).all()


@pytest.mark.parametrize("places", [(1, 1), (2, 1), (5,), (0, 1, 2, 3, 4)])
def test_places_that_are_none_are_refused(make_plan: Make, places: tuple[int, ...]) -> None:
    with pytest.raises(PlanRefused, match="moving_tensors"):
        _plan(make_plan, places)


def test_places_and_trainable_have_to_agree(make_plan: Make) -> None:
    with pytest.raises(PlanRefused, match="moving_tensors"):
        make_plan(manifest=MANIFEST, moving_tensors=(1,))
    with pytest.raises(PlanRefused, match="moving_tensors"):
        make_plan(**{"training.trainable": Trainable.READER})
    assert make_plan().training == LocalTraining(1, 1e-3, 0.01, 0.0, 2, 32)


def test_only_the_moving_tensors_move_and_the_server_keeps_vectors_of_their_length(
    make_plan: Make, tmp_path: Path
) -> None:
    plan = _plan(make_plan, (1, 3), ServerOptimizer(ServerKind.FEDADAM, 0.1, 0.9, 0.99, 1e-3))
    layout = Layout.of(plan, 10)
    assert (layout.parameters, layout.coordinates) == (10, 16)
    rng = np.random.default_rng(1)
    delta = np.linspace(-0.2, 0.2, 10).astype(np.float32)
    header = SiteHeader(50, 1.0, 1, False, np.zeros(HISTOGRAM_SHAPE, np.int64))
    total: npt.NDArray[np.uint64] = np.sum(
        [encode(layout, delta, header, rng) for _ in range(3)], axis=0, dtype=np.uint64
    )
    base = Model(MANIFEST, rng.standard_normal(25).astype(np.float32))
    after = next_model(plan, base, decode_sum(layout, total, 3))
    moved = np.flatnonzero(after.weights != base.weights)
    assert moved.tolist() == [3, 4, 5, 6, 12, 13, 14, 15, 16, 17]
    assert [vector.size for vector in after.server_state] == [10, 10]
    save_model(tmp_path / "model.safetensors", after)
    assert load_model(tmp_path / "model.safetensors").digest == after.digest
    again = next_model(plan, after, decode_sum(layout, total, 3))
    assert again.digest != after.digest


def test_a_server_vector_of_another_length_is_refused(make_plan: Make) -> None:
    plan = _plan(make_plan, (1, 3), ServerOptimizer(ServerKind.FEDAVGM, 0.1, 0.9))
    layout = Layout.of(plan, 10)
    header = SiteHeader(50, 1.0, 1, False, np.zeros(HISTOGRAM_SHAPE, np.int64))
    words = [encode(layout, np.zeros(10, np.float32), header, np.random.default_rng(n)) for n in range(3)]
    total: npt.NDArray[np.uint64] = np.sum(words, axis=0, dtype=np.uint64)
    decoded = decode_sum(layout, total, 3)
    with pytest.raises(ChainRefused, match="of 10 numbers"):
        next_model(plan, Model(MANIFEST, np.zeros(25, np.float32), (np.zeros(25),)), decoded)
