"""A network starts at each label's own prior, in that label's column."""

import numpy as np
import pytest
from federation.labels import LABELS

from site_client.model.registry import build, weights_of

SLICES = {
    "epidural": 0.02,
    "intraparenchymal": 0.05,
    "intraventricular": 0.05,
    "subarachnoid": 0.05,
    "subdural": 0.05,
    "any": 0.15,
}
STUDIES = {
    "epidural": 0.05,
    "intraparenchymal": 0.15,
    "intraventricular": 0.12,
    "subarachnoid": 0.15,
    "subdural": 0.15,
    "any": 0.4,
}


def _bias(architecture: str, name: str) -> np.ndarray:
    (bias,) = [value for key, value in weights_of(build(architecture, 1)).items() if key.endswith(name)]
    return bias.astype(np.float64)


def _by_label(log_odds: np.ndarray) -> dict[str, float]:
    return dict(zip(LABELS, (1 / (1 + np.exp(-log_odds))).tolist(), strict=True))


def test_a_slice_starts_at_the_prior_of_each_label() -> None:
    assert _by_label(_bias("lite", "slice_head.bias")) == pytest.approx(SLICES)


def test_a_study_starts_at_the_prior_of_each_label_whatever_reads_it() -> None:
    by_slices = _bias("lite", "study_bias") + _bias("lite", "slice_head.bias")
    assert _by_label(by_slices) == pytest.approx(STUDIES)
    assert _by_label(_bias("densenet121-3d", "study_head.bias")) == pytest.approx(STUDIES)
