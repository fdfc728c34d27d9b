"""The settings that decide a simulation's figures, and the plan that a coordinator would sign for it."""

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
    """Equal settings and an equal seed give equal figures (on one kind of machine, with one version of torch).

    The defaults are those of docs/simulation.

    Attributes:
        architecture: Of the network.
        studies: Of a site, validation patients included.
        test_studies: Of a site.
        rounds: Of the federation. All arms make rounds x epochs passes over the training studies.
        epochs: Local passes a round.
        image_size_px: Side of a slice.
        slices_max: Most slices of a study.
        learning_rate: Of AdamW.
        studies_per_step: The batch.
        slices_per_study: Of each study in a step; 0 takes all.
        prevalence: Mix of the training patients.
        test_prevalence: Mix of the test patients.
        difficulty: Of the phantoms. The default is for comparing ways of training, see docs/MODEL.md.
        patients_seed: Of the patients; the same for all trainings.
        server: Optimizer of the aggregator.
        momentum: Of fedavgm.
        bits: A parameter, before masking.
        clip_norm: L2 norm to which an update is clipped.
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
        """Passes of every arm over the training studies."""
        return self.rounds * self.epochs

    @property
    def digest(self) -> str:
        """The name of the results of these settings: 16 hex digits."""
        content = {**asdict(self), "generator": GENERATOR_VERSION, "pipeline": PIPELINE_VERSION}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Check that every arm has a valid plan; all passes of the central arm are in one plan.

        Raises:
            PlanRefused: A value is out of its bounds.
        """
        plan_of(self, seed=1, weight_cap=1)
        self.training(self.passes)

    def training(self, epochs: int) -> LocalTraining:
        """Return the training section of a plan, with so many epochs."""
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
    """Return the weights from which every arm starts."""
    return model_of(build(settings.architecture, seed))


def plan_of(settings: SimulationSettings, seed: int, weight_cap: int) -> TrainingPlan:
    """Return the plan of the federated arm. `weight_cap` is the largest site's number of training studies."""
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
