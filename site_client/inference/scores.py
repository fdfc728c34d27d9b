"""Probabilities beside labels, and the rule that no patient both trains and evaluates a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from federation.labels import LABELS, MISSING
from numpy.typing import NDArray

from site_client.errors import EvaluationRefused
from site_client.ingest.records import StudyRecord

Reals = NDArray[np.float64]


def _no_heights() -> Reals:
    return np.empty(0)


@dataclass(frozen=True, eq=False)
class Scored:
    """Probabilities beside labels; a row is a slice or a study.

    Attributes:
        probabilities: f64[N,6] in [0,1].
        labels: int8[N,6]: 0, 1 or -1 (missing).
        patients: int64[N], the number of each row's patient, from 0.
        heights: f64[N], relative heights 0..1 of slices; f64[0] of studies.

    Raises:
        EvaluationRefused: A shape or a value is different.
    """

    probabilities: Reals
    labels: NDArray[np.int8]
    patients: NDArray[np.int64]
    heights: Reals = field(default_factory=_no_heights)

    def __post_init__(self) -> None:
        """Check shapes and values."""
        rows = len(self.patients)
        shape = (rows, len(LABELS))
        if self.probabilities.shape != shape or self.labels.shape != shape or len(self.heights) not in (0, rows):
            raise EvaluationRefused(
                f"expected probabilities and labels of shape {shape}, "
                f"got {self.probabilities.shape} and {self.labels.shape}"
            )
        if not ((self.probabilities >= 0) & (self.probabilities <= 1)).all():
            raise EvaluationRefused(
                "expected probabilities from 0 to 1, got others; a model that diverged cannot be evaluated"
            )
        if not np.isin(self.labels, (0, 1, MISSING)).all():
            raise EvaluationRefused("expected labels 0, 1 or -1 (missing), got others")

    @property
    def patients_count(self) -> int:
        """Number of patients."""
        return int(self.patients.max(initial=-1)) + 1

    def column(self, label: int) -> "Column":
        """Return the column of one label (its index in LABELS), without rows that lack it."""
        known = self.labels[:, label] != MISSING
        return Column(
            self.probabilities[known, label],
            self.labels[known, label],
            self.patients[known],
            self.patients_count,
            self.heights[known] if len(self.heights) else self.heights,
        )


@dataclass(frozen=True, eq=False)
class Column:
    """One label of a `Scored`.

    Attributes:
        probabilities: f64[M]; log-odds do as well for measures of order.
        truth: int8[M]: 0 or 1.
        patients: int64[M], below `patients_count`.
        patients_count: Of the whole set.
        heights: f64[M], or f64[0] of studies.
    """

    probabilities: Reals
    truth: NDArray[np.int8]
    patients: NDArray[np.int64]
    patients_count: int
    heights: Reals = field(default_factory=_no_heights)

    def patients_with(self, value: int) -> int:
        """Count the patients who have a row with this label value."""
        return len(np.unique(self.patients[self.truth == value]))

    @property
    def positive_patients(self) -> int:
        """Patients with a positive row."""
        return self.patients_with(1)

    @property
    def negative_patients(self) -> int:
        """Patients who have rows, and no positive one."""
        return len(np.unique(self.patients)) - self.positive_patients

    def same_rows(self, other: "Column") -> bool:
        """Tell whether both hold the same rows of the same patients."""
        return np.array_equal(self.truth, other.truth) and np.array_equal(self.patients, other.patients)


def refuse_shared_patients(training: Sequence[StudyRecord], validation: Sequence[StudyRecord]) -> None:
    """Check that no patient is in both sets.

    Raises:
        EvaluationRefused: Some are. The message has their number only.
    """
    shared = {study.patient_key for study in training} & {study.patient_key for study in validation}
    if shared:
        raise EvaluationRefused(
            f"expected no patient both in training and in validation, got {len(shared)}; split by patient, not by study"
        )
