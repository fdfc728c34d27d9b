"""The doctor times a training step, and says in words whether a round fits hours and deadline."""

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation.plan import Deadlines, Inputs, LocalTraining, TrainingPlan, sign_plan
from federation.vocabulary import SiteState

from site_client.agent.rounds.plans import Plans
from site_client.check_result import Color
from site_client.config import FoldersSettings, IdleSettings, SiteSettings, TrainingSettings
from site_client.doctor.compute.training_time import (
    RoundShape,
    StudyTimes,
    allowed_within,
    check_training_time,
    time_a_study,
    verdict,
)
from site_client.records import RunId, Status
from site_client.spool import TrainerSide
from tests.site_client.agent.conftest import Consortium
from tests.site_client.agent.conftest import plan as plan  # a fixture
from tests.site_client.agent.test_privacy_ledger import private as private  # a fixture

ROOT = Path(__file__).parents[2]
MONDAY = datetime(2026, 11, 23, 9, tzinfo=UTC)
SMALL = RoundShape("Small", "lite", Inputs(64, 32), LocalTraining(studies_min=1), Deadlines())


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    folders = FoldersSettings(tmp_path / "state", tmp_path / "spool")
    return SiteSettings("mercy", folders=folders, training=TrainingSettings(device="cpu"))


def test_a_real_step_of_the_plan_s_network_is_timed_and_the_hours_allowed_decide(
    settings: SiteSettings, plan: TrainingPlan
) -> None:
    times = time_a_study(settings, SMALL)
    assert times.trained_s > times.evaluated_s > 0
    never = replace(settings, idle=IdleSettings(windows=("Sun for 1min",)))
    small = replace(plan, architecture="lite", inputs=Inputs(64, 32), deadlines=Deadlines(86_400))
    (result,) = check_training_time(never, small, MONDAY)
    assert result.color is Color.RED
    assert "leave 0 min: it does not fit" in result.found
    assert "idle.windows" in result.fix


def test_without_a_plan_the_default_values_of_plan_toml_are_taken() -> None:
    table = tomllib.loads((ROOT / "deploy" / "plan.toml").read_text())
    shape = RoundShape()
    assert shape.architecture == table["architecture"]
    assert (shape.inputs.image_size_px, shape.inputs.slices_max) == tuple(table["inputs"].values())
    assert shape.deadlines.training_s == table["deadlines"]["training_s"]
    assert shape.training.studies_per_step == table["training"]["studies_per_step"]


def test_no_step_is_timed_beside_a_training(settings: SiteSettings, plan: TrainingPlan) -> None:
    status = Status(MONDAY, SiteState.TRAINING, run_id=RunId(bytes(16)), round=1, eta_s=7200)
    TrainerSide(settings.folders.spool).write_status(status)
    (result,) = check_training_time(settings, plan, MONDAY)
    assert (result.color, "needs 2.0 h more" in result.found) == (Color.GREY, True)


def test_no_step_of_a_private_plan_is_timed(settings: SiteSettings, private: TrainingPlan) -> None:
    (result,) = check_training_time(settings, private, MONDAY)
    assert (result.color, "private plan" in result.found) == (Color.GREY, True)


@pytest.mark.parametrize(
    ("training_s", "studies", "color", "words"),
    [
        (3600, (100, 0), Color.GREEN, "needs 17 min; of its 60 min the hours allowed here leave 60 min: it fits"),
        (
            3600,
            (300, 0),
            Color.AMBER,
            "of its 60 min the hours allowed here leave 60 min: it fits only if",
        ),
        (3600, (400, 0), Color.RED, "needs 67 min; of its 60 min the hours allowed here leave 60 min: it does not fit"),
        (3600, (100, 500), Color.AMBER, "a round of the plan 'Small' with 600 studies needs 33 min"),
        (3600, None, Color.GREEN, "with 1 studies (the least; nothing was scanned yet) needs 0 min"),
    ],
)
def test_a_round_is_held_against_its_deadline_in_words(
    training_s: int, studies: tuple[int, int] | None, color: Color, words: str
) -> None:
    shape = replace(SMALL, deadlines=Deadlines(training_s))
    result = verdict(shape, StudyTimes(10.0, 2.0, "cpu-fp32"), studies, float(training_s))
    assert result.color is color
    assert words in result.found
    assert (result.fix != "") == (color is not Color.GREEN)


@pytest.mark.parametrize(
    ("policy", "days", "hours"),
    [
        (IdleSettings(), 3, 72),
        (IdleSettings(windows=("19:00 for 12h",)), 3, 36),
        (IdleSettings(windows=("Sat,Sun for 1d",)), 7, 48),
        (IdleSettings(windows=("Sat,Sun for 1d",)), 3, 0),
        (IdleSettings(blackout=("2026-11-24",)), 3, 48),
    ],
)
def test_only_the_hours_and_days_that_site_toml_allows_count(policy: IdleSettings, days: int, hours: int) -> None:
    assert allowed_within(policy, MONDAY, days * 86_400.0) == pytest.approx(3600 * hours, abs=400)


def test_a_network_that_this_version_does_not_have_is_red(settings: SiteSettings, plan: TrainingPlan) -> None:
    (result,) = check_training_time(settings, replace(plan, architecture="of-tomorrow"), MONDAY)
    assert (result.color, "of-tomorrow" in result.found) == (Color.RED, True)


@pytest.mark.slow
def test_the_command_times_the_newest_plan_that_the_agent_keeps(tmp_path: Path, plan: TrainingPlan) -> None:
    consortium, small = Consortium(), replace(plan, architecture="lite", inputs=Inputs(64, 32))
    Plans(tmp_path / "state" / "agent" / "plans").keep(
        sign_plan(small, consortium.custodian), small.digest, consortium.custodian.public_key()
    )
    config = tmp_path / "site.toml"
    config.write_text('name = "mercy"\n[folders]\nstate = "state"\nspool = "spool"\n[training]\ndevice = "cpu"\n')
    command = [sys.executable, "-m", "site_client.cli", "doctor", "--json", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (line,) = [line for line in json.loads(done.stdout) if line["check"] == "round time"]
    assert f"a round of the plan {small.name!r}" in line["found"]
    assert "(lite, cpu-fp32)" in line["found"]
