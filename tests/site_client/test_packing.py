"""From a model to a bundle: exported graphs answer as the network, packing is measured, one key signs."""

import json
import os
import stat
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from federation.description import ModelDescription
from federation.labels import LABELS
from numpy.typing import NDArray
from torch import nn

from site_client.bedside.bundle import read_bundle, signer_of
from site_client.bedside.cli import main as predict_main
from site_client.bedside.graphs import PackedModel
from site_client.calibration.model import CalibratedNet, Calibration, Calibrations
from site_client.cli import main
from site_client.errors import BundleRefused, StateRefused
from site_client.inference.model_file import LoadedModel
from site_client.inference.scores import Scored
from site_client.inference.scoring import ScoredStudies
from site_client.ingest.pseudonym import load_secret
from site_client.model.backbones import Pooled
from site_client.model.initial_weights import write_fresh
from site_client.model.layers import Affine, StandardizedConv2d, with_plain_convolutions
from site_client.model.network import CHANNELS, SequenceHead, SequenceNet
from site_client.model.recurrence import RecurrenceName
from site_client.packing.export import export
from site_client.packing.key import packing_key
from site_client.packing.pack import pack
from site_client.packing.quality import quality_of
from site_client.packing.quantize import quantize
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.compute import choose
from site_client.training.data import Loader, Split

SIZE = ("--image-size", "48", "--slices-max", "8")
CALIBRATIONS = Calibrations(
    Calibration((0.5, -1.0, 2.0, 0.0, 1.0, -3.0), (2.0, 0.5, 1.0, 1.5, 1.0, 3.0), tuple([(0.1,) * 6, (-0.2,) * 6] * 5)),
    Calibration((0.1,) * 6, (1.2,) * 6),
)


def small_net(recurrence: RecurrenceName | None) -> SequenceNet:
    torch.manual_seed(2)
    trunk = nn.Sequential(
        Affine(CHANNELS),
        StandardizedConv2d(CHANNELS, 8, kernel_size=3, stride=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        StandardizedConv2d(8, 8, kernel_size=3, padding=1, bias=False),
        Affine(8),
    )
    head = SequenceHead(16, width=8, hidden=4, layers=2, recurrence=recurrence, dropout=0.3)
    net = SequenceNet(Pooled(trunk, peaks=True), head)
    with torch.no_grad():
        for parameter in net.parameters():  # the last layers start so small that a wrong one would not be seen
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval()


@pytest.mark.parametrize("recurrence", ["gru", "lstm", "gru-sep", None])
def test_the_graphs_answer_as_the_calibrated_network_for_any_number_of_slices(
    recurrence: RecurrenceName | None,
) -> None:
    net = small_net(recurrence)
    packed = PackedModel(*export(net, CALIBRATIONS, 24), threads=1)
    generator = torch.Generator().manual_seed(3)
    for slices in (1, 2, 7, 20):
        x = torch.rand(1, slices, CHANNELS, 24, 24, generator=generator) * 2 - 1
        geometry = torch.rand(1, slices, 4, generator=generator)
        with torch.inference_mode():
            expected = CalibratedNet(net, CALIBRATIONS)(x, torch.ones(1, slices, dtype=torch.bool), geometry)
        of_slices, of_study = packed.logits(packed.features(x[0].numpy()[:, None]), geometry[0].numpy())
        np.testing.assert_allclose(of_slices, expected.slice_logits[0].numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(of_study, expected.study_logits[0].numpy(), rtol=1e-4, atol=1e-5)
        assert (of_slices[:, -1:] >= of_slices).all()
        assert (of_study[-1] >= of_study).all()


def test_a_recurrence_that_onnx_has_no_operator_for_is_refused() -> None:
    with pytest.raises(BundleRefused, match="pack one with gru, lstm or gru-sep"):
        export(small_net("mingru"), CALIBRATIONS, 24)


def test_a_model_of_a_run_that_permits_no_packing_is_refused_before_anything_is_exported() -> None:
    model = LoadedModel(ModelDescription("lite", packing="refused"), "00", small_net(None), CALIBRATIONS)
    compute = choose("cpu", 1, 24)
    loader = Loader(cast(StudyCache, None), Augmentation(), compute.device, 0)  # no image is read
    with pytest.raises(BundleRefused, match="does not permit packing"):
        pack(model, Split((), ()), loader, compute, 1)


def test_plain_convolutions_have_the_standardized_kernels_and_the_bias() -> None:
    torch.manual_seed(4)
    trunk = nn.Sequential(StandardizedConv2d(3, 4, kernel_size=3, stride=2, padding=1), nn.ReLU())
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(2, 3, 9, 9)
    expected = trunk(x)
    plain = with_plain_convolutions(trunk)
    assert not any(isinstance(layer, StandardizedConv2d) for layer in plain.modules())
    torch.testing.assert_close(plain(x), expected)


def test_int8_stays_near_the_trunk_in_float32_and_is_smaller() -> None:
    whole, head = export(small_net(None), CALIBRATIONS, 24)
    slices = [np.random.default_rng(seed).random((1, CHANNELS, 24, 24), np.float32) * 2 - 1 for seed in range(4)]
    packed = quantize(whole, slices)
    assert b"QuantizeLinear" in packed
    assert b"QuantizeLinear" not in whole
    exact, near = (PackedModel(graph, head, 1).features(slices) for graph in (whole, packed))
    error = float(np.linalg.norm(near - exact) / np.linalg.norm(exact))
    assert 0 < error < 0.1


def scored(probabilities: NDArray[np.float64]) -> ScoredStudies:
    """Forty patients of one study each; the first twenty have a subdural bleed."""
    labels = np.zeros((40, len(LABELS)), np.int8)
    labels[:20, [4, 5]] = 1
    values = np.full((40, len(LABELS)), 0.1)
    values[:, [4, 5]] = probabilities[:, None]
    of_studies = Scored(values, labels, np.arange(40))
    none = Scored(np.empty((0, 6)), np.empty((0, 6), np.int8), np.empty(0, np.int64))
    return ScoredStudies(none, of_studies, 0.0, 0.0)


def test_a_loss_of_auc_beyond_the_limit_is_refused_and_a_smaller_one_is_written_down() -> None:
    right = np.concatenate([np.linspace(0.5, 0.9, 20), np.linspace(0.1, 0.45, 20)])
    same = quality_of(scored(right), scored(right))
    same.refuse_a_loss()
    assert same.worst == ("subdural by studies", 0.0)
    swapped = right.copy()
    swapped[[0, 20 + 19]] = swapped[[20 + 19, 0]]  # one of 400 pairs changes its order
    slightly = quality_of(scored(right), scored(swapped))
    slightly.refuse_a_loss()
    assert slightly.worst is not None
    assert slightly.worst[1] == pytest.approx(-0.0025)
    swapped[[0, 1, 20, 21]] = swapped[[20, 21, 0, 1]]
    with pytest.raises(BundleRefused, match=r"within 0\.005 .* got -0\.1000 for subdural by studies;"):
        quality_of(scored(right), scored(swapped)).refuse_a_loss()
    figures = json.loads(json.dumps(slightly.as_json()))["studies"]["auc"]
    assert figures.keys() == {"subdural", "any"}  # the other labels have no positive
    assert figures["any"]["before"]["value"] == 1.0
    assert figures["any"]["after"]["low"] < figures["any"]["after"]["value"] == pytest.approx(0.9975)


def test_a_loss_that_no_label_can_show_is_refused() -> None:
    few = scored(np.linspace(0.1, 0.9, 40))
    few.studies.labels[9:] = 0
    with pytest.raises(BundleRefused, match="expected a label with 10 positives among the validation patients, got n"):
        quality_of(few, few).refuse_a_loss()


def test_the_packing_key_is_made_once_for_its_owner_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "trainer"
    first = packing_key(folder).public_key().public_bytes_raw()
    assert packing_key(folder).public_key().public_bytes_raw() == first
    path = folder / "packing.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"short")
    with pytest.raises(StateRefused, match="expected a key of 32 bytes"):
        packing_key(folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with site.toml, a catalog of phantoms, a model and its calibration."""
    folder = tmp_path_factory.mktemp("site")
    make_set(Order("C", 6, 3, Wishes(size_px=96, thickness_mm=8.0, prevalence="balanced")), folder / "export")
    folders = "".join(f'{name} = "{name}"\n' for name in ("state", "spool", "export", "cache"))
    training = "[training]\nthreads = 1\nvalidation_fraction = 0.5\n"
    (folder / "site.toml").write_text(f'name = "mercy"\n[folders]\n{folders}[ingest]\nsettle_s = 0\n{training}')
    write_fresh("lite", 1, folder / "lite.safetensors")
    # A fixed secret: otherwise chance would split the patients, and could leave a side empty.
    load_secret(folder / "state" / "trainer" / "pseudonym.key", lambda count: bytes(range(count)))
    assert _site(folder, "catalog").exit_code == 0
    made = _site(folder, "calibrate", "--model", folder / "lite.safetensors", *SIZE, "--out", folder / "by.json")
    assert made.exit_code == 0, made.output
    return folder


def _site(folder: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--config", str(folder / "site.toml")])


def _pack(folder: Path, *arguments: str | Path) -> Result:
    return _site(folder, "pack", "--model", folder / "lite.safetensors", *SIZE, *arguments)


def test_a_bundle_of_a_site_holds_its_measures_and_answers_near_the_model(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.hemofed"
    result = _pack(site, "--calibration", site / "by.json", "--out", path, "--force")
    assert result.exit_code == 0, result.output
    signer = result.output.splitlines()[-1]
    bundle = read_bundle(path, signer_of(signer))
    assert bundle.description.calibration == (site / "by.json").read_text().rstrip("\n")
    assert bundle.description.model == json.loads((site / "by.json").read_text())["model"]
    quality = bundle.description.quality
    assert quality["studies"]["rows"] == quality["patients"] > 0
    for level in ("slices", "studies"):
        losses = quality[level]["log_loss"]
        change = losses["after"]["value"] - losses["before"]["value"]
        assert losses["difference"]["value"] == pytest.approx(change)
        assert abs(change) < 0.01
    packed, own = tmp_path / "packed.json", tmp_path / "own.json"
    export_folder = str(site / "export")
    asked = (export_folder, "--bundle", str(path), "--signer", signer, "--out", str(packed))
    assert CliRunner().invoke(predict_main, asked).exit_code == 0
    model = ("--model", str(site / "lite.safetensors"), "--calibration", str(site / "by.json"), "--device", "cpu")
    assert CliRunner().invoke(main, ["predict", export_folder, *model, *SIZE, "--out", str(own)]).exit_code == 0
    for here, there in zip(
        json.loads(packed.read_text())["studies"], json.loads(own.read_text())["studies"], strict=True
    ):
        assert [here["study"][label] for label in LABELS] == pytest.approx(
            [there["study"][label] for label in LABELS], abs=0.03
        )


def test_packing_with_a_loss_or_without_a_calibration_is_refused_and_writes_nothing(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.hemofed"
    for arguments, sentence in (
        # Of an untrained network int8 changes the order of slices.
        (("--calibration", site / "by.json"), "or give --force"),
        ((), "expected a calibrated model, got none; run `hemofed-site calibrate`"),
    ):
        result = _pack(site, "--out", path, *arguments)
        assert result.exit_code == 1
        assert sentence in result.output
    assert os.listdir(tmp_path) == []
