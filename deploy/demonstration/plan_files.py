"""The demo's plan.toml: an ordinary one, or with --privacy one whose noise keeps a claim."""

import math

from federation.accounting import Price, epsilon, least_multiplier, times
from federation.pieces import pieces_of
from federation.privacy import Privacy, delta_of_prices, train_price, validation_price

EPSILON = 8.0  # the claim of --privacy, for training and for evaluation each
# A demo has some 300 patients. A real plan takes far less than 1 over their number.
DELTA = 1e-4
WEIGHT_CAP_MAX = 400  # with 100 times studies_min, rounding alone would be almost as long as clip_norm
CLIP_NORM = 10.0
PRIVATE_VALIDATION_FRACTION = 0.4  # more than usual: with fewer patients the noise would hide every AUC
PATIENTS_SHARE = 0.55  # training patients a study: those validate, and some patients have two studies
EVALUATIONS = 2  # in round 1 and the last one
MULTIPLIER_STEP = 0.05
POISONED_ROUND = 2  # of --poison: the next round judges its model, and the one after goes on from the accepted model

COMMON = """\
name = "demo"
purpose = "Demonstration on synthetic patients; says nothing about real ones."
architecture = "{architecture}"
rounds = {rounds}
metrics = {metrics}

[inputs]
image_size_px = {image_size_px}
slices_max = 32

[cohort]
minimum = {sites}
target = {sites}
maximum = 64

[deadlines]
training_s = 3600
phase_s = {phase_s}

[training]
slices_per_study = 4
studies_min = 4
"""

ORDINARY = """\
epochs = {epochs}
learning_rate = {learning_rate}
studies_per_step = 4

[encoding]
clip_norm = {clip_norm}
# The step of the quantizer is a share of clip_norm at full weight: a cap far above the studies drowns the update.
bits = 8
weight_cap = {weight_cap}
"""

GATED = """
[gate]
# So few patients and so many local epochs move an honest model's losses as well; a poisoned one is worse by whole nats.
margin = 0.1
clip = 1.0
auc_margin = 0.04
"""

PRIVATE = """\
trainable = "heads"

[privacy]
# One step of all patients a round: the noise over so few patients is least without sampling.
sampling_rate = 1.0
noise_multiplier = {noise_multiplier:.2f}
patients_expected = {patients}
batch_max = {patients_max}
epsilon_train = {epsilon}
delta = {delta}
validation_multiplier = {validation_multiplier:.2f}
epsilon_validation = {epsilon}
"""


def ordinary_plan(studies: int, epochs: int, learning_rate: float, **common: object) -> str:
    """Writes a plan without noise.

    Args:
        studies: Of a hospital.
        epochs: Of local training in a round.
        learning_rate: Of local training.
        common: The values of COMMON but for `metrics`.
    """
    own = ORDINARY.format(
        epochs=epochs, learning_rate=learning_rate, clip_norm=CLIP_NORM, weight_cap=min(studies, WEIGHT_CAP_MAX)
    )
    return COMMON.format(metrics='["loss", "histograms"]', **common) + own


def private_plan(studies: int, rounds: int, moving: int, **common: object) -> str:
    """Writes a plan that trains the heads with the least noise that keeps the claim.

    Args:
        studies: Of a hospital.
        rounds: Of training.
        moving: Numbers in the heads.
        common: The values of COMMON but for `metrics` and `rounds`.
    """
    coordinates = sum(pieces_of(moving))

    def spent(price: Price, count: int, privacy: Privacy) -> float:
        return epsilon(times(price, count), delta_of_prices(privacy, rounds, coordinates))

    # Neither the number of patients nor the batch changes the price, so both are 1 here.
    def privacy_with(multiplier: float) -> Privacy:
        return Privacy(1.0, multiplier, 1, 1, EPSILON, 1.0, DELTA, 0, multiplier, EPSILON)

    def spent_training(multiplier: float) -> float:
        of = privacy_with(multiplier)
        return spent(train_price(of, coordinates), rounds, of)

    def spent_evaluating(multiplier: float) -> float:
        of = privacy_with(multiplier)
        return spent(validation_price(of), EVALUATIONS, of)

    own = PRIVATE.format(
        noise_multiplier=_rounded_up(least_multiplier(spent_training, EPSILON)),
        validation_multiplier=_rounded_up(least_multiplier(spent_evaluating, EPSILON)),
        patients=max(1, round(PATIENTS_SHARE * studies)),
        patients_max=studies,
        epsilon=EPSILON,
        delta=DELTA,
    )
    return COMMON.format(metrics='["histograms"]', rounds=rounds, **common) + own


def _rounded_up(multiplier: float) -> float:
    """Rounds up to a number that a person would write."""
    return math.ceil(multiplier / MULTIPLIER_STEP) * MULTIPLIER_STEP
