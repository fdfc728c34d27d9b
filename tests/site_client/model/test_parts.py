"""Parts of a network: each tensor is in one part, and the sets that a plan names include each other."""

import os
from pathlib import Path

import pytest
from federation.plan import Trainable

from aggregator.runs.plan_file import read_plan
from site_client.model.initial_weights import write_fresh
from site_client.model.parts import Part, is_trainable, parts_of
from site_client.model.registry import build


@pytest.mark.parametrize(
    "architecture", ["lite", "densenet121-gru", "densenet121-3d", "resnet50-affine", "lite-slices"]
)
def test_every_tensor_is_in_a_part_and_backbone_tensors_are_trunk_or_norms(architecture: str) -> None:
    net = build(architecture, 0)
    parts = parts_of(net)
    assert list(parts) == [name for name, _ in net.named_parameters()]
    backbone = {part for name, part in parts.items() if name.startswith("backbone.")}
    behind = {part for name, part in parts.items() if not name.startswith("backbone.")}
    assert backbone == {Part.NORMS, Part.TRUNK}
    assert behind <= {Part.HEADS, Part.READER}
    assert Part.HEADS in behind


def test_heads_are_the_last_layers_and_norms_are_scales_and_gains() -> None:
    parts = parts_of(build("densenet121-gru", 0))
    heads = {name for name, part in parts.items() if part is Part.HEADS}
    assert {name.split(".")[1] for name in heads} == {"slice_head", "attention", "study_head", "study_bias", "sequence"}
    assert not any("recurrence" in name for name in heads)
    norms = {name.rsplit(".", 1)[1] for name, part in parts.items() if part is Part.NORMS}
    assert norms == {"weight", "bias", "gain"}
    assert parts["backbone.trunk.norm0.weight"] is Part.NORMS
    assert parts["backbone.trunk.conv0.weight"] is Part.TRUNK


def test_a_head_by_itself_has_the_parts_it_has_in_its_network() -> None:
    net = build("lite", 0)
    parts, own = parts_of(net), parts_of(net.get_submodule("reader"))
    assert own == {name.removeprefix("reader."): part for name, part in parts.items() if name.startswith("reader.")}


def test_each_set_includes_the_one_before() -> None:
    sizes = [sum(is_trainable(part, trainable) for part in Part) for trainable in Trainable]
    assert sizes == [1, 2, 3, 4]


@pytest.mark.parametrize("trainable", list(Trainable))
def test_a_plan_of_initial_weights_moves_the_tensors_that_the_registry_trains(
    tmp_path: Path, trainable: Trainable
) -> None:
    write_fresh("lite", 1, tmp_path / "model")
    text = f'name = "p"\narchitecture = "lite"\nrounds = 1\n[training]\ntrainable = "{trainable}"\n'
    (tmp_path / "plan.toml").write_text(text)
    plan = read_plan(tmp_path / "plan.toml", tmp_path / "model", os.urandom)
    parts = parts_of(build("lite", 0))
    moving = [
        place for place, tensor in enumerate(plan.manifest.tensors) if is_trainable(parts[tensor.name], trainable)
    ]
    assert list(plan.moving_tensors or range(len(plan.manifest.tensors))) == moving
