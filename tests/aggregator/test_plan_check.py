"""`plan check`: a plan's figures before its run, and the plans that would run in vain."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from federation import accounting, privacy
from federation.encoding import Layout
from federation.forecast import (
    cohort_noise,
    noise_words,
    objections,
    privacy_forecast,
    rounding_over_clip,
    traffic,
    train_spent,
)
from federation.manifest import Manifest, TensorSpec
from federation.plan import CohortBounds, Encoding, LocalTraining, Trainable, TrainingPlan
from federation.privacy import Privacy
from federation.vocabulary import Metric

from aggregator.cli import main
from aggregator.config import load_settings
from aggregator.context import open_context
from aggregator.custodian.review import plan_words
from aggregator.runs import gaussian_pld
from aggregator.runs.forecast_words import NOT_NOISED
from aggregator.runs.start_check import participation, start_objections
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.states import RoundState, RunState, SeatState
from aggregator.store.tables import PhaseTime, Round, Run, Seat
from site_client.model.initial_weights import write_fresh
from tests.aggregator.conftest import Host
from tests.aggregator.test_cli_aggregator import Console, console, fresh
from tests.contract.conftest import make_plan

__all__ = ["console", "fresh", "make_plan"]  # fixtures

PRIVACY = Privacy(
    sampling_rate=0.1,
    noise_multiplier=0.8,
    patients_expected=1000,
    batch_max=200,
    epsilon_train=8.0,
    validation_interval=5,
    validation_multiplier=5.0,
    epsilon_validation=4.0,
)
PLAN = """
name = "pilot"
architecture = "lite"
rounds = 20
metrics = ["histograms"]
[training]
trainable = "heads"
[privacy]
sampling_rate = 0.1
noise_multiplier = 0.8
patients_expected = {patients}
batch_max = 200
epsilon_train = 8
validation_multiplier = 5
epsilon_validation = 2
"""


@pytest.fixture
def private(make_plan: Callable[..., TrainingPlan]) -> TrainingPlan:
    return make_plan(
        privacy=PRIVACY,
        rounds=20,
        parameters=2000,
        metrics=(Metric.HISTOGRAMS,),
        training=LocalTraining(),
        encoding=Encoding(rotation_seed=bytes(32)),
        cohort=CohortBounds(3, 5, 64),
    )


@pytest.fixture(scope="session")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initial model of 277,740 numbers, 2,328 of which are heads."""
    path = tmp_path_factory.mktemp("lite") / "initial.safetensors"
    write_fresh("lite", 1, path)
    return path


@pytest.fixture
def files(tmp_path: Path, lite: Path) -> Path:
    """A folder with an initial model."""
    shutil.copy(lite, tmp_path / "initial.safetensors")
    return tmp_path


def check(folder: Path, plan: str, *options: str) -> Result:
    (folder / "plan.toml").write_text(plan)
    model = str(folder / "initial.safetensors")
    return CliRunner().invoke(main, ["plan", "check", str(folder / "plan.toml"), "--model", model, *options])


def test_the_bytes_are_those_of_the_layouts_and_the_initial_model(private: TrainingPlan) -> None:
    figures, training = traffic(private), Layout.of(private, 2000)
    assert (figures.up_round, figures.down_round) == (training.bytes, training.sum_bytes_for(5))
    evaluation = Layout.of(private, 0)
    assert figures.up_run == 20 * training.bytes + evaluation.bytes
    assert figures.down_run == 20 * training.sum_bytes_for(5) + evaluation.sum_bytes_for(5) + 4 * 2000


def test_frozen_tensors_are_not_sent_and_their_model_travels_once(make_plan: Callable[..., TrainingPlan]) -> None:
    heads = make_plan(
        manifest=Manifest((TensorSpec("trunk", (38_000,)), TensorSpec("head", (2000,)))),
        moving_tensors=(1,),
        training=LocalTraining(trainable=Trainable.HEADS),
    )
    assert traffic(heads).up_round == Layout.of(make_plan(parameters=2000), 2000).bytes
    assert traffic(heads).down_run > 4 * 40_000


def test_what_a_plan_spends_grows_to_what_the_contract_checks(private: TrainingPlan) -> None:
    forecast = privacy_forecast(private)
    assert forecast is not None
    assert [spending.count for spending in forecast.train] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    # Rounds 1, 6, 11, 16 and the last one.
    assert [spending.count for spending in forecast.validation] == [1, 2, 3, 4, 5]
    for spent in (forecast.train, forecast.validation):
        epsilons = [spending.epsilon for spending in spent]
        assert epsilons == sorted(epsilons)
    coordinates = 2048
    delta = privacy.delta_of_prices(PRIVACY, 20, coordinates)
    price = accounting.times(privacy.train_price(PRIVACY, coordinates), 20)
    assert forecast.train[-1].epsilon == train_spent(private, 20) == accounting.epsilon(price, delta) <= 8
    assert forecast.validation[-1].epsilon <= 4
    assert train_spent(private, 0) == 0


@pytest.mark.parametrize(
    ("members", "shares", "excess"),
    [(3, 2, 1.22), (4, 2, 1.41), (5, 3, 1.29), (6, 4, 1.22), (16, 6, 1.63), (64, 22, 1.71)],
)
def test_the_excess_of_noise_is_that_of_the_shares_that_are_certain(
    private: TrainingPlan, members: int, shares: int, excess: float
) -> None:
    noise = cohort_noise(private, members)
    assert (noise.certain_shares, round(noise.excess, 2)) == (shares, excess)
    # r from its definition: noise of the mean gradient, over the clip norm.
    wanted = PRIVACY.noise_multiplier * noise.excess * np.sqrt(2000) / (0.1 * 1000 * members)
    assert noise.over_signal == pytest.approx(wanted, rel=0.05)


def test_a_ratio_is_told_by_the_measured_rule() -> None:
    assert [noise_words(ratio)[:6] for ratio in (0.3, 0.31, 1.0, 1.01)] == ["usable", "expect", "expect", "the no"]


def test_a_private_plan_is_described_with_budgets_noise_and_a_gaussian_beside_it(files: Path) -> None:
    result = check(files, PLAN.format(patients=1000))
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "2,328 of 277,740 numbers (heads)" in text
    assert "up to 3 d of training, then five phases of masking of up to 10 min each" in text
    spent = re.search(r"of training, budget 8: .* ([\d.]+) after round 20", text)
    gaussian = re.search(r"PLD of dp-accounting\): ([\d.]+); an approximation, no bound", text)
    assert spent is not None
    assert gaussian is not None
    assert 0.7 * float(spent[1]) < float(gaussian[1]) < float(spent[1]) <= 8
    assert "epsilon of evaluation, budget 2: 0.90 after evaluation 1" in text
    assert "3 sites: 2 honest shares are certain" in text
    figures = json.loads(check(files, PLAN.format(patients=1000), "--json").stdout)
    assert figures["privacy"]["train"][-1]["epsilon"] == pytest.approx(float(spent[1]), abs=0.006)
    assert figures["objections"] == []


def test_a_plan_without_privacy_says_in_one_line_that_its_sum_is_not_noised(files: Path, private: TrainingPlan) -> None:
    plain = 'name = "p"\narchitecture = "lite"\nrounds = 2\n'
    lines = [line for line in check(files, plain).stdout.splitlines() if "noise" in line]
    assert lines == [f"privacy         {NOT_NOISED}"]
    assert json.loads(check(files, plain, "--json").stdout)["privacy"] is None
    assert NOT_NOISED in plan_words(replace(private, privacy=None), None)


def test_the_custodian_reads_the_same_figures(private: TrainingPlan) -> None:
    words = plan_words(private, None)
    assert "epsilon of training, budget 8" in words
    assert "r = 0." in words
    assert "warning" not in words


def test_a_plan_over_its_budget_is_refused_with_what_it_needs(files: Path) -> None:
    result = check(files, PLAN.format(patients=1000).replace("epsilon_train = 8", "epsilon_train = 3"))
    assert result.exit_code == 1
    assert "expected a budget of 7." in result.stderr


def test_without_the_library_the_figure_beside_is_missing_and_named(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaussian_pld, "find_spec", lambda name: None)
    result = check(files, PLAN.format(patients=1000))
    assert result.exit_code == 0
    assert "pip install 'hemofed[accounting]'" in result.stdout


def test_a_plan_whose_noise_eats_its_signal_is_exported_by_force_only(console: Console, files: Path) -> None:
    plan = PLAN.format(patients=100)
    result = check(files, plan)
    assert result.exit_code == 1
    assert "(r > 1) with 3 sites" in result.stderr
    assert "epsilon of training" in result.stdout  # the figures are shown all the same
    export = ("plan", "export", str(files / "plan.toml"), str(files / "plan.request"))
    model = ("--model", str(files / "initial.safetensors"))
    assert "add --force" in console.refused(*export, *model)
    assert not (files / "plan.request").exists()
    assert console(*export, *model, "--force").exit_code == 0
    assert "warning: the noise is" in console.custodian.succeeds("review", str(files / "plan.request"))


def test_a_delta_that_allows_to_publish_a_patient_is_objected_to(private: TrainingPlan) -> None:
    for delta, objected in ((1e-3, True), (1 / 5000, True), (1 / 5001, False), (1e-6, False)):
        plan = replace(private, privacy=replace(PRIVACY, delta=delta))
        sentences = [sentence for sentence in objections(plan) if sentence.startswith("privacy.delta")]
        assert bool(sentences) == objected
        assert all("one of the 5000 patients of 5 sites" in sentence for sentence in sentences)


def test_a_weight_cap_that_lets_rounding_exceed_the_clip_norm_is_objected_to(
    files: Path, make_plan: Callable[..., TrainingPlan]
) -> None:
    plan = 'name = "p"\narchitecture = "lite"\nrounds = 2\n[encoding]\nweight_cap = 20000\n'
    result = check(files, plan)
    assert result.exit_code == 1
    assert "lower encoding.weight_cap" in result.stderr
    assert check(files, plan.replace("20000", "32")).exit_code == 0
    # docs/MODEL.md measured norms of 12.8, 3.6, .26, .09 for a clip norm of 10, with sites of about 20 studies.
    for bits, cap, measured in ((6, 1000, 12.8), (8, 1000, 3.6), (6, 24, 0.26), (8, 24, 0.09)):
        encoding = Encoding(10.0, bits, cap, bytes(32))
        measured_plan = make_plan(
            parameters=467_212, encoding=encoding, cohort=CohortBounds(), training=LocalTraining(studies_min=20)
        )
        ratio = rounding_over_clip(measured_plan)
        assert measured <= 10 * ratio <= 1.4 * measured
        assert bool(objections(measured_plan)) == (measured > 10)


# --- can the run begin? ---

PLAIN = 'name = "p"\narchitecture = "lite"\nrounds = 2\n[training]\nstudies_min = 200\n'


@pytest.fixture
def ten(console: Console) -> Console:
    """A coordinator with ten hospitals in the roster and one that no roster holds."""
    app = open_context(load_settings(console.config))
    authority = Authority(app.settings.state.folder / "ca", app.clock)
    enrolment = EnrolmentService(app.store, authority, app.settings.enrolment, app.clock, app.random)
    for number in range(10):
        enrolment.join(Host().join_request(enrolment.invite(f"site-{number:02}", auto_approve=True)))
    console.sign_roster()
    enrolment.join(Host().join_request(enrolment.invite("st-late", auto_approve=True)))
    app.store.close()
    return console


def check_here(console: Console, lite: Path, plan: str, *options: str) -> Result:
    (console.folder / "plan.toml").write_text(plan)
    return console("plan", "check", str(console.folder / "plan.toml"), "--model", str(lite), *options)


def test_without_a_state_folder_a_plan_is_checked_and_who_takes_part_is_left_open(files: Path) -> None:
    result = check(files, PLAIN)
    assert result.exit_code == 0
    assert "may take part   not known here: this machine has no state folder" in result.stdout
    assert json.loads(check(files, PLAIN, "--json").stdout)["sites"] is None


def test_a_check_names_who_may_take_part_and_who_is_in_no_roster(ten: Console, lite: Path) -> None:
    result = check_here(ten, lite, PLAIN)
    assert result.exit_code == 0, result.stderr
    names = ", ".join(f"site-{number:02}" for number in range(10))
    assert f"may take part   10 of 3 needed: {names}" in result.stdout
    assert "not in the roster in force, so not yet: st-late" in result.stdout
    assert "nothing yet: no round has been published here" in result.stdout
    wanted = check_here(ten, lite, PLAIN + "[cohort]\ntarget = 12\n")
    assert "12 are wanted, so a round waits for all of them or its deadline" in wanted.stdout


IN_VAIN = [
    (PLAIN + "[cohort]\nminimum = 40\ntarget = 40\n", "expected at least 40 hospitals (cohort.minimum), 10 may"),
    (PLAIN.replace('"lite"', '"resnext"'), "got 'resnext'"),
    (PLAIN.replace('"lite"', '"densenet121-gru"'), "tensors of densenet121-gru in the initial model, got those of"),
    (PLAIN + "[encoding]\nclip_norm = 1e-9\n", "nothing would be learned; raise encoding.clip_norm (now 1e-09)"),
]


def test_a_plan_that_cannot_begin_or_learn_is_refused(ten: Console, lite: Path) -> None:
    for plan, said in IN_VAIN:
        result = check_here(ten, lite, plan)
        assert result.exit_code == 1
        assert said in result.stderr
        assert said in json.loads(check_here(ten, lite, plan, "--json").stdout)["objections"][0]


def test_a_roster_that_has_ended_lets_no_run_begin(ten: Console, lite: Path, private: TrainingPlan) -> None:
    app = open_context(load_settings(ten.config))
    with app.store.read() as session:
        sites = participation(session, app.clock() + timedelta(days=181))
    app.store.close()
    assert sites.able == ()
    assert "the roster has ended" in start_objections(private, sites, None)[0]


def test_a_dry_run_says_what_the_check_says_and_begins_nothing(ten: Console, lite: Path) -> None:
    checked = check_here(ten, lite, PLAIN)
    request = ten.folder / "plan.request"
    assert ten("plan", "export", str(ten.folder / "plan.toml"), str(request), "--model", str(lite)).exit_code == 0
    start = ("run", "start", str(ten.custodian.sign(request)), "--model", str(lite))
    dry = ten(*start, "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, checked.stdout)
    assert ten.json("run", "list") == []
    assert ten(*start).exit_code == 0
    assert "one run at a time: p has to end first" in ten.refused(*start, "--dry-run")


def test_a_run_that_too_few_could_take_part_in_begins_by_force_only(console: Console, lite: Path) -> None:
    (console.folder / "plan.toml").write_text(PLAIN)
    request = console.folder / "plan.request"
    console("plan", "export", str(console.folder / "plan.toml"), str(request), "--model", str(lite))
    start = ("run", "start", str(console.custodian.sign(request)), "--model", str(lite))
    assert "0 may take part: lower it, or let more join; or add --force" in console.refused(*start)
    assert console.json("run", "list") == []
    assert console(*start, "--force").exit_code == 0


def test_times_and_lines_come_from_published_rounds(ten: Console, lite: Path) -> None:
    app = open_context(load_settings(ten.config))
    now = app.clock()
    with app.store.write() as session:
        plan = {"signed_plan": b"", "plan_digest": b"p"}
        session.add(Run(run_id=b"r", name="before", **plan, state=RunState.COMPLETED, created_at=now))
        session.flush()
        for number, training_s in enumerate((3600.0, 7200.0, 36_000.0), 1):
            row = Round(
                run_id=b"r",
                number=number,
                attempt=1,
                state=RoundState.PUBLISHED,
                base_model=bytes([number]),
                next_model=bytes([number + 1]),
                roster_epoch=1,
                began_at=now,
                phase_since=now,
                deadline=now,
            )
            session.add(row)
            session.flush()
            for state, seconds in ((RoundState.TRAINING, training_s), (RoundState.KEYS, 2.0), (RoundState.UPLOAD, 8.0)):
                session.add(PhaseTime(round_id=row.id, attempt=1, state=state, seconds=seconds))
            session.add(Seat(round_id=row.id, site="site-00", state=SeatState.REVEALED, bytes_up=40_000 * number))
    app.store.close()
    result = check_here(ten, lite, PLAIN)
    assert result.exit_code == 0, result.stderr
    measured = "measured        3 published rounds: training 1 h to 10 h, median 2 h; the five phases of masking 10 s"
    assert measured in result.stdout
    assert "the slowest upload ran at 5.0 kB a second or more; " in result.stdout
    slow = check_here(ten, lite, PLAIN + "[deadlines]\nphase_s = 20\n")
    assert slow.exit_code == 1
    assert "on the slowest line measured, and deadlines.phase_s allows 20 s; raise it" in slow.stderr
