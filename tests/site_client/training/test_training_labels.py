"""What training does for one label, it does for the label of that name and for no other."""

from pathlib import Path

import numpy as np
import pytest
from federation.labels import ANY, LABELS, SUBTYPES

from site_client.ingest.records import PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord
from site_client.training.sampling import epoch_order, sampling_weights

COLUMN = {name: place for place, name in enumerate(LABELS)}


def _study(number: int, label: str | None) -> StudyRecord:
    """A study that is positive for one subtype, or negative."""
    cells = np.zeros(6, np.int8)
    if label is not None:
        cells[[COLUMN[label], ANY]] = 1
    series = SeriesRecord(SeriesKey(f"x{number}"), f"{number:064x}", (Path("unread"),))
    return StudyRecord(StudyKey(f"s{number}"), PatientKey(f"p{number}"), series, cells[None], cells)


@pytest.mark.parametrize("label", SUBTYPES)
def test_only_epidural_studies_are_shown_twice_as_often_as_other_positive_ones(label: str) -> None:
    other = "subarachnoid" if label != "subarachnoid" else "subdural"
    studies = [_study(0, label), *(_study(number, other) for number in range(1, 6))]
    studies += [_study(number, None) for number in range(6, 12)]
    weights = sampling_weights(studies)
    assert weights[0] / weights[1] == pytest.approx(2.0 if label == "epidural" else 1.0)
    shown = np.zeros(len(studies))
    for epoch in range(400):
        np.add.at(shown, epoch_order(studies, np.random.default_rng(epoch)), 1)
    assert shown / 400 == pytest.approx(weights, abs=0.15)
