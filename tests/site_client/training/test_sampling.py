"""Slabs at the heights of bleeds, and the prior correction for what training reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation.labels import ANY, LABELS, MISSING
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from site_client.calibration.fit import prior_offsets
from site_client.calibration.model import Calibration
from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.ingest.series.volume import Volume
from site_client.model.registry import build
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.data import Loader
from site_client.training.sampling import SlabSampler, epoch_order

SLICES = 10
HEIGHTS = np.linspace(0, 1, SLICES)
SUBDURAL = LABELS.index("subdural")


def _labels(*positive: int, slices: int = SLICES) -> NDArray[np.int8]:
    labels = np.zeros((slices, 6), np.int8)
    labels[np.ix_(positive, [SUBDURAL, ANY])] = 1
    return labels


@given(
    slices=st.integers(1, 8),
    length=st.integers(1, 20),
    positive=st.sets(st.integers(0, 19)),
    bleeds=st.lists(st.floats(0, 1), max_size=5),
)
def test_starts_are_probabilities_of_slabs_within_the_study(
    slices: int, length: int, positive: set[int], bleeds: list[float]
) -> None:
    labels = _labels(*(index for index in positive if index < length), slices=length)
    heights = np.linspace(0, 1, length) if length > 1 else np.array([0.5])
    sampler = SlabSampler(slices, np.array(bleeds))
    anchored, others = sampler.starts(labels, heights)
    assert len(anchored) == len(others) == max(1, length - slices + 1)
    assert anchored.sum() + others.sum() == pytest.approx(1)
    assert min(anchored.min(), others.min()) >= 0
    shown = sampler.shown(labels, heights, anchored_only=False)
    assert shown.slices.sum() == pytest.approx(min(slices, length))
    assert len(shown.slabs) == len(shown.slab_labels) == len(anchored)


@pytest.mark.parametrize("slices", [1, 3])
def test_bleeds_and_bleed_free_slices_are_read_at_the_same_heights(slices: int) -> None:
    bleeding, free = _labels(2, 3, 7), _labels()
    sampler = SlabSampler(slices, HEIGHTS[[2, 3, 7]])
    for anchored_only in (True, False):
        with_bleed, without = (
            sampler.shown(labels, HEIGHTS, anchored_only=anchored_only).slices for labels in (bleeding, free)
        )
        np.testing.assert_allclose(with_bleed, without)
    assert without[[2, 3, 7]].sum() > 2 / 3


def test_a_bleed_free_study_of_another_spacing_is_read_at_the_nearest_heights() -> None:
    sampler = SlabSampler(1, np.array([0.0, 0.52, 0.99]))
    anchored, others = sampler.starts(_labels(slices=3), np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(anchored, 1 / 4)
    np.testing.assert_allclose(others, 1 / 12)


def test_without_a_known_bleed_every_slab_is_as_likely_and_anchored() -> None:
    anchored, others = SlabSampler(4, np.empty(0)).starts(_labels(), HEIGHTS)
    np.testing.assert_allclose(anchored, 1 / 7)
    assert not others.any()


def test_draws_have_the_stated_probabilities() -> None:
    sampler, rng = SlabSampler(3, HEIGHTS[[5]]), np.random.default_rng(0)
    drawn = np.zeros((2, 8))
    for _ in range(4000):
        slab, anchored = sampler.draw(_labels(1), HEIGHTS, rng)
        drawn[0 if anchored else 1, slab.start] += 1 / 4000
    np.testing.assert_allclose(drawn, sampler.starts(_labels(1), HEIGHTS), atol=0.03)


def test_every_step_of_two_studies_or_more_has_studies_with_and_without_hemorrhage() -> None:
    studies = [_study(number, _labels(4) if number < 7 else _labels()) for number in range(21)]
    order = epoch_order(studies, np.random.default_rng(3))
    pairs = [{index < 7 for index in order[start : start + 2]} for start in range(0, 20, 2)]
    assert all(pair == {True, False} for pair in pairs)


# --- the prior ---


def _read(series: SeriesRecord) -> Volume:
    hu = np.full((SLICES, 32, 32), 30, np.int16)
    return Volume(hu, (7.0, 7.0), np.arange(SLICES, dtype=np.float64) * np.float64(5.0), np.full(SLICES, 5.0))


def _study(number: int, labels: NDArray[np.int8]) -> StudyRecord:
    series = SeriesRecord(SeriesKey(f"x{number}"), f"{number:064x}", (Path("unread"),))
    keys = StudyKey(f"s{number}"), PatientKey(f"p{number}")
    return StudyRecord(*keys, series, labels, np.full(6, MISSING, np.int8))


def _loader(folder: Path, slices_per_study: int) -> Loader:
    cache = StudyCache(folder, 1 << 30, 32, 16, _read)
    return Loader(cache, Augmentation(), torch.device("cpu"), slices_per_study)


def test_offsets_of_whole_studies_undo_the_drawing_of_studies(tmp_path: Path) -> None:
    studies = [_study(number, _labels(*range(SLICES)) if number < 4 else _labels()) for number in range(40)]
    offsets = prior_offsets(studies, _loader(tmp_path, 0), build("lite", 0))
    expected = np.log(0.1 / 0.9)  # a tenth of the patients bleeds, and half of the studies drawn
    assert offsets.slices.offset[ANY] == pytest.approx(expected)
    assert offsets.studies.offset[ANY] == pytest.approx(expected)
    assert offsets.slices.temperature == (1.0,) * 6


@pytest.mark.parametrize("slices_per_study", [1, 3])
@pytest.mark.parametrize("architecture", ["lite", "lite-slices"])
def test_offsets_of_slabs_undo_the_shares_that_training_reads(
    tmp_path: Path, slices_per_study: int, architecture: str
) -> None:
    studies = [_study(number, _labels(4, 5) if number < 6 else _labels()) for number in range(24)]
    loader, net = _loader(tmp_path, slices_per_study), build(architecture, 0)
    source, rng = loader.for_training(net, studies), np.random.default_rng(0)
    slices, slabs = [], []
    for _ in range(40):
        for index in epoch_order(studies, rng):
            sample = source.sample(studies[index], rng)
            if sample.anchored or architecture == "lite":  # the other slabs train the recurrence only
                slices.append(float(sample.slice_labels[..., ANY].mean()))
                slabs.append(float(sample.study_labels[0, ANY]))

    def offset(patients: float, training: float | np.floating[Any]) -> float:
        return float(np.log(patients / (1 - patients)) - np.log(training / (1 - training)))

    offsets = prior_offsets(studies, loader, net)
    assert offsets.slices.offset[ANY] == pytest.approx(offset(0.25 * 0.2, np.mean(slices)), abs=0.2)
    assert offsets.studies.offset[ANY] == pytest.approx(offset(0.25, np.mean(slabs)), abs=0.2)


def test_heights_without_bleeds_have_lower_offsets_and_whole_studies_have_none(tmp_path: Path) -> None:
    studies = [_study(number, _labels(4, 5) if number % 2 else _labels()) for number in range(60)]
    slabs = prior_offsets(studies, _loader(tmp_path, 1), build("lite-slices", 0)).slices
    assert [len(row) for row in slabs.by_height] == [6] * 10
    by_height = np.array(slabs.by_height)[:, ANY]
    assert by_height[4] > by_height[0] + 1
    assert by_height[5] > by_height[9] + 1
    assert prior_offsets(studies, _loader(tmp_path, 0), build("lite-slices", 0)).slices.by_height == ()


def test_offsets_of_unknown_labels_are_0(tmp_path: Path) -> None:
    unknown = np.full((SLICES, 6), MISSING, np.int8)
    studies = [_study(number, unknown) for number in range(3)]
    offsets = prior_offsets(studies, _loader(tmp_path, 3), build("lite", 0))
    assert offsets.studies == Calibration()
    assert offsets.slices == Calibration(by_height=((0.0,) * 6,) * 10)
