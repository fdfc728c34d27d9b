"""A model file says what its answers depend on, and an argument that contradicts it is refused in a sentence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation.description import ModelDescription
from federation.manifest import load_model, save_model

from site_client.calibration.model import CalibratedNet, Calibration, Calibrations
from site_client.errors import EvaluationRefused
from site_client.inference.flipped import FlippedMean
from site_client.inference.model_file import load, load_initial
from site_client.model.inputs import PIPELINE_VERSION
from site_client.model.network import CHANNELS, GEOMETRY
from site_client.model.registry import build, model_of

STATED = ModelDescription("lite-slices", 64, 12, 4, PIPELINE_VERSION, origin="fresh", plan_digest="ab" * 32, round=3)


def _file(folder: Path, description: ModelDescription | None) -> Path:
    path = folder / "model.safetensors"
    save_model(path, model_of(build("lite-slices", 1)), description=description)
    return path


def test_sizes_origin_and_round_come_from_the_file(tmp_path: Path) -> None:
    model = load(_file(tmp_path, STATED))
    assert (model.size_px, model.slices_max, model.slices_per_study(None)) == (64, 12, 4)
    about = model.as_json()
    assert (about["architecture"], about["image_size_px"], about["origin"], about["round"]) == (
        "lite-slices",
        64,
        "fresh",
        3,
    )
    assert about["calibrated"] is False
    assert load(_file(tmp_path, STATED), size_px=64, slices_max=12).size_px == 64


def test_a_file_that_says_no_size_needs_one_and_takes_it(tmp_path: Path) -> None:
    for description in (None, ModelDescription("lite-slices")):
        path = _file(tmp_path, description)
        with pytest.raises(EvaluationRefused, match="give --image-size"):
            load(path)
        with pytest.raises(EvaluationRefused, match="give --slices-max"):
            load(path, size_px=96)
        assert load(path, size_px=96, slices_max=20).size_px == 96


@pytest.mark.parametrize(
    ("description", "arguments", "sentence"),
    [
        (STATED, {"size_px": 128}, "expected --image-size 64, as the model was trained, got 128"),
        (STATED, {"slices_max": 24}, "expected --slices-max 12, as the model was trained, got 24"),
        (replace(STATED, pipeline=PIPELINE_VERSION + 1), {}, "image pipeline"),
        (replace(STATED, labels=("any", "other")), {}, "expected the labels"),
        (replace(STATED, architecture="lite"), {}, "expected a model of one of lite, got other tensors"),
        (replace(STATED, architecture="vgg"), {}, "expected an architecture of"),
        (replace(STATED, calibration="{}"), {}, "expected a calibration in the model file"),
        (replace(STATED, calibration=Calibrations(model="ab" * 32).to_json()), {}, "expected a calibration of model"),
    ],
)
def test_a_contradiction_is_refused_in_a_sentence(
    description: ModelDescription, arguments: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationRefused, match=sentence):
        load(_file(tmp_path, description), **arguments)


def test_the_slab_of_a_plan_is_not_contradicted(tmp_path: Path) -> None:
    with pytest.raises(EvaluationRefused, match="expected --slices-per-study 4, as the model was trained, got 0"):
        load(_file(tmp_path, STATED)).slices_per_study(0)
    assert load(_file(tmp_path, replace(STATED, plan_digest=""))).slices_per_study(8) == 8


def test_the_calibration_in_the_file_applies_and_another_one_takes_its_place(tmp_path: Path) -> None:
    digest = load_model(_file(tmp_path, STATED)).digest.hex()
    own, other = (Calibrations(Calibration((shift,) * 6), model=digest) for shift in (1.0, -2.0))
    path = _file(tmp_path, replace(STATED, calibration=own.to_json()))
    (tmp_path / "other.json").write_text(other.to_json())
    x = torch.rand(1, 3, CHANNELS, 64, 64, generator=torch.Generator().manual_seed(1))
    arguments = x, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, GEOMETRY)
    models = load(path), load(path, calibration=tmp_path / "other.json")
    plain = models[0].net.eval()(*arguments).slice_logits[..., 0]
    for model, shift in zip(models, (1.0, -2.0), strict=True):
        assert isinstance(model.calibrated, CalibratedNet)
        moved = model.calibrated.eval()(*arguments).slice_logits[..., 0]
        np.testing.assert_allclose(moved.detach(), plain.detach() + shift, atol=1e-5)
    assert models[0].as_json()["calibrated"] is True


def test_initial_weights_are_for_the_architecture_that_they_name(tmp_path: Path) -> None:
    architecture, model = load_initial(_file(tmp_path, ModelDescription("lite-slices")))
    assert architecture == "lite-slices"
    assert model.digest == model_of(build("lite-slices", 1)).digest
    with pytest.raises(EvaluationRefused, match="got no file"):
        load_initial(tmp_path / "missing")


def test_a_flipped_mean_answers_alike_for_an_image_and_its_mirror_image() -> None:
    net = FlippedMean(build("lite", 3)).eval()
    x = torch.rand(1, 4, CHANNELS, 48, 48, generator=torch.Generator().manual_seed(2))
    rest = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, GEOMETRY)
    with torch.inference_mode():
        straight, mirrored, plain = net(x, *rest), net(x.flip(-1), *rest), net.net(x, *rest)
    torch.testing.assert_close(straight.slice_logits, mirrored.slice_logits)
    torch.testing.assert_close(straight.study_logits, mirrored.study_logits)
    assert not torch.equal(straight.slice_logits, plain.slice_logits)
