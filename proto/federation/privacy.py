"""The privacy of a plan: its fields, the noise that follows from them, and the price of its rounds.

Everything here is arithmetic on the plan, the same at every site and at the aggregator. `federation.accounting` has the
formulas, docs/PRIVACY.md the argument.
"""

import math
from dataclasses import dataclass
from typing import Final

from federation import accounting
from federation.accounting import ROUNDING_FAILURE, Price, Sensitivity, rounded_sensitivity
from federation.bounds import check_real, check_whole
from federation.errors import PlanRefused
from federation.labels import BINS, LABELS, SIDES
from federation.limits import COHORT_MAX

# Whole steps in one clip norm: so many that rounding adds a few percent at most to the noise that is needed, also for a
# long vector; for a short one more steps cost nothing.
_STEPS_MIN: Final = 1024.0
_STEPS_PER_ROOT: Final = 2.0
# A sum of gradients is stored in float32. Its roundings in two data sets differ by 6 * 2^-24 * BATCH_MAX clip norms at
# most, within the accountant's slack of a thousandth. That holds only where float32 has no subnormal numbers.
CLIP_NORM_MIN: Final = 1e-6
BATCH_MAX: Final = 2500
_RANGE_SIGMAS: Final = 5.0  # of a coordinate of the largest batch's sum; what lies beyond is clipped
# A share of noise beyond it is never drawn. Its probability is below 2^-100: see docs/PRIVACY.md.
_TAIL_SIGMAS: Final = 12.0
_TAIL_MORE: Final = 48
# A table has two numbers of 128 bits for each of a share; more of them would take a site gigabytes and minutes.
TAIL_MAX: Final = 2**21
_TAIL_PROBABILITY: Final = 2.0**-100
HISTOGRAM_CELLS: Final = len(LABELS) * len(SIDES) * BINS
# One patient is counted once for each label, in one cell.
HISTOGRAM_SENSITIVITY: Final = Sensitivity(l1=float(len(LABELS)), l2=math.sqrt(len(LABELS)))


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of a run. The fields are those of plan.proto, with plan.toml's defaults.

    Attributes:
        sampling_rate: Probability in (0, 1] with which a patient is part of a round.
        noise_multiplier: Standard deviation of the noise over one patient's largest effect, in L2 norm.
        patients_expected: Training patients of a site, the same public number for all.
        batch_max: Patients of a round that the range of a coordinate is made for.
        epsilon_train: Budget of all training rounds, in nats.
        clip_norm: Largest L2 norm of one patient's gradient.
        delta: Probability, of both budgets.
        validation_interval: Rounds from one evaluation to the next; 0 for the first and the last round only.
        validation_multiplier: As `noise_multiplier`, of the histograms.
        epsilon_validation: Budget of all evaluations, in nats.

    Raises:
        PlanRefused: A value is out of its bounds.
    """

    sampling_rate: float
    noise_multiplier: float
    patients_expected: int
    batch_max: int
    epsilon_train: float
    clip_norm: float = 1.0
    delta: float = 1e-6
    validation_interval: int = 0
    validation_multiplier: float = 0.0
    epsilon_validation: float = 0.0

    def __post_init__(self) -> None:
        check_real("privacy.clip_norm", self.clip_norm, CLIP_NORM_MIN, 1000.0, "[]")
        check_real("privacy.sampling_rate", self.sampling_rate, 0.0, 1.0, "(]")
        check_real("privacy.noise_multiplier", self.noise_multiplier, 0.0, 1000.0, "(]")
        check_whole("privacy.patients_expected", self.patients_expected, 1, 1_000_000)
        check_whole("privacy.batch_max", self.batch_max, 1, BATCH_MAX)
        check_real("privacy.delta", self.delta, 1e-12, 1e-3, "(]")
        check_real("privacy.epsilon_train", self.epsilon_train, 0.0, 100.0, "(]")
        check_whole("privacy.validation_interval", self.validation_interval, 0, 1000)
        check_real("privacy.validation_multiplier", self.validation_multiplier, 0.0, 1000.0, "[]")
        check_real("privacy.epsilon_validation", self.epsilon_validation, 0.0, 100.0, "[]")

    def evaluates(self, round_number: int, rounds: int) -> bool:
        """Whether histograms leave in this round of a run of so many training rounds."""
        if round_number == 1 or round_number > rounds:
            return True
        return self.validation_interval > 0 and (round_number - 1) % self.validation_interval == 0


@dataclass(frozen=True)
class Noise:
    """Skellam noise on a sum of whole numbers.

    Attributes:
        sensitivity: Of the sum for one patient, in whole steps.
        variance: Variance of the noise that is certain in the sum, in squared steps. It counts no share of members that
            vanish, or that leave theirs out.
    """

    sensitivity: Sensitivity
    variance: int

    def tail_max(self, fewest: int, most: int) -> int:
        """Returns the largest share in whole steps that is drawn in a cohort of `fewest` to `most` members."""
        return max(self.tail(members) for members in range(fewest, most + 1))

    def share_variance(self, members: int) -> int:
        """Returns the variance of one member's share in a cohort of so many, in squared steps."""
        return -(-self.variance // certain_shares(members))

    def tail(self, members: int) -> int:
        """Returns the largest share in whole steps that is drawn in a cohort of so many."""
        return math.ceil(_TAIL_SIGMAS * math.sqrt(self.share_variance(members))) + _TAIL_MORE


def certain_shares(members: int) -> int:
    """Returns the number of honest shares of noise that are in the sum of a cohort, beside the reader's own.

    t members at least are in a sum, and fewer than a third of the cohort are corrupt and leave theirs out. A member
    knows its own share, so it does not count where there are no corrupt ones.
    """
    return 2 * members // 3 + 1 - max(1, (members - 1) // 3)


@dataclass(frozen=True)
class GradientNoise:
    """The steps from the gradients of a site to whole numbers with noise.

    Attributes:
        noise: On the sum, in whole steps.
        scale: Whole steps for each unit of a gradient.
        bound: Largest absolute value of a coordinate before noise, in whole steps; beyond it is clipped.
        longest: Largest L2 norm of the sum of a site's gradients; a longer sum is scaled down.
        patients: Patients expected of a site in a round. The mean is over them.
    """

    noise: Noise
    scale: float
    bound: int
    longest: float
    patients: float

    def level_max(self, fewest: int, most: int) -> int:
        """Returns the highest level of one site in whole steps; the lowest is 0. It is the same for every cohort."""
        return 2 * (self.bound + self.noise.tail_max(fewest, most))


def gradient_noise(privacy: Privacy, coordinates: int) -> GradientNoise:
    """Returns the noise, in whole steps, for gradients with so many rotated coordinates, padding included."""
    root = math.sqrt(coordinates)
    length = max(_STEPS_MIN, _STEPS_PER_ROOT * root)
    sensitivity = rounded_sensitivity(length, coordinates)
    return GradientNoise(
        noise=_noise(sensitivity, privacy.noise_multiplier),
        scale=length / privacy.clip_norm,
        # The last summand is for short vectors, and for rounding up.
        bound=math.ceil(_RANGE_SIGMAS * length * privacy.batch_max / root) + 1,
        longest=privacy.batch_max * privacy.clip_norm,
        patients=privacy.sampling_rate * privacy.patients_expected,
    )


def histogram_noise(privacy: Privacy) -> Noise:
    """Returns the noise on the histograms of one evaluation; a whole step is one patient."""
    return _noise(HISTOGRAM_SENSITIVITY, privacy.validation_multiplier)


def train_price(privacy: Privacy, coordinates: int) -> Price:
    """Returns the price of one training round, in nats for each order."""
    noise = gradient_noise(privacy, coordinates).noise
    return accounting.sampled_price(noise.sensitivity, noise.variance, privacy.sampling_rate)


def validation_price(privacy: Privacy) -> Price:
    """Returns the price of one evaluation, of which every validation patient is part, in nats for each order."""
    noise = histogram_noise(privacy)
    return accounting.skellam_price(noise.sensitivity, noise.variance)


def evaluations(privacy: Privacy, rounds: int) -> int:
    """Returns the number of evaluations of a run of so many training rounds, the last one included."""
    return sum(privacy.evaluates(number, rounds) for number in range(1, rounds + 2))


def cut_tails(coordinates: int) -> float:
    """Returns the distance of one round's noise, whose tails are cut, from whole noise: total variation, 0 to 1."""
    return COHORT_MAX * coordinates * _TAIL_PROBABILITY


def delta_of_prices(privacy: Privacy, rounds: int, coordinates: int) -> float:
    """Returns the part of the plan's delta that the prices may use, a probability; 0 or less if nothing is left.

    The rest covers a dither that lengthens one patient's part beyond its bound, and the tails of noise that are cut.
    """
    # Of the larger budget and the longer sum: training and evaluation have this delta in common.
    odds = math.exp(max(privacy.epsilon_train, privacy.epsilon_validation))
    tails = (1 + odds) * (rounds + 1) * cut_tails(max(coordinates, HISTOGRAM_CELLS))
    return privacy.delta - rounds * ROUNDING_FAILURE - tails


def check_budgets(privacy: Privacy, rounds: int, coordinates: int, *, histograms: bool) -> None:
    """Refuses a plan that spends more than its budgets.

    Args:
        privacy: Of the plan.
        rounds: Training rounds.
        coordinates: Length of the rotated vector, padding included.
        histograms: Whether the plan has the metric.

    Raises:
        PlanRefused: A budget is exceeded, or the histograms lack noise or budget.
    """
    delta = delta_of_prices(privacy, rounds, coordinates)
    if delta <= 0:
        raise PlanRefused("privacy.delta", f"expected more than {privacy.delta:g}: rounding and tails need that much")
    spent = accounting.epsilon(accounting.times(train_price(privacy, coordinates), rounds), delta)
    if spent > privacy.epsilon_train:
        raise PlanRefused(
            "privacy.epsilon_train",
            f"expected a budget of {spent:.3f} or more for {rounds} rounds, got {privacy.epsilon_train:g}; raise "
            "noise_multiplier, or lower sampling_rate or rounds",
        )
    if not histograms:
        for name in ("validation_multiplier", "epsilon_validation"):
            check_real(f"privacy.{name}", getattr(privacy, name), 0.0, 0.0, "0")
        check_whole("privacy.validation_interval", privacy.validation_interval, 0, 0)
        return
    for name in ("validation_multiplier", "epsilon_validation"):
        check_real(f"privacy.{name}", getattr(privacy, name), 0.0, 1000.0, "(]")
    count = evaluations(privacy, rounds)
    spent = accounting.epsilon(accounting.times(validation_price(privacy), count), delta)
    if spent > privacy.epsilon_validation:
        raise PlanRefused(
            "privacy.epsilon_validation",
            f"expected a budget of {spent:.3f} or more for {count} evaluations, got {privacy.epsilon_validation:g}; "
            "raise validation_multiplier or validation_interval",
        )


def noise_over_signal(privacy: Privacy, members: int, moving: int, coordinates: int) -> float:
    """Returns r: the L2 norm of the noise in the mean gradient over the clip norm of a patient.

    Args:
        privacy: Of the plan.
        members: Size of the cohort, all of whom add their share.
        moving: Length of the update.
        coordinates: Length of the rotated vector, padding included.
    """
    gradient = gradient_noise(privacy, coordinates)
    deviation = math.sqrt(gradient.noise.share_variance(members) * members) / gradient.scale
    return deviation * math.sqrt(moving) / (gradient.patients * members) / privacy.clip_norm


def _noise(sensitivity: Sensitivity, multiplier: float) -> Noise:
    return Noise(sensitivity, math.ceil((multiplier * sensitivity.l2) ** 2))
