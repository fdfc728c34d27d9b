"""Plans for trials of privacy: what a simulation does not use stands as it is, and the noise is as little as may be."""

from dataclasses import replace

from federation import accounting
from federation.manifest import Manifest
from federation.pieces import pieces_of
from federation.plan import CohortBounds, Deadlines, Encoding, Inputs, LocalTraining, ServerOptimizer, TrainingPlan
from federation.privacy import Privacy, delta_of_prices, train_price


def least_noise_plan(name: str, manifest: Manifest, privacy: Privacy, sites: int, rounds: int) -> TrainingPlan:
    """Return a plan without evaluations, with the least noise that its epsilon allows.

    Args:
        name: Of the plan.
        manifest: All of its tensors move.
        privacy: With any noise_multiplier; it is replaced.
        sites: Of every cohort.
        rounds: Of training.
    """
    coordinates = sum(pieces_of(manifest.size))
    delta = delta_of_prices(privacy, rounds, coordinates)

    def spent(multiplier: float) -> float:
        price = train_price(replace(privacy, noise_multiplier=multiplier), coordinates)
        return accounting.epsilon(accounting.times(price, rounds), delta)

    return TrainingPlan(
        run_id=bytes(16),
        name=name,
        purpose="",
        architecture="simulated",
        manifest=manifest,
        initial_model_digest=bytes(32),
        rounds=rounds,
        inputs=Inputs(),
        training=LocalTraining(),
        server=ServerOptimizer(),
        cohort=CohortBounds(minimum=sites, target=sites, maximum=sites),
        deadlines=Deadlines(),
        encoding=Encoding(rotation_seed=bytes(range(32))),
        metrics=(),
        privacy=replace(privacy, noise_multiplier=accounting.least_multiplier(spent, privacy.epsilon_train)),
    )
