"""The gate: whether a model is built upon, from the comparison with its predecessor that a round's sum holds. Pure.

A model is a candidate until the sum of the next round has judged it. Each site that has evaluated the candidate and its
predecessor on the same validation patients adds the difference of each patient's two losses, clipped to [-clip, clip],
its square, and the number of patients. With T, Q, n the three sums, the candidate is refused when both

    T / n - deviations * sqrt((Q / n - (T / n)^2) / n)  >  margin      it is worse, and not by chance
    (T - clip * patients_max) / n                       >  margin      it is, whichever one site is left out

hold, and as many sites have compared as a cohort needs. The sums are whole numbers of units, and + - * / sqrt are
correctly rounded, so every site and the aggregator come to the same verdict.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from federation.bounds import check_real, check_whole
from federation.errors import PlanRefused

COMPARISON_UNIT: Final = 2.0**-20  # of the sums of differences and squares in the header words


class Verdict(StrEnum):
    """The outcome of a comparison."""

    ACCEPTED = "accepted"
    REFUSED = "refused"


@dataclass(frozen=True)
class Gate:
    """The gate of a run. The fields are those of plan.proto, with plan.toml's defaults.

    Attributes:
        margin: Nats by which a candidate's mean loss of a patient may be worse.
        deviations: Standard errors by which it has to be worse than the margin.
        clip: Largest absolute difference of one patient's two losses, in nats.
        patients_max: Patients beyond which a site's weight does not grow.

    Raises:
        PlanRefused: A value is out of its bounds.
    """

    margin: float = 0.01
    deviations: float = 1.645
    clip: float = 0.1
    patients_max: int = 16

    def __post_init__(self) -> None:
        check_real("gate.clip", self.clip, 1e-3, 10.0, "[]")
        check_real("gate.margin", self.margin, 0.0, 10.0, "[]")
        if self.margin >= self.clip:
            raise PlanRefused("gate.margin", f"expected less than gate.clip, {self.clip}, got {self.margin}")
        check_real("gate.deviations", self.deviations, 0.0, 10.0, "[]")
        check_whole("gate.patients_max", self.patients_max, 4, 10_000)


@dataclass(frozen=True)
class Comparison:
    """A candidate and its predecessor on the same validation patients, of one site or summed over several.

    Attributes:
        difference_sum: Sum over patients of candidate's minus predecessor's loss, each difference clipped, in nats.
        square_sum: Sum of the squares of these differences.
        patients: Patients with both losses.
        sites: Sites that have compared; 1 for a site with patients.
    """

    difference_sum: float = 0.0
    square_sum: float = 0.0
    patients: int = 0
    sites: int = 0


NO_COMPARISON: Final = Comparison()


@dataclass(frozen=True)
class Judgement:
    """A candidate's verdict with the figures it follows from.

    Attributes:
        verdict: Of the candidate.
        mean: Mean difference of a patient's losses in nats, above 0 when the candidate is worse; 0 without patients.
        lower: Lower end of the mean's one-sided interval.
        without_one: The mean after the most that any one site can have added is taken away.
        patients: In the comparison, in size classes.
        sites: That have compared.
    """

    verdict: Verdict
    mean: float
    lower: float
    without_one: float
    patients: int
    sites: int


def judge(gate: Gate, comparison: Comparison, sites_min: int) -> Judgement:
    """Judge a candidate.

    Args:
        gate: Of the plan.
        comparison: Summed over the cohort.
        sites_min: Fewest sites whose comparison may refuse a candidate: the plan's smallest cohort.
    """
    patients = comparison.patients
    if patients == 0:
        return Judgement(Verdict.ACCEPTED, 0.0, 0.0, 0.0, 0, comparison.sites)
    mean = comparison.difference_sum / patients
    variance = max(0.0, comparison.square_sum / patients - mean * mean)
    lower = mean - gate.deviations * math.sqrt(variance / patients)
    without_one = (comparison.difference_sum - gate.clip * gate.patients_max) / patients
    is_worse = min(lower, without_one) > gate.margin and comparison.sites >= sites_min
    verdict = Verdict.REFUSED if is_worse else Verdict.ACCEPTED
    return Judgement(verdict, mean, lower, without_one, patients, comparison.sites)
