"""A full-size arm learns, by the production loop, what no histogram holds: whether bright tissue lies together."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from site_client.benchmark.grid import BenchmarkData, Grid
from site_client.benchmark.results import pairs_of
from site_client.benchmark.settings import BenchmarkSettings
from site_client.inference.intervals import draw_patients, estimate
from site_client.inference.measures import Measure
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.compute import choose
from site_client.training.data import Loader

SLICES, SIZE_PX, BLOB_PX = 4, 48, 8
# 230.4 mm over 48 px, and a margin with which the head's center lies on the grid: nothing is resampled, so the bright
# pixels stay as bright whether they lie together or apart.
SPACING_MM, IMAGE_PX = 4.8, 50
SETTINGS = BenchmarkSettings(
    epochs=4,
    image_size_px=SIZE_PX,
    slices_max=SLICES,
    learning_rate=0.002,
    studies_per_step=8,
    slices_per_study=SLICES,
    ema_decay=0.9,
    validation_fraction=0.2,
)


def _labels(number: int) -> np.ndarray:
    """Even patients bleed in two slices, at every height equally often."""
    labels = np.zeros((SLICES, 6), np.int8)
    if number % 2 == 0:
        labels[np.array([0, 2]) + number // 2 % 2, 1] = 1
        labels[:, 5] = labels[:, 1]
    return labels


def _read(series: SeriesRecord) -> Volume:
    """A head with a skull. A bleed is a bright square; the same pixels lie scattered in every other slice."""
    number = int(series.series_key.removeprefix("x"))
    rng = np.random.default_rng([7, number])
    rows, columns = np.mgrid[:IMAGE_PX, :IMAGE_PX] - (IMAGE_PX - 1) / 2
    radius = np.hypot(rows, columns)
    hu = np.full((SLICES, IMAGE_PX, IMAGE_PX), -1000.0)
    hu[:, radius < 21] = 900
    brain = radius < 19
    for index, bleeds in enumerate(_labels(number)[:, 5]):
        hu[index, brain] = rng.normal(34, 4, int(brain.sum()))
        if bleeds:
            top, left = rng.integers(15, 28, 2)
            hu[index, top : top + BLOB_PX, left : left + BLOB_PX] = 62
        else:
            inside = np.flatnonzero((radius < 17).ravel())
            hu[index].ravel()[rng.choice(inside, BLOB_PX**2, replace=False)] = 62
    return Volume(
        np.rint(hu).astype(np.int16), (SPACING_MM,) * 2, np.arange(SLICES, dtype=np.float64) * 5, np.full(SLICES, 5.0)
    )


def _study(number: int) -> StudyRecord:
    labels = _labels(number)
    content = hashlib.sha256(str(number).encode()).hexdigest()
    series = SeriesRecord(SeriesKey(f"x{number}"), content, (Path("unread"),) * SLICES)
    return StudyRecord(StudyKey(f"s{number}"), PatientKey(f"p{number}"), series, labels, labels.max(axis=0))


@pytest.mark.timeout(3600)  # of a busy machine; alone on a core it takes a minute or two
def test_densenet121_gru_passes_the_histogram_on_patients_it_has_never_seen(tmp_path: Path) -> None:
    studies = tuple(_study(number) for number in range(160))
    cache = StudyCache(tmp_path / "cache", 1 << 30, SIZE_PX, SLICES, _read)
    loader = Loader(cache, Augmentation(), torch.device("cpu"), SETTINGS.slices_per_study)
    slices = {study.study_key: loader.prepare(study) for study in studies}
    data = BenchmarkData(studies, slices, {study.patient_key: "here" for study in studies}, loader)
    compute = replace(choose("cpu", 1, SIZE_PX), slices_a_pass=16)
    grid = Grid(SETTINGS, (1,), (0,), data, compute, tmp_path / "state", tmp_path / "log.jsonl", ())
    results = grid.run(["densenet121-gru"], lambda: False)
    draws = draw_patients(len(results.sites), 500, np.random.default_rng(1))
    ((pair,), _) = pairs_of(results.arms, draws)
    arm = results.arms[-1]
    assert pair.other == "position + histogram"
    for name in ("auc", "auc_height", "auc_study"):
        difference = getattr(pair, name)
        assert difference.value > 0.2, (name, arm.runs[0].epochs)
        assert difference.low > 0, (name, arm.runs[0].epochs)
    seen, by_histogram = (estimate(of.slices, Measure.AUC_HEIGHT).value for of in (arm, results.arms[1]))
    assert seen is not None
    assert by_histogram is not None
    assert by_histogram < 0.65 < 0.95 < seen
