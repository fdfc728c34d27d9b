"""A phantom set in the npz format as studies: no DICOM is written and read for a set that is only trained on."""

import csv
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
from federation.labels import LABELS, MISSING
from numpy.typing import NDArray

from site_client.errors import EvaluationRefused
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume, read_volume
from site_client.phantom.arrays import read_arrays


def is_array_set(folder: Path) -> bool:
    """Tell whether the folder is one of `hemofed-site phantom --format npz`."""
    return (folder / "npz").is_dir()


def read_array_set(folder: Path) -> tuple[StudyRecord, ...]:
    """Read the studies of a phantom set with its delivered labels; pixels are read by `read_series`.

    Raises:
        EvaluationRefused: A table lacks a row or a column.
    """
    try:
        slices = _slices_by_study(folder)
        labels = _slice_labels(folder / "labels_slices.csv")
        with (folder / "labels_studies.csv").open() as file:
            rows = list(csv.DictReader(file))
        return tuple(_record(folder, row, slices[row["StudyInstanceUID"]], labels) for row in rows)
    except (OSError, KeyError, ValueError) as error:
        raise EvaluationRefused(
            f"expected the tables of `hemofed-site phantom --format npz` in {folder.name!r}, got others; make it anew"
        ) from error


def read_series(series: SeriesRecord) -> Volume:
    """Read a series of DICOM, or a study of a phantom set.

    Raises:
        SeriesUnreadable: See `read_volume`.
        PhantomRefused: See `read_arrays`.
    """
    (first, *_) = series.files
    return read_arrays(first) if first.suffix == ".npz" else read_volume(series)


def _slices_by_study(folder: Path) -> dict[str, list[str]]:
    slices = defaultdict(list)
    with (folder / "slice_map.csv").open() as file:
        for row in csv.DictReader(file):
            slices[row["StudyInstanceUID"]].append(row["ID"])
    return slices


def _slice_labels(path: Path) -> dict[str, NDArray[np.int8]]:
    labels: dict[str, NDArray[np.int8]] = defaultdict(lambda: np.full(len(LABELS), MISSING, np.int8))
    with path.open() as file:
        for row in csv.DictReader(file):
            image, label = row["ID"].rsplit("_", 1)
            labels[image][LABELS.index(label)] = int(row["Label"])
    return labels


def _record(folder: Path, row: dict[str, str], images: list[str], labels: dict[str, NDArray[np.int8]]) -> StudyRecord:
    path = folder / "npz" / row["PatientID"] / f"{row['StudyInstanceUID']}.npz"
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    # One entry a slice, as of a series of DICOM files: `at_most` counts them.
    series = SeriesRecord(SeriesKey(row["StudyInstanceUID"]), content, (path,) * len(images))
    of_study = np.array([MISSING if row[label] == "" else int(row[label]) for label in LABELS], np.int8)
    keys = StudyKey(row["StudyInstanceUID"]), PatientKey(row["PatientID"])
    return StudyRecord(*keys, series, np.stack([labels[image] for image in images]), of_study)
