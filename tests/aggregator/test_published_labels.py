"""A histogram's figures are published under the name of the label that it counts."""

import json
import re

import numpy as np
import pytest
from fastapi.testclient import TestClient
from federation.labels import BINS, LABELS, SUBTYPES

from aggregator.context import AppContext
from aggregator.runs.metrics import report
from aggregator.store.tables import ModelMetrics

COLUMN = {name: place for place, name in enumerate(LABELS)}


def _histograms(perfect: str) -> np.ndarray:
    """Counts by label, truth and bin: one label is told apart by the scores, the others are not."""
    counts = np.zeros((6, 2, BINS), np.int64)
    counts[:, :, BINS // 2] = 50
    counts[COLUMN[perfect]] = 0
    counts[COLUMN[perfect], 0, 0] = counts[COLUMN[perfect], 1, BINS - 1] = 50
    return counts


@pytest.mark.parametrize("label", LABELS)
def test_the_label_that_is_told_apart_is_the_one_that_is_published_so(label: str) -> None:
    published = report(_histograms(label), 10)
    assert {name: figures.auc for name, figures in published.labels.items()} == {
        name: 1.0 if name == label else 0.5 for name in LABELS
    }


def test_any_weighs_as_much_as_two_subtypes_in_the_published_loss() -> None:
    losses = {label: report(_histograms(label), 10).weighted_log_loss for label in LABELS}
    flat = report(np.repeat(_histograms("any")[:1], 6, axis=0), 10).weighted_log_loss
    assert flat is not None
    gains = {label: flat - loss for label, loss in losses.items() if loss is not None}
    assert gains == pytest.approx({**dict.fromkeys(SUBTYPES, gains["subdural"]), "any": 2 * gains["subdural"]})


def test_the_dashboard_draws_each_labels_curve_under_its_name(running: AppContext, ada: TestClient) -> None:
    aucs = {name: 0.6 + 0.05 * place for name, place in COLUMN.items()}
    figures = {
        name: {"positives": 20, "negatives": 80, "auc": auc, "log_loss": 0.4, "ece": 0.1} for name, auc in aucs.items()
    }
    with running.store.write() as session:
        row = session.query(ModelMetrics).one()
        row.report = json.dumps({"labels": figures, "weighted_log_loss": 0.3})
    chart = re.search(r'aria-label="AUC: ([^"]*)"', ada.get("/").text)
    assert chart is not None
    curves = re.findall(r"([a-z]+) (0\.\d+) after", chart[1])
    # `any` first, then the subtypes from the last to the first: the colors of the lines follow this order.
    assert [name for name, _ in curves] == ["any", *reversed(SUBTYPES)]
    assert {name: float(auc) for name, auc in curves} == pytest.approx(aucs, abs=0.001)
