"""AUC from counts with noise: coverage by simulation, and the variance that the real encoding puts into a cell."""

import math
import os
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from federation.encoding import HEADER_WORDS, Layout, decode_sum
from federation.encoding.noised import CELLS, encode_noised
from federation.labels import BINS, LABELS
from federation.plan import Encoding, LocalTraining
from federation.privacy import Privacy, histogram_noise
from federation.vocabulary import Metric
from numpy.typing import NDArray

from aggregator.runs.metrics import Report, noised_report, report
from aggregator.runs.noised_auc import auc_of_counts
from tests.contract.conftest import PLAN

SIMULATED = 1000
COVERAGE_MIN = 0.93  # of a nominal .95
STRIDE = BINS // CELLS
PRIVACY = Privacy(
    sampling_rate=0.5,
    noise_multiplier=2.0,
    patients_expected=400,
    batch_max=400,
    epsilon_train=20.0,
    validation_multiplier=4.0,
    epsilon_validation=5.0,
)


def shares_of_cells(mean: float, deviation: float) -> NDArray[np.float64]:
    """The probability of each cell for normal logits; the outermost cells take what lies beyond."""
    logits = NormalDist(mean, deviation)
    below = [0.0, *(logits.cdf(edge) for edge in np.linspace(-8, 8, CELLS + 1)[1:-1]), 1.0]
    return np.diff(below)


def noise(rng: np.random.Generator, variance: float) -> NDArray[np.int64]:
    """Skellam noise for every cell."""
    return rng.poisson(variance / 2, CELLS) - rng.poisson(variance / 2, CELLS)


@pytest.mark.parametrize("deviation", [3.0, 9.5, 20.0])
@pytest.mark.parametrize(("positives", "negatives"), [(150, 850), (500, 1500)])
@pytest.mark.parametrize(("distance", "spread"), [(0.5, 1.5), (2.0, 1.5), (4.0, 1.5), (8.0, 1.0)])
def test_the_interval_holds_the_true_auc_as_often_as_it_says(
    deviation: float, positives: int, negatives: int, distance: float, spread: float
) -> None:
    rng = np.random.default_rng(round(100 * distance) + positives)
    below, above = shares_of_cells(-1 - distance / 2, spread), shares_of_cells(distance / 2 - 1, spread)
    truth = float(above @ (np.cumsum(below) - below / 2))
    held = shown = 0
    for _ in range(SIMULATED):
        negative = rng.multinomial(negatives, below) + noise(rng, deviation**2)
        positive = rng.multinomial(positives, above) + noise(rng, deviation**2)
        # As `noised_report` does.
        if min(positive.sum(), negative.sum()) < 2 * deviation * math.sqrt(CELLS):
            continue
        auc = auc_of_counts(negative, positive, deviation**2)
        assert 0 <= auc.low <= auc.value <= auc.high <= 1
        held, shown = held + (auc.low <= truth <= auc.high), shown + 1
    assert held / shown >= COVERAGE_MIN


def test_the_estimate_is_unbiased_and_its_interval_shrinks_with_the_noise() -> None:
    rng = np.random.default_rng(5)
    below, above = np.arange(CELLS, 0, -1) * 10, np.arange(1, CELLS + 1) * 5
    truth = float(above @ (np.cumsum(below) - below / 2)) / (above.sum() * below.sum())
    widths = []
    for deviation in (2.0, 10.0, 30.0):
        aucs = [
            auc_of_counts(below + noise(rng, deviation**2), above + noise(rng, deviation**2), deviation**2)
            for _ in range(SIMULATED)
        ]
        values = [auc.value for auc in aucs]
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(SIMULATED) + 1e-3
        widths.append(np.mean([auc.high - auc.low for auc in aucs]))
    assert widths == sorted(widths)


def test_without_noise_the_auc_is_that_of_a_report_of_slices() -> None:
    rng = np.random.default_rng(3)
    histograms = np.zeros((len(LABELS), 2, BINS), np.int64)
    histograms[:, :, ::STRIDE] = rng.integers(5, 90, (len(LABELS), 2, CELLS))
    plain, noised = report(histograms, 10), noised_report(histograms, 10, 0.0)
    for name, label in noised.labels.items():
        assert label.auc == pytest.approx(plain.labels[name].auc)
        assert (label.positives, label.log_loss, label.ece) == (plain.labels[name].positives, None, None)
        assert label.auc_low is not None
        assert label.auc_high is not None
        assert label.auc_low < label.auc_high
    assert (noised.unit, noised.weighted_log_loss) == ("patient", None)
    assert Report.from_json(noised.to_json()) == noised


def test_counts_that_noise_drowns_or_makes_negative_give_no_auc() -> None:
    histograms = np.zeros((len(LABELS), 2, BINS), np.int64)
    histograms[:, :, ::STRIDE] = 5
    histograms[0, 1, 0] = -200
    assert noised_report(histograms, 10, 1.0).labels[LABELS[0]].positives == 0
    drowned = noised_report(histograms, 10, 21.0**2)
    assert {label.auc for label in drowned.labels.values()} == {None}
    clear = noised_report(histograms, 10, 9.0**2).labels
    assert [label.auc is None for label in clear.values()] == [True, False, False, False, False, False]


def test_the_noise_of_a_real_sum_has_the_variance_that_the_interval_assumes() -> None:
    members, cohort = 4, 5  # one has vanished after the others had drawn their shares
    plan = replace(
        PLAN,
        privacy=PRIVACY,
        metrics=(Metric.HISTOGRAMS,),
        training=LocalTraining(),
        encoding=Encoding(rotation_seed=bytes(32)),
    )
    layout = Layout.of_round(plan, plan.evaluation_round)
    true = np.full((len(LABELS), 2, BINS), 3, np.int64)
    values = []
    for _ in range(60):
        total = np.zeros(HEADER_WORDS, np.uint64)
        for _ in range(members):
            total += encode_noised(layout, None, true, cohort, os.urandom(32))
        values.append(decode_sum(layout, total, members).header.histograms[:, :, ::STRIDE] - members * STRIDE * 3)
    variance = members * histogram_noise(PRIVACY).share_variance(cohort)
    count = np.size(values)
    assert abs(np.mean(values)) < 5 * math.sqrt(variance / count)
    assert np.var(values) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
