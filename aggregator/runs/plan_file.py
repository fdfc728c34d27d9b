"""plan.toml and a model file become a TrainingPlan. `deploy/plan.toml` is the commented reference; a test compares.

The file holds what people decide. The manifest, the initial digest and the tensors that move come from the model file;
the run id and the rotation seed are drawn here, because a person would choose them badly. Names, defaults and bounds
are those of `federation.plan`: a new key is added to the message, to the dataclass and to deploy/plan.toml, and not
here.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

from federation.description import PART_LETTERS, ModelDescription
from federation.errors import FederationError, PlanRefused
from federation.manifest import Model, load_description, load_model
from federation.plan import Trainable, TrainingPlan
from federation.vocabulary import Metric

from aggregator.errors import PlanFileRefused
from aggregator.toml_file import Table, from_table, read_toml, rename_old_keys

RUN_ID_BYTES = 16
ROTATION_SEED_BYTES = 32

# Keys of version 0.1.0 that have another name today. Files with the old one are read, with a warning.
RENAMED = {"arm": "architecture"}

# Never in the file.
GIVEN = ("run_id", "manifest", "initial_model_digest", "encoding.rotation_seed", "origin", "moving_tensors")

# A table that is absent is an empty one: all its keys have defaults. On the wire every part of a plan is present, but
# for [privacy]: a plan without it has none.
OPTIONAL: Table = {
    "purpose": "",
    "metrics": [metric.value for metric in Metric],
    **{field.name: {} for field in fields(TrainingPlan) if is_dataclass(field.type) and field.name not in GIVEN},
}


def read_plan(path: Path, model_path: Path, random: Callable[[int], bytes]) -> TrainingPlan:
    """Read the plan to sign.

    Args:
        path: plan.toml.
        model_path: The initial model, safetensors.
        random: `random(n)` gives n unpredictable bytes, for the run id and the rotation seed.

    Raises:
        PlanFileRefused: For a missing file, no TOML, an unknown key (with the nearest), a wrong type, a value out of
            the bounds of `federation.plan`, or a model file that does not read as one.
    """
    table = read_toml(path, f"no plan at {path}; start from deploy/plan.toml", PlanFileRefused)
    rename_old_keys(table, RENAMED, str(path), PlanFileRefused)
    model = _read_model(model_path)
    description = load_description(model_path)
    origin = "" if description is None else description.origin
    moving = _moving_tensors(table, model, description, model_path)
    given = (random(RUN_ID_BYTES), model.manifest, model.digest, random(ROTATION_SEED_BYTES), origin, moving)
    values = OPTIONAL | table | {"metrics": _in_wire_order(table.get("metrics", OPTIONAL["metrics"]))}
    try:
        return from_table(TrainingPlan, values, str(path), PlanFileRefused, given=dict(zip(GIVEN, given, strict=True)))
    except PlanRefused as error:
        raise PlanFileRefused(f"{path}: {error}") from None


def _read_model(path: Path) -> Model:
    try:
        model = load_model(path)
    except FileNotFoundError:
        raise PlanFileRefused(f"no model at {path}; make one with `hemofed-site init-weights`") from None
    except FederationError as error:
        raise PlanFileRefused(f"{path}: {error}") from None
    if model.server_state:
        raise PlanFileRefused(f"{path}: expected an initial model without server-optimizer state; export one without")
    return model


def _moving_tensors(table: Table, model: Model, description: ModelDescription | None, path: Path) -> tuple[int, ...]:
    """Find the tensors of the parts that `training.trainable` names; none for all of them."""
    training = table.get("training")
    named = training.get("trainable") if isinstance(training, dict) else None
    if named not in list(Trainable) or named == Trainable.ALL:
        return ()  # another value is refused by name, with the list of those there are
    parts = "" if description is None else description.parts
    if len(parts) != len(model.manifest.tensors) or set(parts) - set(PART_LETTERS):
        raise PlanFileRefused(
            f"{path}: expected a model file that says to which part of the network each tensor belongs, for training."
            f"trainable = '{named}', got one that does not; make it with `hemofed-site init-weights`"
        )
    moving = PART_LETTERS[: list(Trainable).index(named) + 1]
    return tuple(place for place, letter in enumerate(parts) if letter in moving)


def _in_wire_order(names: object) -> object:
    """Sort the metrics as the plan wants them; in the file their order means nothing."""
    order = [metric.value for metric in sorted(Metric, key=lambda metric: metric.number)]
    if not isinstance(names, list) or not all(name in order for name in names):
        return names  # refused by name, with the list of metrics there are
    return [name for name in order if name in names]
