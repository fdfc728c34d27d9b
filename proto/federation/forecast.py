"""The figures of a plan before its run: bytes, and for a private plan what it spends and how strong its noise is. Pure.

Coordinator, custodian and hospital see the same figures: each computes them from the plan.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from federation import accounting, privacy
from federation.encoding import Layout
from federation.gate import AUC_CLIP
from federation.pieces import pieces_of
from federation.plan import TrainingPlan
from federation.privacy import Privacy

TENTHS = 10
# Measured with linear heads of 1,024 features and 100 noisy steps: see docs/OPERATIONS.md.
NOISE_USABLE = 0.3
NOISE_MAX = 1.0


@dataclass(frozen=True)
class RunTraffic:
    """The traffic of one site. The messages of masking come on top, some kilobytes a round.

    Attributes:
        up_round: Bytes of the masked update of a training round.
        down_round: Bytes of the published sum of a training round over `cohort.target` sites.
        up_run: Bytes of all rounds.
        down_run: Bytes of all rounds, the initial model included.
    """

    up_round: int
    down_round: int
    up_run: int
    down_run: int


@dataclass(frozen=True)
class Spending:
    """The epsilon of a patient, in nats, after so many rounds or evaluations."""

    count: int
    epsilon: float


@dataclass(frozen=True)
class CohortNoise:
    """The noise in the sum of a cohort.

    Attributes:
        members: Size of the cohort, all of whom are in the sum.
        certain_shares: H, the honest shares that are in the sum whichever members vanish or leave a share out.
        excess: The noise's standard deviation over the one that the plan's price needs: sqrt(members / h).
        over_signal: R, the L2 norm of the noise in the mean gradient over the clip norm of a patient.
    """

    members: int
    certain_shares: int
    excess: float
    over_signal: float


@dataclass(frozen=True)
class PrivacyForecast:
    """The spending of a private plan, and its noise.

    Attributes:
        delta: Probability, of both budgets.
        train: Epsilon after each tenth of the training rounds.
        train_budget: Epsilon in nats.
        validation: Epsilon after each tenth of the evaluations; empty without histograms.
        validation_budget: Epsilon in nats.
        noise: In the least, the wanted and the largest cohort.
    """

    delta: float
    train: tuple[Spending, ...]
    train_budget: float
    validation: tuple[Spending, ...]
    validation_budget: float
    noise: tuple[CohortNoise, ...]


def traffic(plan: TrainingPlan) -> RunTraffic:
    """Count the bytes of a run in which every round has `cohort.target` sites in its sum."""
    layouts = [Layout.of_round(plan, number) for number in range(1, plan.evaluation_round + 1)]
    sums = [layout.sum_bytes_for(plan.cohort.target) for layout in layouts]
    initial_model = 4 * plan.manifest.size
    return RunTraffic(layouts[0].bytes, sums[0], sum(layout.bytes for layout in layouts), sum(sums) + initial_model)


def privacy_forecast(plan: TrainingPlan) -> PrivacyForecast | None:
    """Compute what a private plan spends; None for a plan without [privacy]."""
    if plan.privacy is None:
        return None
    evaluations = privacy.evaluations(plan.privacy, plan.rounds) if plan.privacy.epsilon_validation else 0
    sizes = dict.fromkeys((plan.cohort.minimum, plan.cohort.target, plan.cohort.maximum))
    return PrivacyForecast(
        delta=plan.privacy.delta,
        train=tuple(Spending(count, train_spent(plan, count)) for count in _tenths(plan.rounds)),
        train_budget=plan.privacy.epsilon_train,
        validation=tuple(Spending(count, validation_spent(plan, count)) for count in _tenths(evaluations)),
        validation_budget=plan.privacy.epsilon_validation,
        noise=tuple(cohort_noise(plan, members) for members in sizes),
    )


def train_spent(plan: TrainingPlan, rounds: int) -> float:
    """Compute the epsilon of a patient, in nats, after so many training rounds of a private plan."""
    coordinates = sum(pieces_of(plan.moving.size))
    return _epsilon(_train_price(_privacy(plan), coordinates), rounds, plan)


def validation_spent(plan: TrainingPlan, evaluations: int) -> float:
    """Compute the epsilon of a validation patient, in nats, after so many evaluations of a private plan."""
    return _epsilon(privacy.validation_price(_privacy(plan)), evaluations, plan) if evaluations else 0.0


def cohort_noise(plan: TrainingPlan, members: int) -> CohortNoise:
    """Compute the noise of a private plan in a sum of so many members."""
    shares = privacy.certain_shares(members)
    coordinates = sum(pieces_of(plan.moving.size))
    over_signal = privacy.noise_over_signal(_privacy(plan), members, plan.moving.size, coordinates)
    return CohortNoise(members, shares, math.sqrt(members / shares), over_signal)


def rounding_over_clip(plan: TrainingPlan) -> float:
    """Compute the L2 norm of the rounding in the mean update of the least cohort, over the clip norm.

    A member rounds each coordinate to one of two neighbouring levels: a variance of half a step squared at most, and
    of nearly that where updates are short (docs/MODEL.md). Each member has `studies_min` studies.
    """
    layout, members = Layout.of(plan, plan.moving.size), plan.cohort.minimum
    weight = members * min(plan.training.studies_min, layout.weight_cap)
    half_step = layout.range / layout.level_max
    rounded = half_step * math.sqrt(members * layout.parameters)
    return rounded * layout.weight_cap / weight / layout.clip_norm


def objections(plan: TrainingPlan) -> list[str]:
    """Say why a run of this plan would be in vain, one sentence each; empty for a plan that can work."""
    if plan.privacy is None:
        ratio = rounding_over_clip(plan)
        if ratio <= 1:
            return _gate_objections(plan)
        return [
            *_gate_objections(plan),
            f"rounding alone is {ratio:.1f} times as long as encoding.clip_norm in the mean of {plan.cohort.minimum} "
            f"sites with {plan.training.studies_min} studies each: lower encoding.weight_cap, or raise encoding.bits "
            "or training.studies_min",
        ]
    return [*_delta_objections(plan), *_noise_objections(plan)]


def _delta_objections(plan: TrainingPlan) -> list[str]:
    """Say that publishing a patient drawn at random would be within delta (Dwork and Roth 2014, section 2.3)."""
    privacy = _privacy(plan)
    patients = plan.cohort.target * privacy.patients_expected
    if privacy.delta * patients < 1:
        return []
    return [
        f"privacy.delta of {privacy.delta:g} allows to publish one of the {patients} patients of {plan.cohort.target} "
        f"sites: choose far less than {1 / patients:.1g}"
    ]


def _noise_objections(plan: TrainingPlan) -> list[str]:
    noise = cohort_noise(plan, plan.cohort.target)
    if noise.over_signal <= NOISE_MAX:
        return []
    return [
        f"the noise is {noise.over_signal:.2f} times as long as a patient's gradient (r > {NOISE_MAX:g}) with "
        f"{noise.members} sites, and little will be learned: train fewer tensors, with more patients or more sites, or "
        "for a larger epsilon"
    ]


def _gate_objections(plan: TrainingPlan) -> list[str]:
    """Say which margin no comparison of the smallest cohort can pass, once the most of one site is left out."""
    if plan.gate is None:
        return []
    share, gate = 1 - 1 / plan.cohort.minimum, plan.gate
    return [
        f"gate.{name} of {margin:g} refuses no candidate: {plan.cohort.minimum} sites can show {clip * share:.3g} at "
        f"most without one of them; lower gate.{name}"
        for name, margin, clip in (("margin", gate.margin, gate.clip), ("auc_margin", gate.auc_margin, AUC_CLIP))
        if margin >= clip * share
    ]


def noise_words(over_signal: float) -> str:
    """Say by the measured rule what a ratio of noise to signal costs."""
    if over_signal <= NOISE_USABLE:
        return "usable, expect an AUC lower by .00 to .02"
    if over_signal <= NOISE_MAX:
        return "expect an AUC lower by .02 to .1"
    return "the noise eats the signal"


def _privacy(plan: TrainingPlan) -> Privacy:
    # Every caller asks about a private plan.
    assert plan.privacy is not None
    return plan.privacy


def _epsilon(price: accounting.Price, count: int, plan: TrainingPlan) -> float:
    delta = privacy.delta_of_prices(_privacy(plan), plan.rounds, sum(pieces_of(plan.moving.size)))
    return accounting.epsilon(accounting.times(price, count), delta)


# Cost: a page asks for it at every look, and it takes milliseconds.
@lru_cache(16)
def _train_price(of: Privacy, coordinates: int) -> accounting.Price:
    return privacy.train_price(of, coordinates)


def _tenths(count: int) -> list[int]:
    """The number reached after each tenth of `count`, each once."""
    # As a set: fewer than ten rounds have no ten tenths.
    return sorted({math.ceil(count * tenth / TENTHS) for tenth in range(1, TENTHS + 1)} - {0})
