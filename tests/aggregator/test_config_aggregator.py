"""aggregator.toml and plan.toml: the references say what the code says, and mistakes stop the start."""

import dataclasses
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from federation.manifest import Manifest, Model, TensorSpec, save_model
from federation.plan import ServerKind, TrainingPlan
from federation.vocabulary import Metric

from aggregator.config import AggregatorSettings, from_table, load_settings
from aggregator.errors import ConfigRefused, PlanFileRefused
from aggregator.runs.plan_file import PlanFile, read_plan

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def keys_of(kind: type) -> dict:
    """Every key a dataclass of settings knows, nested."""
    hints = get_type_hints(kind)
    return {name: keys_of(hint) if dataclasses.is_dataclass(hint) else None for name, hint in hints.items()}


def keys_in(table: dict) -> dict:
    return {key: keys_in(value) if isinstance(value, dict) else None for key, value in table.items()}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


# --- aggregator.toml ---


def test_the_reference_holds_every_key_with_its_default() -> None:
    table = tomllib.loads((DEPLOY / "aggregator.toml").read_text())
    assert keys_in(table) == keys_of(AggregatorSettings)
    assert load_settings(DEPLOY / "aggregator.toml") == AggregatorSettings()


@pytest.mark.parametrize("name", ["aggregator.toml", "plan.toml"])
def test_every_key_of_a_reference_is_explained_above_it(name: str) -> None:
    lines = (DEPLOY / name).read_text().splitlines()
    for before, line in pairwise(lines):
        if re.match(r"\w+ = ", line):
            assert before.startswith("# "), line


def test_an_empty_file_gives_the_defaults_and_the_database_in_the_folder(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, ""))
    assert settings == AggregatorSettings()
    assert settings.database_url == "sqlite:////var/lib/hemofed-aggregator/hub.sqlite"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[listne]\n", "unknown key 'listne'; did you mean 'listen'?"),
        ('[listen]\nenrollment = ""\n', "unknown key 'enrollment'; did you mean 'enrolment'?"),
        ("[driver]\nzzz = 1\n", "expected one of abandoned_in_a_row_max"),
        ("[driver]\nthreads = 1.5\n", "expected int, got float"),
        ("[driver]\nthreads = true\n", "expected int, got bool"),
        ('[driver]\ninterval_s = "1"\n', "expected float, got str"),
        ("listen = 1\n", "expected a table, got int"),
        ('[listen]\nhost_names = "hub"\n', "expected a list, got str"),
        ("[listen]\nhost_names = [1]\n", "expected str, got int"),
        ("[driver]\nthreads = 0\n", "driver.threads: expected 1..64, got 0"),
        ("[pacing]\nmasking_s = nan\n", "pacing.masking_s"),
        ("[pacing]\nidle_s = inf\n", "pacing.idle_s"),
        ('[listen]\nsites = "8443"\n', "listen.sites: expected host:port"),
        ('[listen]\nsites = ""\n', "listen.sites: expected host:port"),
        ('[listen]\ndashboard = "localhost:99999"\n', "listen.dashboard: expected host:port"),
        ("[listen\n", "no TOML"),
    ],
)
def test_a_mistake_stops_the_start_and_names_the_key(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigRefused, match=re.escape(told)):
        load_settings(write(tmp_path, text))


def test_a_missing_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigRefused, match=r"copy deploy/aggregator\.toml"):
        load_settings(tmp_path / "none.toml")


def test_an_integer_will_do_where_a_float_is_expected_and_the_enrolment_listener_may_be_closed(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[pacing]\nidle_s = 10\n[listen]\nenrolment = ""\n'))
    assert settings.pacing.idle_s == 10.0
    assert isinstance(settings.pacing.idle_s, float)
    assert settings.listen.enrolment == ""


# --- plan.toml ---


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    manifest = Manifest((TensorSpec("head.weight", (2, 3)), TensorSpec("head.bias", (2,))))
    save_model(tmp_path / "initial.safetensors", Model(manifest, np.arange(8, dtype=np.float32)))
    return tmp_path / "initial.safetensors"


def counting(size: int) -> bytes:
    return bytes(range(size))


def test_the_reference_plan_holds_every_key_with_its_default_and_is_a_valid_plan(model_path: Path) -> None:
    table = tomllib.loads((DEPLOY / "plan.toml").read_text())
    assert keys_in(table) == keys_of(PlanFile)
    decided = {key: table[key] for key in ("name", "architecture", "rounds")}
    assert from_table(PlanFile, table, "plan", PlanFileRefused) == PlanFile(**decided)
    plan = read_plan(DEPLOY / "plan.toml", model_path, counting)
    assert plan.architecture == "densenet121-gru"
    assert plan.metrics == (Metric.LOSS, Metric.HISTOGRAMS)


def test_the_model_file_and_chance_fill_in_what_nobody_should_type(tmp_path: Path, model_path: Path) -> None:
    text = 'name = "pilot"\narchitecture = "lite"\nrounds = 2\n[server]\nkind = "fedadam"\ntau = 0.001\n'
    path = write(tmp_path, text)
    plan = read_plan(path, model_path, counting)
    assert plan.manifest.size == 8
    assert len(plan.initial_model_digest) == 32
    assert (plan.run_id, plan.encoding.rotation_seed) == (counting(16), counting(32))
    assert plan.server.kind is ServerKind.FEDADAM
    assert TrainingPlan.from_bytes(plan.to_bytes()) == plan


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'architecture' is missing"),
        ('name = "p"\narchitecture = "lite"\nround = 2\n', "unknown key 'round'; did you mean 'rounds'?"),
        ('name = "p"\narchitecture = "lite"\nrounds = 2\n[encoding]\nclipnorm = 1.0\n', "did you mean 'clip_norm'?"),
        ('name = "p"\narchitecture = "lite"\nrounds = 0\n', "plan.rounds: expected a whole number from 1 to 1000"),
        ('name = "p"\narchitecture = "lite"\nrounds = 2\n[encoding]\nbits = 7\n', "plan.encoding.bits"),
        ('name = "p"\narchitecture = "lite"\nrounds = 2\n[server]\nkind = "adam"\n', "expected one of fedavg"),
        ('name = "p"\narchitecture = "lite"\nrounds = 2\nmetrics = ["accuracy"]\n', "expected one of loss, histograms"),
        ('name = "p"\narchitecture = "lite"\nrounds = 2\n[cohort]\nminimum = 2\n', "plan.cohort.minimum"),
        ("name = ", "no TOML"),
    ],
)
def test_a_mistake_in_a_plan_is_refused_and_named(tmp_path: Path, model_path: Path, text: str, told: str) -> None:
    with pytest.raises(PlanFileRefused, match=re.escape(told)):
        read_plan(write(tmp_path, text), model_path, counting)


def test_a_model_file_that_is_missing_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanFileRefused, match="init-weights"):
        read_plan(DEPLOY / "plan.toml", tmp_path / "none", counting)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(PlanFileRefused, match="model"):
        read_plan(DEPLOY / "plan.toml", tmp_path / "junk", counting)


def test_a_model_with_server_state_begins_no_run(tmp_path: Path) -> None:
    manifest = Manifest((TensorSpec("w", (2,)),))
    save_model(tmp_path / "late", Model(manifest, np.zeros(2, np.float32), (np.zeros(2),)))
    with pytest.raises(PlanFileRefused, match="server-optimizer state"):
        read_plan(DEPLOY / "plan.toml", tmp_path / "late", counting)
