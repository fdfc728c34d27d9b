"""Answers without torch: equal inputs, bundles signed byte for byte, and the program `hemofed-predict`."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.labels import LABELS
from numpy.typing import NDArray

from site_client.bedside.bundle import INTENDED_USE, Bundle, BundleDescription, read_bundle, signer_of, write_bundle
from site_client.bedside.cli import main
from site_client.bedside.folder import StudyAnswer, predict_folder
from site_client.bedside.graphs import PackedModel
from site_client.calibration.model import Calibrations
from site_client.cli import main as site_main
from site_client.errors import BundleRefused
from site_client.inference.patients import read_folder
from site_client.ingest.series.volume import read_volume
from site_client.model.initial_weights import write_fresh
from site_client.model.inputs import PIPELINE_VERSION, PreparedStudy, network_input
from site_client.model.network import SequenceNet
from site_client.model.registry import build
from site_client.packing.export import export
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.data import Loader, input_of

SIZE_PX, SLICES_MAX = 48, 8
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
SIGNER = KEY.public_key().public_bytes_raw().hex()


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "phantom"
    make_set(Order("C", 2, 5, Wishes(size_px=96, thickness_mm=7.0, prevalence="balanced")), folder)
    return folder


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    net = build("lite", 1)
    # the registry has a SequenceNet under this name
    assert isinstance(net, SequenceNet)
    trunk, head = export(net, Calibrations(), SIZE_PX)
    description = BundleDescription(
        INTENDED_USE,
        "lite",
        "00" * 32,
        SIZE_PX,
        SLICES_MAX,
        PIPELINE_VERSION,
        LABELS,
        Calibrations().to_json(),
        {"patients": 0},
        len(trunk),
        len(head),
    )
    return Bundle(description, trunk, head)


def _predict(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_input_of_every_slice_is_bit_for_bit_that_of_training(patients: Path, tmp_path: Path) -> None:
    inputs: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def ask(prepared: PreparedStudy) -> StudyAnswer:
        slices = [network_input(prepared.windows, slice(place, place + 1)) for place in range(prepared.slices)]
        inputs.append((np.concatenate(slices), prepared.geometry))
        return StudyAnswer(np.zeros(6), np.zeros((prepared.slices, 6)))

    answered = predict_folder(ask, patients, SIZE_PX, SLICES_MAX).predictions
    by_files = {tuple(sum(prediction.files, ())): inputs[place] for place, prediction in enumerate(answered)}
    cache = StudyCache(tmp_path / "cache", 1 << 30, SIZE_PX, SLICES_MAX, read_volume)
    loader = Loader(cache, Augmentation(), torch.device("cpu"))
    studies = read_folder(patients, tmp_path)
    assert len(studies) == len(by_files) == 2
    for study in studies:
        x, geometry = by_files[study.series.files]
        sample = loader.sample(study, None)
        assert x.tobytes() == sample.x[0].numpy().tobytes()
        assert geometry.tobytes() == sample.geometry[0].numpy().tobytes()


def test_every_byte_of_a_window_becomes_the_number_that_training_makes_of_it() -> None:
    windows = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    prepared = PreparedStudy(windows, np.zeros((1, 4), np.float32), (range(1),))
    assert network_input(windows).tobytes() == input_of(prepared, torch.device("cpu")).numpy().tobytes()


def test_a_bundle_comes_back_as_it_was_written(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "study.hemofed"
    write_bundle(path, bundle, KEY)
    assert read_bundle(path, KEY.public_key()) == bundle
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_bundle_with_a_changed_byte_or_length_or_another_signer_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "study.hemofed"
    write_bundle(path, bundle, KEY)
    whole = path.read_bytes()
    # Of magic, signature, length, description, both graphs, and the last byte.
    places = [0, 17, 18, 81, 82, 85, 86, 400, len(whole) // 2, len(whole) - len(bundle.head), len(whole) - 1]
    changed = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in places]
    for raw in (*changed, whole[:-1], whole + b"\x00", whole[:90], whole[:10], b""):
        path.write_bytes(raw)
        with pytest.raises(BundleRefused, match=r"^expected a bundle"):
            read_bundle(path, KEY.public_key())
    path.write_bytes(whole)
    with pytest.raises(BundleRefused, match="another signer"):
        read_bundle(path, Ed25519PrivateKey.generate().public_key())


def test_a_bundle_of_another_pipeline_or_of_other_labels_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "study.hemofed"
    others = (
        (replace(bundle.description, pipeline=PIPELINE_VERSION + 1), "image pipeline"),
        (replace(bundle.description, labels=LABELS[::-1]), "expected the labels"),
    )
    for description, sentence in others:
        write_bundle(path, replace(bundle, description=description), KEY)
        with pytest.raises(BundleRefused, match=sentence):
            read_bundle(path, KEY.public_key())


def test_a_graph_that_the_runtime_cannot_read_and_a_signer_that_is_no_key_are_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleRefused, match="graphs that ONNX Runtime reads"):
        PackedModel(b"no graph", bundle.head, 1)
    for text in ("", "00", "zz" * 32, SIGNER + "00"):
        with pytest.raises(BundleRefused, match="64 hex digits"):
            signer_of(text)


def test_the_program_answers_as_the_network_does_and_names_no_patient(
    bundle: Bundle, patients: Path, tmp_path: Path
) -> None:
    packed, model, out, table = (tmp_path / name for name in ("a.hemofed", "a.safetensors", "a.json", "a.csv"))
    write_bundle(packed, bundle, KEY)
    asked = (patients, "--bundle", packed, "--signer", SIGNER, "--threads", "1")
    result = _predict(*asked, "--out", out, "--table", table)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Research only.")
    assert str(patients) not in result.output + table.read_text()
    assert out.stat().st_mode & 0o077 == table.stat().st_mode & 0o077 == 0
    answered = json.loads(out.read_text())
    assert answered["model"]["intended_use"].startswith("Research only. Not for clinical use")
    write_fresh("lite", 1, model)
    size = ("--image-size", str(SIZE_PX), "--slices-max", str(SLICES_MAX), "--device", "cpu")
    in_torch = ("predict", str(patients), "--model", str(model), *size, "--out", str(tmp_path / "b.json"))
    assert CliRunner().invoke(site_main, in_torch).exit_code == 0
    expected = json.loads((tmp_path / "b.json").read_text())
    for study, other in zip(answered["studies"], expected["studies"], strict=True):
        for here, there in zip((study["study"], *study["slices"]), (other["study"], *other["slices"]), strict=True):
            assert here.get("files") == there.get("files")
            assert [here[label] for label in LABELS] == pytest.approx([there[label] for label in LABELS], abs=2e-5)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["slice"] for row in rows if row["study"] == "1"] == [
        str(place) for place in range(len(answered["studies"][0]["slices"]) + 1)
    ]
    assert float(rows[0]["any"]) == answered["studies"][0]["study"]["any"]


def test_a_folder_without_a_study_ends_with_2_and_a_changed_bundle_with_1(bundle: Bundle, tmp_path: Path) -> None:
    packed, empty = tmp_path / "study.hemofed", tmp_path / "empty"
    empty.mkdir()
    write_bundle(packed, bundle, KEY)
    nothing = _predict(empty, "--bundle", packed, "--signer", SIGNER)
    assert (nothing.exit_code, "got none in 0 files" in nothing.output) == (2, True)
    packed.write_bytes(packed.read_bytes()[:-1])
    changed = _predict(empty, "--bundle", packed, "--signer", SIGNER)
    assert (changed.exit_code, "got changed bytes or another signer" in changed.output) == (1, True)
