"""From DICOM files and a model file to an answer, as a hospital types it."""

import json
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result
from federation.labels import LABELS
from federation.manifest import Manifest, Model, TensorSpec, save_model

from site_client.cli import main
from site_client.model.initial_weights import write_fresh
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes

SIZE = ("--image-size", "64", "--slices-max", "12", "--device", "cpu")


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "phantom"
    make_set(Order("C", 2, 5, Wishes(size_px=128, prevalence="balanced", difficulty=0.4)), folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "lite.safetensors"
    write_fresh("lite", 1, path)
    return path


def _site(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_every_study_and_slice_has_an_answer_beside_its_files(patients: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "answer.json"
    result = _site("predict", patients, "--model", model, *SIZE, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Research only.")
    assert "study 2: epidural 0." in result.output
    assert str(patients) not in result.output
    document = json.loads(out.read_text())
    named = [name for study in document["studies"] for entry in study["slices"] for name in entry["files"]]
    assert sorted(named) == sorted(str(path.relative_to(patients)) for path in (patients / "dicom").rglob("*.dcm"))
    for study in document["studies"]:
        for probabilities in (study["study"], *study["slices"]):
            assert all(0 <= probabilities[label] <= probabilities["any"] <= 1 for label in LABELS)
    assert out.stat().st_mode & 0o077 == 0


def test_a_submission_has_six_rows_an_image_and_the_answers_of_the_json(
    patients: Path, model: Path, tmp_path: Path
) -> None:
    out, table = tmp_path / "answer.json", tmp_path / "submission.csv"
    asked = ("predict", patients, "--model", model, *SIZE, "--flip", "--threads", "1")
    result = _site(*asked, "--out", out, "--submission", table, "--heat-maps", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["study-1.png", "study-2.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "maps").iterdir())
    header, *lines = table.read_text().splitlines()
    assert header == "ID,Label"
    answers = dict(line.split(",") for line in lines)
    assert len(answers) == len(lines) == 6 * len(list((patients / "dicom").rglob("*.dcm")))
    for study in json.loads(out.read_text())["studies"]:
        for entry in study["slices"]:
            for name in entry["files"]:
                uid = pydicom.dcmread(patients / name, stop_before_pixels=True).SOPInstanceUID
                for label in LABELS:
                    assert float(answers[f"ID_{uid}_{label}"]) == pytest.approx(entry[label], abs=1e-6)


def test_a_folder_without_a_usable_study_has_exit_status_2(model: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no image")
    result = _site("predict", tmp_path, "--model", model, *SIZE)
    assert result.exit_code == 2
    assert "expected a head CT that can be used, got none in 1 files" in result.output
    for asked in (("evaluate", "--model", model, *SIZE), ("benchmark", "--arms", "lite")):
        result = _site(*asked, "--data", tmp_path, "--out", tmp_path / "out", "--threads", "1")
        assert result.exit_code == 2
        assert "expected a folder with head CT studies" in result.output


def _another_visit(patients: Path, folder: Path) -> Path:
    """The same patients' other studies: every UID is new, and so every byte that could be compared."""
    folder.mkdir()
    studies = set()
    for path in sorted((patients / "dicom").rglob("*.dcm")):
        file = pydicom.dcmread(path)
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(file, name, getattr(file, name)[:60] + ".9.9")
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
        file.save_as(folder / f"{file.SOPInstanceUID}.dcm")
        studies.add(file.StudyInstanceUID)
    (folder / "labels.csv").write_text("StudyInstanceUID,any\n" + "".join(f"{uid},0\n" for uid in studies))
    return folder


def test_an_evaluation_set_that_shares_a_patient_with_training_is_refused(
    patients: Path, model: Path, tmp_path: Path
) -> None:
    asked = ("evaluate", "--data", patients, "--model", model, "--out", tmp_path, *SIZE)
    shared = _site(*asked, "--training-data", _another_visit(patients, tmp_path / "trained-on"))
    assert shared.exit_code == 1
    assert "expected no patient both in training and in validation, got 2" in shared.output
    assert not (tmp_path / "evaluation.html").exists()
    alone = _site(*asked)
    assert alone.exit_code == 0, alone.output
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["studies"]["rows"] == 2
    assert "Synthetic" in report["notice"]
    assert "Synthetic patients" in (tmp_path / "evaluation.html").read_text()


@pytest.fixture(scope="module")
def own_patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site.toml whose export and labels are a phantom's, with a catalog of them."""
    folder = tmp_path_factory.mktemp("site")
    make_set(Order("C", 8, 3, Wishes(size_px=96, thickness_mm=7.0, prevalence="balanced")), folder / "export")
    folders = "".join(f'{name} = "{name}"\n' for name in ("state", "spool", "export", "cache"))
    config = folder / "site.toml"
    config.write_text(f'name = "mercy"\n[folders]\n{folders}[ingest]\nsettle_s = 0\n[training]\nthreads = 1\n')
    scanned = _site("catalog", "--config", config)
    assert scanned.exit_code == 0, scanned.output
    return config


def test_calibrated_log_odds_are_the_networks_own_shifted_and_divided(
    own_patients: Path, patients: Path, model: Path, tmp_path: Path
) -> None:
    by, plain, moved = (tmp_path / name for name in ("by.json", "plain.json", "moved.json"))
    made = _site("calibrate", "--model", model, "--out", by, "--config", own_patients, *SIZE)
    assert made.exit_code == 0, made.output
    # Eight patients fit no temperature, and half of them bleed as in training: a rule that moves something is put in.
    written = json.loads(by.read_text())
    rule = written["studies"] | {
        "offset": [0.5, -1.0, 2.0, 0.0, 1.0, 0.1],
        "temperature": [2.0, 0.5, 1.0, 1.5, 1.0, 3.0],
    }
    by.write_text(json.dumps(written | {"studies": rule}))
    assert _site("predict", patients, "--model", model, *SIZE, "--out", plain).exit_code == 0
    asked = _site("predict", patients, "--model", model, *SIZE, "--out", moved, "--calibration", by)
    assert asked.exit_code == 0, asked.output
    before, after = (json.loads(path.read_text()) for path in (plain, moved))
    assert (before["model"]["calibrated"], after["model"]["calibrated"]) == (False, True)
    for one, other in zip(before["studies"], after["studies"], strict=True):
        for label, offset, temperature in zip(LABELS[:-1], rule["offset"], rule["temperature"], strict=False):
            expected = (_log_odds(one["study"][label]) + offset) / temperature
            assert _log_odds(other["study"][label]) == pytest.approx(expected, abs=0.01)


def test_a_calibration_of_other_weights_or_of_nothing_is_refused_in_a_sentence(
    own_patients: Path, patients: Path, model: Path, tmp_path: Path
) -> None:
    other, by, odd = tmp_path / "other.safetensors", tmp_path / "by.json", tmp_path / "odd.json"
    write_fresh("lite", 2, other)
    assert _site("calibrate", "--model", other, "--out", by, "--config", own_patients, *SIZE).exit_code == 0
    odd.write_text("{}")
    for wrong, sentence in ((by, "expected a calibration of model"), (odd, "got something else in 'odd.json'")):
        result = _site("predict", patients, "--model", model, *SIZE, "--calibration", wrong)
        assert result.exit_code == 1
        assert sentence in result.output


def _log_odds(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def test_a_model_of_other_tensors_is_refused_in_a_sentence(patients: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_model(path, Model(Manifest((TensorSpec("x", (3,)),)), np.zeros(3, np.float32)))
    result = _site("predict", patients, "--model", path, *SIZE)
    assert result.exit_code == 1
    assert "expected a model of one of" in result.output


@pytest.mark.real_data
def test_a_real_head_passes_through_the_whole_path(model: Path, tmp_path: Path) -> None:
    root = os.environ.get("HEMOFED_REAL_DATA")
    if root is None:
        pytest.skip("HEMOFED_REAL_DATA names no folder of real DICOM")
    out = tmp_path / "answer.json"
    result = _site("predict", Path(root) / "dcm_qa_ct" / "In" / "GE", "--model", model, "--device", "cpu", "--out", out)
    assert result.exit_code == 0, result.output
    (study,) = json.loads(out.read_text())["studies"]
    assert len(study["slices"]) == 28  # 4 and 7 mm slices, 1.08 mm apart where the blocks meet
    assert all(0 <= entry[label] <= entry["any"] <= 1 for entry in study["slices"] for label in LABELS)
