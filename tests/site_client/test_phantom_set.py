"""A set on disk: its layout, its bytes, its files, and what its label files promise."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from federation.labels import LABELS
from pydicom.dataset import FileDataset

from site_client.errors import PhantomRefused
from site_client.ingest.series.content import assess, measure
from site_client.phantom.command import phantom
from site_client.phantom.dataset import Order, make_set, visits
from site_client.phantom.profiles import PROFILES
from site_client.phantom.study import Wishes
from site_client.phantom.truth import labels_of
from site_client.phantom.truth import measure as measure_masks

SMALL = Wishes(size_px=96, thickness_mm=7.0, prevalence="balanced", difficulty=0.5)


@pytest.fixture(scope="module")
def trauma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "T"
    make_set(Order("T", 4, 11, SMALL, twins=True), out)
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def series_of(folder: Path) -> dict[str, list[FileDataset]]:
    series_by_uid: dict[str, list[FileDataset]] = {}
    for path in sorted((folder / "dicom").rglob("*.dcm")):
        ds = pydicom.dcmread(path)
        series_by_uid.setdefault(str(ds.StudyInstanceUID), []).append(ds)
    for series in series_by_uid.values():
        series.sort(key=along)
    return series_by_uid


def along(ds: FileDataset) -> float:
    orientation = np.array(ds.ImageOrientationPatient, dtype=float)
    return float(np.cross(orientation[:3], orientation[3:]) @ np.array(ds.ImagePositionPatient, dtype=float))


def hu_of(ds: FileDataset) -> np.ndarray:
    stored: np.ndarray = np.clip(ds.pixel_array.astype(int) + int(ds.RescaleIntercept), -1024, 3071)
    return stored.astype(np.int16)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(lines))


def test_two_workers_write_the_same_bytes_as_one(trauma: Path, tmp_path: Path) -> None:
    make_set(Order("T", 4, 11, SMALL, twins=True), tmp_path / "again", workers=2)
    assert files_of(tmp_path / "again") == files_of(trauma)


def test_another_seed_writes_other_patients(trauma: Path, tmp_path: Path) -> None:
    make_set(Order("T", 1, 12, SMALL), tmp_path / "other")
    assert not set(series_of(tmp_path / "other")) & set(series_of(trauma))


def test_the_layout_is_the_one_of_the_specification(trauma: Path) -> None:
    assert {path.name for path in trauma.iterdir()} == {
        "manifest.json",
        "dicom",
        "labels_slices.csv",
        "slice_map.csv",
        "labels_studies.csv",
        "hidden",
    }
    for path in (trauma / "dicom").rglob("*.dcm"):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        parents = [parent.name for parent in path.parents][:3]
        assert parents == [ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.PatientID]
    manifest = json.loads((trauma / "manifest.json").read_text())
    assert set(manifest["studies"]) == set(series_of(trauma))


def test_every_slice_has_six_label_rows_and_one_line_in_the_map(trauma: Path) -> None:
    slices = {str(ds.SOPInstanceUID) for series in series_of(trauma).values() for ds in series}
    mapped = {row["ID"]: row["SOPInstanceUID"] for row in rows_of(trauma / "slice_map.csv")}
    assert set(mapped.values()) == slices
    named = Counter(row["ID"].rpartition("_")[0] for row in rows_of(trauma / "labels_slices.csv"))
    assert named == dict.fromkeys(mapped, 6)
    labels = [row["ID"].rpartition("_")[2] for row in rows_of(trauma / "labels_slices.csv")]
    assert tuple(labels[:6]) == LABELS


def test_hidden_masks_give_the_true_labels_back(trauma: Path) -> None:
    for path in (trauma / "hidden").glob("*.npz"):
        with np.load(path) as hidden:
            masks = np.stack(
                [hidden.get(f"mask_{name}", np.zeros((len(hidden["ml"]), 96, 96), np.uint8)) for name in LABELS[:-1]]
            )
            ml, area = measure_masks(masks, float(hidden["pixel_mm"]), hidden["thickness_mm"])
            assert np.array_equal(labels_of(ml, area, hidden["contrast_hu"]), hidden["slice_labels"])


def test_study_labels_agree_with_the_hidden_truth(trauma: Path) -> None:
    seen = set()
    for row in rows_of(trauma / "labels_studies.csv"):
        with np.load(trauma / "hidden" / f"{row['StudyInstanceUID']}.npz") as hidden:
            truth = hidden["slice_labels"].max(axis=0)
        assert [int(row[label]) for label in LABELS] == truth.tolist()
        seen.add(int(truth[-1]))
    assert seen == {0, 1}


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_series_is_an_ordered_head_in_hounsfield_units(profile: str, tmp_path: Path) -> None:
    make_set(Order(profile, 1, 5, Wishes(size_px=128, thickness_mm=5.0)), tmp_path / "set")
    (series,) = series_of(tmp_path / "set").values()
    spacing = (float(series[0].PixelSpacing[0]), float(series[0].PixelSpacing[1]))
    assert np.diff([along(ds) for ds in series]) == pytest.approx(5.0, abs=1e-3)
    assert all(ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2" and ds.Modality == "CT" for ds in series)
    middle = series[len(series) // 3 : 2 * len(series) // 3]
    assert assess([measure(hu_of(ds), spacing) for ds in middle]) == ()


def test_a_tilted_gantry_shows_in_orientation_and_shears_the_stack(tmp_path: Path) -> None:
    make_set(Order("T", 1, 5, SMALL), tmp_path / "set")
    (series,) = series_of(tmp_path / "set").values()
    assert abs(float(series[0].ImageOrientationPatient[5])) > np.sin(np.deg2rad(7))
    first, second = (np.array(ds.ImagePositionPatient, dtype=float) for ds in series[:2])
    assert (second - first)[:2] == pytest.approx([0, 0], abs=1e-6)


def test_a_twin_differs_in_the_lesion_only(trauma: Path) -> None:
    series = series_of(trauma)
    pairs = 0
    for path in (trauma / "hidden").glob("*.npz"):
        with np.load(path) as hidden:
            twin, positive = str(hidden["twin"]), bool(hidden["slice_labels"].any())
        if twin and positive:
            pairs += 1
            own, other = series[path.stem], series[twin]
            for ours, theirs in zip(own, other, strict=True):
                assert {e.keyword for e in ours if e != theirs[e.tag]} <= {
                    "SOPInstanceUID",
                    "StudyInstanceUID",
                    "SeriesInstanceUID",
                    "FrameOfReferenceUID",
                    "AccessionNumber",
                    "PixelData",
                }
            assert any(ours.PixelData != theirs.PixelData for ours, theirs in zip(own, other, strict=True))
    assert pairs


def test_another_scanner_sees_the_same_lesions(tmp_path: Path) -> None:
    for scanner in ("T", "S"):
        make_set(Order("T", 3, 4, SMALL, render_as=scanner), tmp_path / scanner)
    lesions = []
    for scanner in ("T", "S"):
        drawn = set()
        for path in (tmp_path / scanner / "hidden").glob("*.npz"):
            with np.load(path) as hidden:
                drawn.add((path.stem, str(hidden["lesions"])))
        lesions.append(drawn)
    assert lesions[0] == lesions[1]
    assert any(text != "[]" for _, text in lesions[0])


def test_eight_percent_of_patients_come_twice_and_never_thrice() -> None:
    counts = Counter(visit.patient for visit in visits(Order("C", 4000, 1)))
    assert set(counts.values()) == {1, 2}
    assert sum(n == 2 for n in counts.values()) / len(counts) == pytest.approx(0.08, abs=0.02)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("")
    with pytest.raises(PhantomRefused, match="not empty"):
        make_set(Order("T", 1, 1, SMALL), tmp_path)


@pytest.mark.parametrize(
    "order",
    [Order("X", 1, 1), Order("T", 0, 1), Order("T", 1, 1, Wishes(size_px=8)), Order("T", 1, 1, Wishes(difficulty=0))],
)
def test_an_order_that_cannot_be_filled_is_refused(order: Order, tmp_path: Path) -> None:
    with pytest.raises(PhantomRefused, match="expected"):
        make_set(order, tmp_path)


def test_the_command_writes_a_set(tmp_path: Path) -> None:
    arguments = ["--profile", "C", "--studies", "1", "--seed", "1", "--out", str(tmp_path / "c"), "--size-px", "64"]
    result = CliRunner().invoke(phantom, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "c" / "manifest.json").exists()
