"""The report has a figure or a reason in every cell, and loads nothing from elsewhere."""

import json
import re

import numpy as np
import pytest

from site_client.inference.evaluation import Evaluation, as_json, evaluate
from site_client.inference.measures import Measure
from site_client.inference.report import Heading, page
from site_client.inference.scores import Scored

LOSSES = [("training", ((1.0, 0.5), (2.0, 0.4)))]


def _evaluation(epidural: int) -> Evaluation:
    """40 patients with two slices each; `any` is positive for half of them, epidural for so many slices."""
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(40), 2)
    labels = np.zeros((80, 6), np.int8)
    labels[:epidural, 0] = 1
    labels[:40, 5] = 1
    probabilities = np.clip(labels * 0.3 + rng.random((80, 6)) * 0.6, 0, 1)
    studies = Scored(probabilities[::2], labels[::2], np.arange(40))
    return evaluate(Scored(probabilities, labels, patients), studies, draws=200)


@pytest.mark.parametrize(("positives", "shown"), [(9, False), (10, True)])
def test_below_ten_positives_there_is_a_count_and_no_figure(positives: int, shown: bool) -> None:
    row = _evaluation(positives).slices.labels["epidural"]
    assert row.positives == positives
    # This set has no heights, so the one measure that needs them is missing with a reason.
    assert row.estimates[Measure.AUC_HEIGHT].value is None
    figures = [figure for measure, figure in row.estimates.items() if measure is not Measure.AUC_HEIGHT]
    assert all((figure.value is not None) is shown for figure in figures)
    assert bool(row.roc) is bool(row.calibration) is bool(row.predictive) is shown


def test_the_area_under_the_drawn_curve_is_the_reported_auc() -> None:
    row = _evaluation(20).slices.labels["any"]
    false, true = np.array(row.roc).T
    assert np.trapezoid(true, false) == pytest.approx(row.estimates[Measure.AUC].value)
    assert row.roc[0] == (0, 0)
    assert row.roc[-1] == (1, 1)
    assert row.estimates[Measure.AUC].low is not None


def test_the_page_loads_nothing_runs_no_script_and_has_its_notice() -> None:
    text = page(
        Heading("lite", "ab" * 32, "40 patients <i>", True, [("training", [(1, 0.5), (2, 0.4)])]), _evaluation(9)
    )
    links = re.findall(r"(?:src|href)\s*=|url\(|@import|<script|https?://[^\s\"]+", text)
    assert set(links) == {"http://www.w3.org/2000/svg"}
    assert "Synthetic patients" in text
    assert "fewer than 10 positives: no figure" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert text.count(">at 40%<") == 2  # slices, studies
    assert "<i>" not in text
    assert text.count("<svg") == 3  # slices, studies, losses
    real = page(Heading("lite", "ab" * 32, "", False), _evaluation(9))
    assert "Synthetic" not in real
    assert "not for diagnosis" in real


def test_the_json_holds_every_figure_and_is_strict() -> None:
    document = json.loads(json.dumps(as_json(_evaluation(9)), allow_nan=False))
    figures = document["slices"]["labels"]["any"]["figures"]
    assert set(figures) == {measure.value for measure in Measure}
    assert document["studies"]["labels"]["subdural"]["figures"]["AUC"]["reason"] == "fewer than 10 positives"
    predictive = document["slices"]["labels"]["any"]["predictive"]
    assert set(predictive) == {"0.05", "0.10", "0.15", "0.40"}
    assert 0 < predictive["0.05"]["ppv"]["value"] < predictive["0.40"]["ppv"]["value"] < 1
    assert document["slices"]["labels"]["epidural"]["predictive"] == {}
