"""What is simulated: everything that decides the figures, and the plan a coordinator would have signed for it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Final, Literal

from federation.manifest import Model
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

from site_client.model.inputs import PIPELINE_VERSION
from site_client.model.registry import build, model_of
from site_client.phantom.lesions import Prevalence
from site_client.phantom.streams import GENERATOR_VERSION

SITES: Final = ("T", "S", "N", "C", "R")
UNSEEN: Final = "U"
VALIDATION_FRACTION: Final = 0.2


@dataclass(frozen=True)
class SimulationSettings:
    """Equal settings and an equal seed give equal figures (on one kind of machine, one version of torch). As they stand
    here they are those of docs/simulation.

    studies: of a site, validation patients included. rounds x epochs: passes over the training studies, of every arm.
    """

    architecture: str = "lite"
    studies: int = 50
    test_studies: int = 40
    rounds: int = 24
    epochs: int = 4
    image_size_px: int = 64
    slices_max: int = 24
    learning_rate: float = 0.001
    studies_per_step: int = 4
    slices_per_study: int = 4
    prevalence: Prevalence = "balanced"
    test_prevalence: Prevalence = "balanced"
    difficulty: float = 0.2
    patients_seed: int = 1
    server: Literal["fedavg", "fedavgm"] = "fedavgm"
    momentum: float = 0.7
    bits: int = 6
    clip_norm: float = 10.0

    @property
    def passes(self) -> int:
        return self.rounds * self.epochs

    @property
    def digest(self) -> str:
        """Names the results of these settings: 16 hex digits."""
        parts = {**asdict(self), "generator": GENERATOR_VERSION, "pipeline": PIPELINE_VERSION}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Raises PlanRefused when an arm cannot be trained so; the central arm's passes are all in one plan."""
        plan_of(self, seed=1, weight_cap=1)
        self.training(self.passes)

    def training(self, epochs: int) -> LocalTraining:
        return LocalTraining(
            epochs=epochs,
            learning_rate=self.learning_rate,
            weight_decay=1e-4,
            proximal_mu=0.0,
            studies_per_step=self.studies_per_step,
            studies_min=1,
            slices_per_study=self.slices_per_study,
        )


def initial_model(settings: SimulationSettings, seed: int) -> Model:
    """Every arm of the comparison starts from these weights."""
    return model_of(build(settings.architecture, seed))


def plan_of(settings: SimulationSettings, seed: int, weight_cap: int) -> TrainingPlan:
    """The plan of the federated arm. `weight_cap`: the largest site's number of training studies."""
    model = initial_model(settings, seed)
    key = hashlib.sha256(f"hemofed simulation|{settings.digest}|{seed}".encode()).digest()
    kind = ServerKind[settings.server.upper()]
    return TrainingPlan(
        run_id=key[:16],
        name="simulation",
        purpose="",
        architecture=settings.architecture,
        manifest=model.manifest,
        initial_model_digest=model.digest,
        rounds=settings.rounds,
        inputs=Inputs(settings.image_size_px, settings.slices_max),
        training=settings.training(settings.epochs),
        server=ServerOptimizer(kind, 1.0, settings.momentum),
        cohort=CohortBounds(minimum=len(SITES), target=len(SITES), maximum=len(SITES)),
        deadlines=Deadlines(training_s=3600, phase_s=60),
        encoding=Encoding(settings.clip_norm, settings.bits, weight_cap, rotation_seed=key),
        metrics=(Metric.LOSS, Metric.HISTOGRAMS),
    )
