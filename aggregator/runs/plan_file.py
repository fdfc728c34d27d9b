"""plan.toml and a model file become a TrainingPlan. `deploy/plan.toml` is the commented reference; a test compares.

The file holds what people decide. The manifest and the initial digest come from the model file, the run id and the
rotation seed are drawn here: nobody should type those. Bounds are `federation.plan`'s alone.
"""

import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from federation.errors import FederationError, PlanRefused
from federation.manifest import Model, load_model
from federation.plan import (
    CohortBounds,
    Deadlines,
    Encoding,
    Inputs,
    LocalTraining,
    ServerKind,
    ServerOptimizer,
    TrainingPlan,
)
from federation.vocabulary import Metric

from aggregator.config import from_table
from aggregator.errors import PlanFileRefused

Kind = TypeVar("Kind", ServerKind, Metric)

RUN_ID_BYTES = 16
ROTATION_SEED_BYTES = 32


@dataclass(frozen=True)
class InputsTable:
    image_size_px: int = 256
    slices_max: int = 64


@dataclass(frozen=True)
class TrainingTable:
    epochs: int = 1
    learning_rate: float = 0.0003
    weight_decay: float = 0.0001
    proximal_mu: float = 0.0
    studies_per_step: int = 1
    studies_min: int = 32
    slices_per_study: int = 0


@dataclass(frozen=True)
class ServerTable:
    kind: str = "fedavg"
    learning_rate: float = 1.0
    beta1: float = 0.0
    beta2: float = 0.0
    tau: float = 0.0


@dataclass(frozen=True)
class CohortTable:
    minimum: int = 3
    target: int = 3
    maximum: int = 64


@dataclass(frozen=True)
class DeadlinesTable:
    training_s: int = 259_200
    phase_s: int = 600


@dataclass(frozen=True)
class EncodingTable:
    clip_norm: float = 1.0
    bits: int = 6
    weight_cap: int = 1000


@dataclass(frozen=True)
class PlanFile:
    """What plan.toml may say. `name`, `architecture` and `rounds` have no default: they are the decision."""

    name: str
    architecture: str
    rounds: int
    purpose: str = ""
    metrics: tuple[str, ...] = ("loss", "histograms")
    inputs: InputsTable = field(default_factory=InputsTable)
    training: TrainingTable = field(default_factory=TrainingTable)
    server: ServerTable = field(default_factory=ServerTable)
    cohort: CohortTable = field(default_factory=CohortTable)
    deadlines: DeadlinesTable = field(default_factory=DeadlinesTable)
    encoding: EncodingTable = field(default_factory=EncodingTable)


def read_plan(path: Path, model_path: Path, random: Callable[[int], bytes]) -> TrainingPlan:
    """The plan to sign. `random(n)` gives n unpredictable bytes, for the run id and the rotation seed.

    Raises: PlanFileRefused for a missing file, no TOML, an unknown key (with the nearest), a wrong type, a value out of
    `federation.plan`'s bounds, or a model file that does not read as one.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanFileRefused(f"no plan at {path}; start from deploy/plan.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanFileRefused(f"{path} is no TOML: {error}") from None
    file = from_table(PlanFile, table, str(path), PlanFileRefused)
    try:
        return _plan(file, _read_model(model_path), random)
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


def _plan(file: PlanFile, model: Model, random: Callable[[int], bytes]) -> TrainingPlan:
    server = ServerOptimizer(
        _member(ServerKind, "server.kind", file.server.kind),
        file.server.learning_rate,
        file.server.beta1,
        file.server.beta2,
        file.server.tau,
    )
    metrics = {_member(Metric, "metrics", name) for name in file.metrics}
    return TrainingPlan(
        run_id=random(RUN_ID_BYTES),
        name=file.name,
        purpose=file.purpose,
        architecture=file.architecture,
        manifest=model.manifest,
        initial_model_digest=model.digest,
        rounds=file.rounds,
        inputs=Inputs(**asdict(file.inputs)),
        training=LocalTraining(**asdict(file.training)),
        server=server,
        cohort=CohortBounds(**asdict(file.cohort)),
        deadlines=Deadlines(**asdict(file.deadlines)),
        encoding=Encoding(**asdict(file.encoding), rotation_seed=random(ROTATION_SEED_BYTES)),
        metrics=tuple(sorted(metrics, key=lambda metric: metric.number)),
    )


def _member(kind: type[Kind], where: str, name: str) -> Kind:
    try:
        return kind[name.upper()]
    except KeyError:
        known = ", ".join(member.name.lower() for member in kind)
        raise PlanFileRefused(f"{where}: expected one of {known}, got {name!r}") from None
