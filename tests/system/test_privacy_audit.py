"""The audit of a private round's noise: an honest round stands it, and a round with a fault does not."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from federation.encoding import HEADER_WORDS, Layout, noised
from federation.encoding.skellam import SecretStream
from numpy.typing import NDArray

from deploy.simulation.__main__ import main
from deploy.simulation.audit import GUESSES, SITES, audit, audit_plan, encoded, epsilon_lower_bound

PLAN = audit_plan(4.0)
JOINT = 1 - 0.05 / 20  # of each of 20 seeds, so that all together hold with 95 %


class NoNoise:
    def draw(self, stream: SecretStream, count: int) -> NDArray[np.int64]:
        return np.zeros(count, np.int64)


@pytest.mark.parametrize("seed", [*range(1, 5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 21))])
def test_a_claim_of_four_is_not_falsified(seed: int) -> None:
    assert epsilon_lower_bound(audit(PLAN, seed).correct, JOINT) <= 4.0


def test_noise_that_is_left_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noised, "table_of", lambda noise, members: NoNoise())
    assert epsilon_lower_bound(audit(PLAN, 1).correct, JOINT) > 4.0


def test_clipping_each_slice_instead_of_the_patient_is_caught() -> None:
    def each_slice(gradients: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        clipped: NDArray[np.float64] = (gradients * np.minimum(1.0, clip_norm / norms)).sum(axis=0)
        return clipped

    assert epsilon_lower_bound(audit(PLAN, 1, clip=each_slice).correct, JOINT) > 4.0


def test_noise_that_attempts_share_comes_off_by_subtraction_and_fresh_noise_does_not() -> None:
    """What an aggregator could do with two attempts of one round: the audit cannot see it, their difference can."""
    layout, rng = Layout.of_round(PLAN, 1), np.random.default_rng(1)
    update = rng.standard_normal(layout.parameters).astype(np.float32)
    coins = [rng.bytes(32) for _ in range(2)]
    words = [encoded(layout, update, SITES, each) for each in (*coins, coins[0])]
    assert (words[0] == words[2]).all()  # the mutant: the difference is nothing but the difference of the updates
    assert (words[0] != words[1])[HEADER_WORDS:].mean() > 0.99


def test_guesses_of_chance_bound_nothing_and_right_ones_bound_much() -> None:
    assert epsilon_lower_bound(GUESSES // 2) == 0.0
    bounds = [epsilon_lower_bound(correct) for correct in (300, 400, 450, 490, 500)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(5.09, abs=0.01)


@pytest.mark.slow
def test_the_command_writes_a_report_that_names_its_verdict(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--audit", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "The claim is not falsified." in (tmp_path / "audit.md").read_text()
