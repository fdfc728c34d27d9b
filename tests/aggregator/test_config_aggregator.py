"""aggregator.toml and plan.toml: the references say what the code says, and mistakes stop the start."""

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation.description import ModelDescription
from federation.gate import Gate
from federation.manifest import Manifest, Model, TensorSpec, save_model
from federation.plan import ServerKind, TrainingPlan
from federation.privacy import Privacy
from federation.vocabulary import Metric
from msgspec import inspect
from structlog.testing import capture_logs

from aggregator.config import AggregatorSettings, load_settings
from aggregator.errors import ConfigRefused, PlanFileRefused
from aggregator.runs.plan_file import GIVEN, read_plan
from aggregator.toml_file import present

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def keys_of(kind: inspect.Type, path: str = "") -> dict[str, Any] | None:
    """Every key that a table of this type may hold, nested; None for a type that is no table."""
    kind = present(kind)
    if not isinstance(kind, inspect.StructType | inspect.DataclassType):
        return None
    names = {field.name: field.type for field in kind.fields if f"{path}{field.name}" not in GIVEN}
    return {name: keys_of(nested, f"{path}{name}.") for name, nested in names.items()}


def keys_in(table: dict[str, Any]) -> dict[str, Any]:
    return {key: keys_in(value) if isinstance(value, dict) else None for key, value in table.items()}


def tables() -> Iterator[tuple[str, tuple[inspect.Field, ...]]]:
    """The name and the keys of every table of the settings."""
    settings = inspect.type_info(AggregatorSettings)
    assert isinstance(settings, inspect.StructType)
    for table in settings.fields:
        assert isinstance(table.type, inspect.StructType)
        yield table.name, table.type.fields


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


# --- aggregator.toml ---


def test_the_reference_holds_every_key_with_its_default() -> None:
    table = tomllib.loads((DEPLOY / "aggregator.toml").read_text())
    assert keys_in(table) == keys_of(inspect.type_info(AggregatorSettings))
    assert load_settings(DEPLOY / "aggregator.toml") == AggregatorSettings()


def with_privacy(text: str) -> str:
    """plan.toml with the commented tables switched on, as their comments say."""
    return re.sub(r"^#(?=[#\[\w])", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["aggregator.toml", "plan.toml"])
def test_every_key_of_a_reference_is_explained_above_it(name: str) -> None:
    lines = with_privacy((DEPLOY / name).read_text()).splitlines()
    for before, line in pairwise(lines):
        if re.match(r"\w+ = ", line):
            assert before.startswith("# "), line


def test_an_empty_file_gives_the_defaults_and_the_database_in_the_folder(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, ""))
    assert settings == AggregatorSettings()
    assert settings.database_url == "sqlite:////var/lib/hemofed-aggregator/hub.sqlite"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[listne]\n", "unknown key 'listne'; did you mean 'listen'?"),
        ('[listen]\nenrollment = ""\n', "unknown key 'enrollment'; did you mean 'enrolment'?"),
        ("[driver]\nzzz = 1\n", "expected one of abandoned_in_a_row_max"),
        ("[driver]\nthreads = 1.5\n", "settings.toml: driver.threads: expected int, got float 1.5"),
        ("[driver]\nthreads = true\n", "driver.threads: expected int, got bool True"),
        ('[driver]\ninterval_s = "1"\n', "driver.interval_s: expected float, got str '1'"),
        ("listen = 1\n", "listen: expected a table, got int 1"),
        ('[listen]\nhost_names = "hub"\n', "listen.host_names: expected a list, got str 'hub'"),
        ("[listen]\nhost_names = [1]\n", "listen.host_names[0]: expected str, got int 1"),
        ("[state]\nfolder = 3\n", "state.folder: expected str, got int 3"),
        ("[driver]\nthreads = 0\n", "driver.threads: expected 1..64, got 0"),
        ("[pacing]\nmasking_s = nan\n", "pacing.masking_s: expected 0.05..60, got nan"),
        ("[pacing]\nidle_s = inf\n", "pacing.idle_s: expected 0.1..86400, got inf"),
        ('[listen]\nsites = "8443"\n', "listen.sites: expected host:port"),
        ('[listen]\nsites = ""\n', "listen.sites: expected host:port"),
        ('[listen]\ndashboard = "localhost:99999"\n', "listen.dashboard: expected host:port"),
        ("[listen\n", "no TOML"),
    ],
)
def test_a_mistake_stops_the_start_and_names_the_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigRefused, match=re.escape(sentence)):
        load_settings(write(tmp_path, text))


def test_every_number_of_the_settings_has_its_bounds_beside_it() -> None:
    for table, fields in tables():
        for field in fields:
            if isinstance(field.type, inspect.IntType | inspect.FloatType):
                assert None not in (field.type.ge, field.type.le), f"{table}.{field.name}"


def test_the_bounds_in_the_reference_are_those_of_the_code() -> None:
    """A comment such as "... 1..64" ends the explanation of each number."""
    text = (DEPLOY / "aggregator.toml").read_text()
    for table, fields in tables():
        section = text.split(f"[{table}]\n")[1].split("\n[")[0]
        for field in fields:
            if isinstance(field.type, inspect.IntType | inspect.FloatType):
                above = section.split(f"\n{field.name} = ")[0].splitlines()[-1]
                assert above.endswith(f" {field.type.ge}..{field.type.le}"), f"{table}.{field.name}"


def test_a_key_of_version_0_1_is_read_with_one_warning(tmp_path: Path) -> None:
    path = write(tmp_path, "[driver]\nopening_threads = 3\n")
    with capture_logs() as events:
        assert load_settings(path).driver.aggregation_threads == 3
    [event] = events
    assert (event["log_level"], event["key"]) == ("warning", "driver.opening_threads")
    assert event["write_instead"] == "driver.aggregation_threads"


def test_a_key_under_its_old_and_its_new_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "[driver]\nopening_threads = 3\naggregation_threads = 4\n")
    with pytest.raises(ConfigRefused, match=r"both are there; remove 'driver\.opening_threads'"):
        load_settings(path)


def test_a_missing_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigRefused, match=r"copy deploy/aggregator\.toml"):
        load_settings(tmp_path / "none.toml")


def test_an_integer_is_read_as_a_float_and_the_enrolment_listener_may_be_closed(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[pacing]\nidle_s = 10\n[listen]\nenrolment = ""\n'))
    assert settings.pacing.idle_s == 10.0
    assert isinstance(settings.pacing.idle_s, float)
    assert settings.listen.enrolment == ""


# --- plan.toml ---

DECIDED = 'name = "p"\narchitecture = "lite"\nrounds = 2\n'
HISTOGRAMS = DECIDED + 'metrics = ["histograms"]\n'
PRIVATE = """
[privacy]
sampling_rate = 0.5
noise_multiplier = 2.0
patients_expected = 100
batch_max = 100
validation_multiplier = 8.0
epsilon_validation = 2.0
"""


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    manifest = Manifest((TensorSpec("head.weight", (2, 3)), TensorSpec("head.bias", (2,))))
    save_model(tmp_path / "initial.safetensors", Model(manifest, np.arange(8, dtype=np.float32)))
    return tmp_path / "initial.safetensors"


def counting(size: int) -> bytes:
    return bytes(range(size))


def test_the_reference_plan_holds_every_key_with_its_default_and_is_a_valid_plan(model_path: Path) -> None:
    text = (DEPLOY / "plan.toml").read_text()
    assert keys_in(tomllib.loads(with_privacy(text))) == keys_of(inspect.type_info(TrainingPlan))
    table = tomllib.loads(text)
    decided = "".join(f"{key} = {table[key]!r}\n" for key in ("name", "architecture", "rounds"))
    plan = read_plan(DEPLOY / "plan.toml", model_path, counting)
    assert plan == read_plan(write(model_path.parent, decided), model_path, counting)
    assert plan.architecture == "densenet121-gru"
    assert plan.metrics == (Metric.LOSS, Metric.HISTOGRAMS)


def test_the_privacy_of_the_reference_plan_is_a_valid_one_with_its_defaults_said(model_path: Path) -> None:
    text = with_privacy((DEPLOY / "plan.toml").read_text())
    # A private plan has no gate.
    private = text.replace(text[text.index("[gate]") : text.index("\n\n", text.index("[gate]"))], "").replace(
        'metrics = ["loss", "histograms"]', 'metrics = ["histograms"]'
    )
    assert private != text
    privacy = read_plan(write(model_path.parent, private), model_path, counting).privacy
    assert privacy is not None
    table = " = " + text.split("[privacy]\n")[1]
    for field in dataclasses.fields(Privacy):
        above = table.split(f"\n{field.name} = ")[0].rpartition(" = ")[2].replace("\n# ", " ")
        said = re.search(r"\(default ([^)]+)\)", above)
        if field.default is dataclasses.MISSING:
            assert said is None, field.name
        elif said is None:
            assert (field.default, "(default)" in above) == (0, True), field.name
        else:
            assert float(said[1]) == field.default == getattr(privacy, field.name), field.name


def test_the_gate_of_the_reference_plan_is_a_valid_one_with_its_defaults_said(model_path: Path) -> None:
    text = with_privacy((DEPLOY / "plan.toml").read_text().split("# Differential privacy of")[0])
    assert read_plan(write(model_path.parent, text), model_path, counting).gate == Gate()
    for field in dataclasses.fields(Gate):
        above = text.split(f"\n{field.name} = ")[0].rpartition(" = ")[2]
        assert f"(default {field.default})" in above.replace("\n# ", " "), field.name


def test_metrics_may_stand_in_any_order_and_twice(tmp_path: Path, model_path: Path) -> None:
    text = DECIDED + 'metrics = ["histograms", "loss", "loss"]\n'
    assert read_plan(write(tmp_path, text), model_path, counting).metrics == (Metric.LOSS, Metric.HISTOGRAMS)


def test_a_plan_with_the_old_key_arm_is_read_with_one_warning(tmp_path: Path, model_path: Path) -> None:
    with capture_logs() as events:
        plan = read_plan(write(tmp_path, 'name = "p"\narm = "lite"\nrounds = 2\n'), model_path, counting)
    assert plan.architecture == "lite"
    assert [(event["log_level"], event["write_instead"]) for event in events] == [("warning", "architecture")]


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
    ("text", "sentence"),
    [
        ("", "'name' is missing"),
        ('name = "p"\nrounds = 2\n', "'architecture' is missing"),
        (DECIDED + 'run_id = "r"\n', "unknown key 'run_id'"),
        ('name = "p"\narchitecture = "lite"\nrounds = "2"\n', "rounds: expected int, got str '2'"),
        (DECIDED + "encoding = 3\n", "encoding: expected a table, got int 3"),
        (DECIDED + '[encoding]\nrotation_seed = "s"\n', "encoding: unknown key 'rotation_seed'"),
        ('name = "p"\narchitecture = "lite"\nround = 2\n', "unknown key 'round'; did you mean 'rounds'?"),
        (DECIDED + "[encoding]\nclipnorm = 1.0\n", "did you mean 'clip_norm'?"),
        ('name = "p"\narchitecture = "lite"\nrounds = 0\n', "plan.rounds: expected a whole number from 1 to 1000"),
        (DECIDED + "[encoding]\nbits = 7\n", "plan.encoding.bits"),
        (DECIDED + '[server]\nkind = "adam"\n', "server.kind: expected one of fedavg, "),
        (DECIDED + 'metrics = ["accuracy"]\n', "metrics[0]: expected one of loss, histograms, got 'accuracy'"),
        (DECIDED + "[cohort]\nminimum = 2\n", "plan.cohort.minimum"),
        (DECIDED + "[privacy]\nsampling_rat = 0.1\n", "privacy: unknown key 'sampling_rat'; did you mean"),
        (DECIDED + "[privacy]\nsampling_rate = 0.1\n", "privacy: 'noise_multiplier' is missing"),
        (
            DECIDED + PRIVATE + 'epsilon_train = 9.0\ndelta = "small"\n',
            "privacy.delta: expected float, got str 'small'",
        ),
        (DECIDED + PRIVATE + "epsilon_train = 9\n", "plan.metrics: expected no 'loss' in a private plan"),
        (
            HISTOGRAMS + "[training]\nepochs = 2\n" + PRIVATE + "epsilon_train = 9\n",
            "plan.training.epochs: expected its default 1",
        ),
        (HISTOGRAMS + PRIVATE + "epsilon_train = 0.5\n", "plan.privacy.epsilon_train: expected a budget of"),
        (
            DECIDED + '[training]\ntrainable = "trunk"\n',
            "training.trainable: expected one of heads, reader, norms, all",
        ),
        (DECIDED + '[training]\ntrainable = "heads"\n', "says to which part of the network each tensor belongs"),
        ("name = ", "no TOML"),
    ],
)
def test_a_mistake_in_a_plan_is_refused_and_named(tmp_path: Path, model_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(PlanFileRefused, match=re.escape(sentence)):
        read_plan(write(tmp_path, text), model_path, counting)


@pytest.mark.parametrize(("trainable", "moving"), [("heads", (1,)), ("reader", (1, 3)), ("norms", (0, 1, 3))])
def test_the_model_file_says_which_tensors_a_plan_moves(tmp_path: Path, trainable: str, moving: tuple[int]) -> None:
    manifest = Manifest(tuple(TensorSpec(name, (2,)) for name in "abcd"))
    described = ModelDescription("lite", parts="nhtr")
    save_model(tmp_path / "model", Model(manifest, np.zeros(8, np.float32)), description=described)
    path = write(tmp_path, DECIDED + f'[training]\ntrainable = "{trainable}"\n')
    plan = read_plan(path, tmp_path / "model", counting)
    assert (plan.moving_tensors, plan.moving.size) == (moving, 2 * len(moving))
    assert TrainingPlan.from_bytes(plan.to_bytes()) == plan
    assert read_plan(write(tmp_path, DECIDED), tmp_path / "model", counting).moving_tensors == ()


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
