"""Training on a slab of each study: its slices, and its labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from federation.labels import ANY, MISSING
from numpy.typing import NDArray

from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.model.registry import build
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.data import Loader

SLICES, SLAB = 9, 3
STILL = Augmentation(0, 0, 0, 0, 0, 0, 0)


def _read(series: SeriesRecord) -> Volume:
    """A head whose slices can be told apart: 0, 4, 8 ... HU."""
    hu = np.full((SLICES, 64, 64), -1000, np.int16)
    hu[:, 12:52, 12:52] = 4 * np.arange(SLICES)[:, None, None]
    return Volume(hu, (3.6, 3.6), np.arange(SLICES, dtype=np.float64) * np.float64(5.0), np.full(SLICES, 5.0))


def _study(slice_labels: NDArray[np.int8]) -> StudyRecord:
    series = SeriesRecord(SeriesKey("s"), "0" * 64, (Path("unread"),))
    whole = np.full(6, MISSING, np.int8)
    whole[ANY] = 1
    return StudyRecord(StudyKey("s"), PatientKey("p"), series, slice_labels, whole)


def _labels(*positive: int) -> NDArray[np.int8]:
    labels = np.zeros((SLICES, 6), np.int8)
    labels[list(positive)] = 1
    return labels


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    return Loader(StudyCache(tmp_path, 1 << 30, 64, 16, _read), STILL, torch.device("cpu"), SLAB)


def test_a_slab_is_neighbouring_slices_with_their_own_labels_pixels_and_geometry(loader: Loader) -> None:
    study = _study(_labels(2))
    whole = loader.sample(study, None)
    assert whole.x.shape[1] == SLICES
    source, starts = loader.for_training(build("lite", 0), [study]), set()
    for seed in range(150):
        slab = source.sample(study, np.random.default_rng(seed))
        start = round(float(slab.geometry[0, 0, 2]) * (SLICES - 1))
        inside = slice(start, start + SLAB)
        starts.add(start)
        torch.testing.assert_close(slab.x, whole.x[:, inside], atol=1e-5, rtol=0)  # through augmentation's resampling
        assert torch.equal(slab.geometry, whole.geometry[:, inside])
        assert torch.equal(slab.slice_labels, whole.slice_labels[:, inside])
        assert slab.mask.shape == (1, SLAB)
    assert starts == set(range(SLICES - SLAB + 1))


def test_a_slabs_study_labels_are_those_of_its_slices(loader: Loader) -> None:
    study = _study(_labels(2))
    source = loader.for_training(build("lite", 0), [study])
    labels = {
        (bool(slab.slice_labels.any()), bool(slab.study_labels[0, ANY]))
        for slab in (source.sample(study, np.random.default_rng(seed)) for seed in range(60))
    }
    assert labels == {(True, True), (False, False)}
    assert source.sample(study, None).study_labels[0, ANY] == 1


@pytest.mark.parametrize("unknown", [slice(None), slice(0, 1)], ids=["all", "one"])
def test_a_study_with_an_unlabelled_slice_is_read_whole(loader: Loader, unknown: slice) -> None:
    labels = _labels(2)
    labels[unknown] = MISSING
    study = _study(labels)
    sample = loader.for_training(build("lite", 0), [study]).sample(study, np.random.default_rng(0))
    assert sample.x.shape[1] == SLICES
    assert sample.study_labels[0, ANY] == 1


def test_a_network_without_slice_outputs_is_trained_on_whole_studies(loader: Loader) -> None:
    study, rng = _study(_labels(2)), np.random.default_rng(0)
    assert loader.for_training(build("lite", 0), [study]).sample(study, rng).x.shape[1] == SLAB
    sample = loader.for_training(build("densenet121-3d", 0), [study]).sample(study, rng)
    assert sample.x.shape[1] == SLICES
    assert sample.study_labels[0, ANY] == 1
