"""Labels of studies and slices: what is known, what follows from it, and who has any."""

import numpy as np
from federation.labels import ANY, MISSING
from numpy.typing import NDArray

from site_client.ingest.records import StudyRecord


def has_labels(study: StudyRecord) -> bool:
    """Tell whether the study, int8[6], or a slice of it, int8[S,6], has a known label."""
    return bool((study.slice_labels != MISSING).any() or (study.study_labels != MISSING).any())


def study_labels(study: StudyRecord) -> NDArray[np.int8]:
    """Return int8[6], the study's own labels. Its slices fill missing ones: 1 if any is 1, 0 if all are 0."""
    own, slices = complete(study.study_labels), complete(study.slice_labels)
    from_slices = np.where((slices == 1).any(axis=0), 1, np.where((slices == 0).all(axis=0), 0, MISSING))
    return complete(np.where(own != MISSING, own, from_slices).astype(np.int8))


def complete(labels: NDArray[np.int8]) -> NDArray[np.int8]:
    """Fill int8[...,6] with all that is certain: a positive subtype makes `any` 1, and `any` 0 makes all labels 0."""
    labels = labels.copy()
    labels[(labels[..., :ANY] == 1).any(axis=-1), ANY] = 1
    labels[labels[..., ANY] == 0] = 0
    return labels
