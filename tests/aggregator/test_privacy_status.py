"""A private run on the dashboard and in `run status`: what it spent, its noise, its AUC, and the alarm."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from federation.forecast import train_spent, validation_spent
from federation.labels import LABELS
from federation.manifest import Manifest, Model, TensorSpec, save_model
from federation.plan import sign_plan

from aggregator.commands.listings import describe_run
from aggregator.context import AppContext
from aggregator.runs import lifecycle
from aggregator.runs.forecast_words import NOT_NOISED
from aggregator.runs.metrics import NOTHING, LabelMetrics, Report
from aggregator.runs.plan_file import read_plan
from aggregator.runs.plans import plan_of
from aggregator.runs.privacy_status import privacy_status, status_words
from aggregator.states import RoundState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import ModelMetrics, ModelVersion, PhaseTime, Round, Run
from tests.aggregator.conftest import StandingClock
from tests.aggregator.dashboard_fixtures import words_of
from tests.custodian import CUSTODIAN

PLAN = """
name = "private"
architecture = "lite"
rounds = 20
metrics = ["histograms"]
[privacy]
sampling_rate = 0.1
noise_multiplier = 0.8
patients_expected = {patients}
batch_max = 200
epsilon_train = 8
validation_interval = 2
validation_multiplier = 5
epsilon_validation = 5
"""


@pytest.fixture
def make_run(app: AppContext, tmp_path: Path, clock: StandingClock) -> Callable[..., Run]:
    """make_run(plan, states, aucs): a run with a round in each state, which judged its base model so."""

    def make(plan: str, states: list[RoundState], aucs: dict[int, tuple[float, float, float]]) -> Run:
        model_path, plan_path = tmp_path / "model.safetensors", tmp_path / "plan.toml"
        save_model(model_path, Model(Manifest((TensorSpec("weight", (1000,)),)), np.zeros(1000, np.float32)))
        plan_path.write_text(plan)
        signed = sign_plan(read_plan(plan_path, model_path, os.urandom), CUSTODIAN)
        run = lifecycle.start_run(app, signed, model_path, CUSTODIAN.public_key())
        with app.store.write() as session:
            first = session.query(Round).one()
            rows = [first, *(_round_after(first, number) for number in range(2, len(states) + 1))]
            # Each published round makes a model, from which the next one starts.
            for row, state, after in zip(rows, states, rows[1:], strict=False):
                after.base_model = row.base_model
                if state is RoundState.PUBLISHED:
                    after.base_model = row.next_model = bytes([row.number]) * 32
                    run_rows.add_model(session, _model_of(row))
            session.add_all(rows[1:])
            for row, state in zip(rows, states, strict=True):
                row.state = state
                row.members = 3 if state is RoundState.PUBLISHED else None
            session.flush()
            for row in rows:
                if row.members is not None:
                    round_rows.add_metrics(session, _metrics(row, aucs.get(row.number)))
        return run

    return make


def _round_after(first: Round, number: int) -> Round:
    return Round(
        run_id=first.run_id,
        number=number,
        attempt=1,
        state=RoundState.TRAINING,
        base_model=first.base_model,
        roster_epoch=0,
        began_at=first.began_at,
        phase_since=first.phase_since,
        deadline=first.deadline,
    )


def _model_of(row: Round) -> ModelVersion:
    assert row.next_model is not None
    return ModelVersion(
        run_id=row.run_id,
        round_number=row.number,
        digest=row.next_model,
        blob=row.next_model,
        size_bytes=1,
        created_at=row.began_at,
    )


def _metrics(row: Round, auc: tuple[float, float, float] | None) -> ModelMetrics:
    report = NOTHING
    if auc is not None:
        value, low, high = auc
        label = LabelMetrics(120, 480, value, None, None, low, high)
        report = Report(dict.fromkeys(LABELS, label), None, "patient", 36.0)
    return ModelMetrics(
        round_id=row.id,
        model_digest=row.base_model,
        cohort_size=3,
        train_loss=None,
        studies=None,
        report=report.to_json(),
    )


PUBLISHED, ABANDONED = RoundState.PUBLISHED, RoundState.ABANDONED


def test_a_round_counts_once_an_upload_may_have_left_also_if_it_is_abandoned(
    app: AppContext, make_run: Callable[..., Run]
) -> None:
    states = [PUBLISHED, ABANDONED, ABANDONED, RoundState.UPLOAD, RoundState.TRAINING]
    run = make_run(PLAN.format(patients=1000), states, {})
    with app.store.write() as session:
        rows = {row.number: row for row in round_rows.of_run(session, run.run_id)}
        # Round 2 fell in training, round 3 while masks were being recovered.
        for state in (RoundState.TRAINING, RoundState.UPLOAD, RoundState.REVEAL):
            session.add(PhaseTime(round_id=rows[3].id, attempt=1, state=state, seconds=1.0))
    plan = plan_of(run)
    with app.store.read() as session:
        status = privacy_status(session, run)
    assert status is not None
    assert (status.train.count, status.train.epsilon) == (3, train_spent(plan, 3))
    # Rounds 1 and 3 evaluate, 4 does not.
    assert (status.validation.count, status.validation.epsilon) == (2, validation_spent(plan, 2))
    assert (status.train_budget, status.validation_budget, status.delta) == (8.0, 5.0, 1e-6)
    assert status.noise.members == 3


def test_the_page_of_a_private_run_says_what_is_spent_and_how_the_model_does(
    app: AppContext, ada: TestClient, make_run: Callable[..., Run]
) -> None:
    run = make_run(PLAN.format(patients=1000), [PUBLISHED] * 3, {1: (0.61, 0.55, 0.67), 3: (0.71, 0.65, 0.77)})
    html = ada.get(f"/runs/{run.run_id.hex()}").text
    text = words_of(html)
    plan = plan_of(run)
    assert f"Epsilon of training {train_spent(plan, 3):.2f} of 8 after 3 of 20 rounds" in text
    assert f"Epsilon of evaluation {validation_spent(plan, 2):.2f} of 5 after 2 evaluations" in text
    assert "Delta 1e-06" in text
    assert re.search(r"Noise over signal r = 0\.\d\d with 3 sites usable", text)
    assert "initial 3 sites 0.610 0.550 to 0.670 –" in text
    assert "after round 2 3 sites 0.710 0.650 to 0.770 +0.100" in text
    assert "Counts are patients with noise, of a standard deviation of 36" in text
    assert "AUC by patient (0.5: chance)" in text
    assert "0.610 (0.550 to 0.670) after round 0 (3 sites)" in html
    assert "none: the plan lets no score histograms leave in this round" in text
    first, second = (words_of(ada.get(f"/runs/{run.run_id.hex()}/rounds/{number}").text) for number in (1, 2))
    assert "the sum of clipped gradients and score histograms with noise over 3 sites together" in first
    assert "the sum of clipped gradients with noise over 3 sites together" in second
    assert 'class="notice"' not in html
    assert NOT_NOISED not in text
    assert words_of(ada.get("/").text).count("Epsilon of training") == 1


def test_noise_that_is_longer_than_the_signal_is_an_alarm(
    app: AppContext, ada: TestClient, make_run: Callable[..., Run]
) -> None:
    run = make_run(PLAN.format(patients=30), [PUBLISHED], {})
    assert "The noise of this run eats its signal" in ada.get(f"/runs/{run.run_id.hex()}").text
    with app.store.read() as session:
        assert "warning: The noise of this run eats" in status_words(privacy_status(session, run))[-1]


@pytest.mark.parametrize(("last", "alarms"), [((0.5, 0.45, 0.549), 1), ((0.5, 0.45, 0.55), 0), ((0.9, 0.85, 0.95), 0)])
def test_an_auc_whose_interval_lies_below_the_first_one_is_an_alarm(
    app: AppContext, ada: TestClient, make_run: Callable[..., Run], last: tuple[float, float, float], alarms: int
) -> None:
    run = make_run(PLAN.format(patients=1000), [PUBLISHED] * 3, {1: (0.61, 0.55, 0.67), 3: last})
    html = ada.get(f"/runs/{run.run_id.hex()}").text
    assert html.count("The run makes its model worse: the AUC after round 2 is 0.500") == alarms


def test_a_model_is_named_by_the_round_that_made_it_also_after_an_abandoned_one(
    app: AppContext, make_run: Callable[..., Run]
) -> None:
    figures = {2: (0.7, 0.6, 0.8), 3: (0.4, 0.3, 0.5)}
    run = make_run(PLAN.format(patients=1000), [ABANDONED, PUBLISHED, PUBLISHED], figures)
    with app.store.read() as session:
        status = privacy_status(session, run)
    assert status is not None
    assert status.initial is not None
    assert [evaluation.model_number for evaluation in status.evaluations] == [0, 2]
    assert len(status.alarms) == 1


def test_run_status_has_the_figures_of_the_page(app: AppContext, make_run: Callable[..., Run]) -> None:
    run = make_run(PLAN.format(patients=1000), [PUBLISHED] * 3, {1: (0.61, 0.55, 0.67), 3: (0.2, 0.1, 0.3)})
    with app.store.read() as session:
        row = json.loads(json.dumps(describe_run(session, run, privacy_status(session, run))))["privacy"]
        words = "\n".join(status_words(privacy_status(session, run)))
    assert row["train"] == {"count": 3, "epsilon": train_spent(plan_of(run), 3)}
    assert row["evaluations"][1] == {"model_number": 2, "sites": 3, "auc": 0.2, "low": 0.1, "high": 0.3}
    assert len(row["alarms"]) == 1
    assert f"training {row['train']['epsilon']:.2f} of 8 after 3 rounds" in words
    assert "initial model 0.610 (0.550 to 0.670), after round 2 0.200 (0.100 to 0.300)" in words


def test_a_run_without_privacy_says_in_one_line_that_its_sum_is_not_noised(
    app: AppContext, ada: TestClient, make_run: Callable[..., Run]
) -> None:
    run = make_run('name = "p"\narchitecture = "lite"\nrounds = 2\n', [RoundState.TRAINING], {})
    assert words_of(ada.get(f"/runs/{run.run_id.hex()}").text).count(NOT_NOISED) == 1
    with app.store.read() as session:
        assert status_words(privacy_status(session, run)) == [f"privacy: {NOT_NOISED}"]
        assert describe_run(session, run, privacy_status(session, run))["privacy"] is None
