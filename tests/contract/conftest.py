"""Plans, headers and updates to test the contract with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.encoding import HISTOGRAM_SHAPE, SiteHeader
from federation.manifest import Manifest, TensorSpec
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
from federation.privacy import Privacy
from federation.vocabulary import Metric

PLAN = TrainingPlan(
    run_id=bytes(range(16)),
    name="Demo run 1",
    purpose="Find hemorrhage on head CT, for research.",
    architecture="densenet121-gru",
    manifest=Manifest((TensorSpec("head.weight", (6, 5)), TensorSpec("head.bias", (6,)), TensorSpec("scale", ()))),
    initial_model_digest=bytes(32),
    rounds=5,
    inputs=Inputs(image_size_px=256, slices_max=40),
    training=LocalTraining(1, 1e-3, 0.01, 0.0, 2, 32),
    server=ServerOptimizer(ServerKind.FEDAVG, 1.0),
    cohort=CohortBounds(minimum=3, target=8, maximum=64),
    deadlines=Deadlines(training_s=86_400, phase_s=600),
    encoding=Encoding(clip_norm=1.0, bits=6, weight_cap=100, rotation_seed=bytes(range(32)), count_cap=0),
    metrics=(Metric.LOSS, Metric.HISTOGRAMS),
)


PRIVACY = Privacy(
    sampling_rate=0.1,
    noise_multiplier=2.0,
    patients_expected=500,
    batch_max=100,
    epsilon_train=1.0,
    validation_multiplier=4.0,
    epsilon_validation=3.0,
)


@pytest.fixture(scope="session")
def make_private_plan() -> Callable[..., TrainingPlan]:
    """make_private_plan(parameters=1000, maximum=8, histograms=True, **fields of Privacy)."""

    def make(
        parameters: int = 1000, maximum: int = 8, *, histograms: bool = True, rounds: int = 5, **changes: Any
    ) -> TrainingPlan:
        without = {} if histograms else {"validation_multiplier": 0.0, "epsilon_validation": 0.0}
        return replace(
            PLAN,
            manifest=Manifest((TensorSpec("weights", (parameters,)),)),
            rounds=rounds,
            training=LocalTraining(studies_min=32),
            cohort=CohortBounds(minimum=3, target=3, maximum=maximum),
            encoding=Encoding(rotation_seed=bytes(range(32))),
            metrics=(Metric.HISTOGRAMS,) if histograms else (),
            privacy=replace(PRIVACY, **(without | changes)),
        )

    return make


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., TrainingPlan]:
    """make_plan(**{"cohort.maximum": 500, "parameters": 1000, ...}): dotted names reach into the parts."""

    def make(**changes: Any) -> TrainingPlan:
        plan = PLAN
        if "parameters" in changes:
            plan = replace(plan, manifest=Manifest((TensorSpec("weights", (changes.pop("parameters"),)),)))
        parts: dict[str, dict[str, Any]] = {}
        for name in [name for name in changes if "." in name]:
            part, field = name.split(".")
            parts.setdefault(part, {})[field] = changes.pop(name)
        inner = {part: replace(getattr(plan, part), **fields) for part, fields in parts.items()}
        return replace(plan, **inner, **changes)

    return make


@pytest.fixture(scope="session")
def make_header() -> Callable[..., SiteHeader]:
    """A header with nothing in it but 100 studies, unless told otherwise."""

    def make(**changes: Any) -> SiteHeader:
        empty: dict[str, Any] = {
            "studies": 100,
            "loss_sum": 0.0,
            "example_count": 0,
            "clipped": False,
            "histograms": np.zeros(HISTOGRAM_SHAPE, np.int64),
        }
        return SiteHeader(**(empty | changes))

    return make


@pytest.fixture(scope="session")
def heavy_tailed() -> Callable[[int, int], np.ndarray]:
    """heavy_tailed(d, seed): f32[d] of norm 1, Student t with 3 degrees of freedom, layers of unlike size."""

    def make(parameters: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        delta = rng.standard_t(3, parameters)
        delta *= np.repeat(np.exp(rng.normal(0, 1, 50)), -(-parameters // 50))[:parameters]
        return (delta / np.linalg.norm(delta)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def custodian() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
