"""From log-odds to probabilities: the corrections restore a known prior and temperature, and keep the invariant."""

from typing import TypeVar

import numpy as np
import pytest
import torch
from federation.labels import ANY, MISSING
from numpy.typing import NDArray

from site_client.calibration.model import (
    HEIGHT_BINS,
    TEMPERATURES,
    CalibratedNet,
    Calibration,
    Calibrations,
    fit_temperature,
    prior_offset,
)
from site_client.model.network import CHANNELS, GEOMETRY, clamp_any
from site_client.model.registry import build


def _patients(count: int, prevalence: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """A normal finding around -1 or 1, and which of them: log-odds are then 2 x finding + logit(prevalence)."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(count) < prevalence).astype(np.int8)
    return rng.standard_normal(count) + np.where(truth == 1, 1.0, -1.0), truth


Number = TypeVar("Number", bound=np.generic)


def _six(column: NDArray[Number]) -> NDArray[Number]:
    return np.tile(column[:, None], (1, 6))


def _cross_entropy(logits: NDArray[np.float64], truth: NDArray[np.int8]) -> float:
    return float(np.mean(np.logaddexp(0, logits) - truth * logits))


def test_the_prior_correction_restores_log_odds_of_the_true_prevalence() -> None:
    finding, truth = _patients(40_000, 0.05, 1)
    trained_on_half = 2 * finding  # the best log-odds where half is positive
    offset = prior_offset(np.full(6, 0.05), np.full(6, 0.5))
    best = 2 * finding + np.log(0.05 / 0.95)
    np.testing.assert_allclose(trained_on_half + offset[0], best)
    assert _cross_entropy(best, truth) < _cross_entropy(trained_on_half, truth) / 2


def test_an_unknown_prevalence_corrects_nothing_and_zero_positives_stay_finite() -> None:
    offset = prior_offset(np.array([np.nan, 0.0, 0.1, 0.1, 0.1, 0.1]), np.array([0.5, 0.0, np.nan, 0.2, 0.1, 1.0]))
    assert offset[[0, 1, 2, 4]].tolist() == [0, 0, 0, 0]
    assert offset[3] < 0
    assert np.isfinite(offset).all()


@pytest.mark.parametrize("sure", [0.3, 1.0, 3.0])
def test_the_temperature_is_the_factor_by_which_scores_are_overconfident(sure: float) -> None:
    finding, truth = _patients(20_000, 0.5, 2)
    assert fit_temperature(_six(2 * finding * sure), _six(truth)) == pytest.approx(sure, rel=0.05)


def test_no_other_temperature_has_a_lower_cross_entropy() -> None:
    finding, truth = _patients(300, 0.3, 3)
    logits = 5 * finding
    fitted = fit_temperature(_six(logits), _six(truth))[0]
    least = _cross_entropy(logits / fitted, truth)
    assert all(least <= _cross_entropy(logits / other, truth) for other in np.geomspace(*TEMPERATURES, 200))


def test_unknown_labels_and_too_few_of_a_kind_move_no_temperature() -> None:
    finding, truth = _patients(200, 0.5, 4)
    labels = _six(truth)
    labels[:, 1] = MISSING
    labels[:, 2] = 0
    labels[100:, 3] = MISSING
    fitted = fit_temperature(_six(6 * finding), labels)
    assert fitted[[1, 2]].tolist() == [1, 1]
    assert fitted[3] == fit_temperature(_six(6 * finding[:100]), labels[:100])[3]


def test_separable_and_worthless_scores_stay_within_the_bounds() -> None:
    truth = np.tile(np.array([0, 1], np.int8), 20)
    sure, worthless = np.where(truth == 1, 3.0, -3.0), np.where(truth == 1, -3.0, 3.0)
    assert fit_temperature(_six(sure), _six(truth)) == pytest.approx(TEMPERATURES[0])
    assert fit_temperature(_six(worthless), _six(truth)) == pytest.approx(TEMPERATURES[1])


def test_any_is_raised_after_calibration_and_not_before() -> None:
    by = Calibration(offset=(0.0, 4.0, 0.0, 0.0, 0.0, -4.0), temperature=(1.0, 0.5, 1.0, 1.0, 1.0, 2.0))
    logits = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    answers = by.apply(logits)
    assert (answers[:, ANY:] >= answers[:, :ANY]).all()
    raised_before = (clamp_any(logits) + torch.tensor(by.offset)) / torch.tensor(by.temperature)
    assert (raised_before[:, ANY:] < raised_before[:, :ANY]).any()


@pytest.mark.parametrize("architecture", ["lite", "densenet121-3d"])
def test_a_calibrated_network_is_the_network_and_then_the_calibration(architecture: str) -> None:
    net = build(architecture, 1).eval()
    by = Calibrations(Calibration(offset=(1.0,) * 6), Calibration(offset=(-9.0,) * 6, temperature=(3.0,) * 6))
    x = torch.rand(1, 3, CHANNELS, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    study = (x, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, GEOMETRY))
    with torch.inference_mode():
        plain, calibrated = net(*study), CalibratedNet(net, by).eval()(*study)
    assert torch.equal(calibrated.slice_logits, by.slices.apply(plain.slice_logits))
    assert torch.equal(calibrated.study_logits, by.studies.apply(plain.study_logits))
    assert (calibrated.study_logits[:, ANY:] >= calibrated.study_logits[:, :ANY]).all()


def test_a_calibration_comes_back_from_its_file_as_it_was() -> None:
    by = Calibrations(
        Calibration((0.1, -2.5, 0.0, 1 / 3, 4.0, 5.0), (1.0, 0.7, 1.0, 2.0, 3.0, 1e-1)), Calibration(), "5a"
    )
    assert Calibrations.from_json(by.to_json()) == by


@pytest.mark.parametrize("temperature", [[1.0] * 5, [0.0] * 6, [-1.0] * 6])
def test_a_calibration_that_divides_by_nothing_or_lacks_a_label_is_refused(temperature: list[float]) -> None:
    part = f'{{"offset": [0, 0, 0, 0, 0, 0], "temperature": {temperature}}}'
    with pytest.raises(ValueError, match="temperatures above 0"):
        Calibrations.from_json(f'{{"slices": {part}, "studies": {part}, "model": ""}}')


def test_offsets_by_height_are_interpolated_between_the_middles_of_bins() -> None:
    rows = tuple((float(index),) * 6 for index in range(HEIGHT_BINS))
    heights = torch.tensor([0.0, 0.05, 0.1, 0.15, 0.55, 0.95, 1.0])
    shifted = Calibration(by_height=rows).shifted(torch.zeros(7, 6), heights)
    torch.testing.assert_close(shifted[:, 2], torch.tensor([0.0, 0.0, 0.5, 1.0, 5.0, 9.0, 9.0]))
    assert torch.equal(Calibration(by_height=rows).shifted(torch.zeros(7, 6)), torch.zeros(7, 6))
