"""A folder in the form of the RSNA 2019 challenge goes through the benchmark as it was downloaded."""

import csv
import hashlib
import json
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom import dcmread

from site_client.cli import main
from site_client.phantom.dataset import Order, make_set
from site_client.phantom.study import Wishes

STUDIES = 8
# RSNA's files have none of these.
LACKING = ("SOPClassUID", "SliceThickness", "ImageType", "FrameOfReferenceUID", "ConvolutionKernel", "Manufacturer")


def _rsna_id(uid: str) -> str:
    return f"ID_{hashlib.sha256(uid.encode()).hexdigest()[:9]}"


@pytest.fixture
def rsna(tmp_path: Path) -> Path:
    """Phantom studies under RSNA's names and headers; the table has one image twice, and one image ends early."""
    made, folder = tmp_path / "made", tmp_path / "rsna"
    wishes = Wishes(size_px=64, thickness_mm=10.0, prevalence="balanced", difficulty=0.3)
    make_set(Order("S", STUDIES, 4, wishes), made)
    (folder / "stage_2_train").mkdir(parents=True)
    for path in (made / "dicom").rglob("*.dcm"):
        file = dcmread(path)
        name = _rsna_id(file.SOPInstanceUID)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydicom about such UIDs
            for tag in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
                setattr(file, tag, _rsna_id(getattr(file, tag)))
            file.file_meta.MediaStorageSOPInstanceUID = name
            del file.file_meta.MediaStorageSOPClassUID
            for tag in LACKING:
                if tag in file:
                    delattr(file, tag)
            file.save_as(folder / "stage_2_train" / f"{name}.dcm", enforce_file_format=False)
    with (made / "slice_map.csv").open() as table:
        names = {row["ID"]: _rsna_id(row["SOPInstanceUID"]) for row in csv.DictReader(table)}
    with (made / "labels_slices.csv").open() as table:
        rows = [(*row["ID"].rsplit("_", 1), row["Label"]) for row in csv.DictReader(table)]
    lines = [f"{names[image]}_{label},{value}" for image, label, value in rows]
    (folder / "stage_2_train.csv").write_text("\n".join(["ID,Label", *lines, *lines[:6]]) + "\n")
    short = min((folder / "stage_2_train").iterdir())
    short.write_bytes(short.read_bytes()[:-200])
    return folder


def test_the_folder_of_the_challenge_runs_unchanged_without_the_study_of_its_short_image(
    rsna: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--image-size", "32", "--slices-max", "8", "--epochs", "1", "--validation", "0.5", "--threads", "1")
    result = CliRunner().invoke(
        main,
        ["benchmark", "--data", str(rsna), "--arms", "lite-slices", *options, "--device", "cpu", "--out", str(out)],
    )
    assert result.exit_code == 0, result.output
    report = json.loads((out / "benchmark.json").read_text())
    assert not report["origin"]["synthetic"]
    assert report["training"]["studies"] + report["validation"]["studies"] == STUDIES - 1
    assert [arm["arm"] for arm in report["arms"]] == ["position", "position + histogram", "lite-slices"]
