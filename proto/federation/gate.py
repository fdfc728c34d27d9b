"""The gate: whether a model is built upon, from the comparison with its predecessor that a round's sum holds. Pure.

A model is a candidate until the sum of the next round has judged it. Each site that has evaluated the candidate and its
predecessor on the same validation patients adds a comparison of their losses, and one of their AUC for each label:

    losses   the difference of each patient's two losses, clipped to [-clip, clip], its square, and the patients
    a label  the AUC that the candidate loses at this site, clipped to [-AUC_CLIP, AUC_CLIP], times the site's positive
             slices; its square, times these; and the positives, at most POSITIVES_MAX

With T, Q, n, s the sums of differences, of squares, of cases and of sites, a comparison speaks against the candidate
when both

    T / n - deviations * sqrt((Q / n - (T / n)^2) / units)  >  margin    it is worse, and not by chance
    (T - the most that one site can have added) / n         >  margin    it is, whichever one site is left out

hold, and as many sites have compared as a cohort needs. The units of chance are the n patients, and of a label s - 1
sites, for slices of one patient are alike. A label speaks only with `positives_min` positives. The candidate is refused
when any comparison speaks against it. The sums are whole numbers of units, and + - * / sqrt are correctly rounded, so
every site and the aggregator come to the same verdict.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from federation.bounds import check_real, check_whole
from federation.errors import PlanRefused
from federation.labels import LABELS

COMPARISON_UNIT: Final = 2.0**-20  # of the sums of differences and squares in the header words
SMALLEST_CLASS: Final = 4  # cases of a site, see `encoding.classes`; with fewer it has not compared
AUC_CLIP: Final = 0.05  # most of a label's AUC that counts as lost or won at one site
POSITIVES_MAX: Final = 32  # positive slices of a label beyond which a site's weight does not grow


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
        auc_margin: AUC of a label that a candidate may lose.
        positives_min: Fewest positive slices with which a label counts.

    Raises:
        PlanRefused: A value is out of its bounds.
    """

    margin: float = 0.01
    deviations: float = 1.645
    clip: float = 0.1
    patients_max: int = 16
    auc_margin: float = 0.01
    positives_min: int = 50

    def __post_init__(self) -> None:
        check_real("gate.clip", self.clip, 1e-3, 10.0, "[]")
        check_real("gate.margin", self.margin, 0.0, 10.0, "[]")
        if self.margin >= self.clip:
            raise PlanRefused("gate.margin", f"expected less than gate.clip, {self.clip}, got {self.margin}")
        check_real("gate.deviations", self.deviations, 0.0, 10.0, "[]")
        check_whole("gate.patients_max", self.patients_max, SMALLEST_CLASS, 10_000)
        check_real("gate.auc_margin", self.auc_margin, 0.0, AUC_CLIP, "[)")
        check_whole("gate.positives_min", self.positives_min, 1, 1_000_000)


@dataclass(frozen=True)
class Comparison:
    """A candidate and its predecessor on the same validation patients, of one site or summed over several.

    Attributes:
        difference_sum: Sum over the cases of how much worse the candidate is, each difference clipped: in nats, of a
            label in AUC.
        square_sum: Sum of the squares of these differences.
        cases: Patients with both losses; of a label positive slices of patients that both models have scored.
        sites: Sites that have compared; 1 for a site with cases.
    """

    difference_sum: float = 0.0
    square_sum: float = 0.0
    cases: int = 0
    sites: int = 0


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a candidate with its predecessor.

    Attributes:
        loss: Of the patients' losses.
        labels: Of the AUC of each label, in the order of LABELS.
    """

    loss: Comparison = Comparison()
    labels: tuple[Comparison, ...] = (Comparison(),) * len(LABELS)


NO_COMPARISON: Final = Comparison()
NO_COMPARISONS: Final = Comparisons()


@dataclass(frozen=True)
class ClipAndCases:
    """The bounds of one comparison: the largest absolute difference of a case, and the most cases of a site."""

    clip: float
    cases_max: int


def bounds_of(gate: Gate) -> tuple[ClipAndCases, ...]:
    """Returns the bounds of a plan's comparisons: that of losses, then those of the labels."""
    return ClipAndCases(gate.clip, gate.patients_max), *(ClipAndCases(AUC_CLIP, POSITIVES_MAX) for _ in LABELS)


@dataclass(frozen=True)
class ComparisonFigures:
    """A comparison with what follows from it.

    Attributes:
        refuses: Whether it speaks against the candidate.
        mean: Mean difference of a case, above 0 when the candidate is worse; 0 without cases.
        lower: Lower end of the mean's one-sided interval.
        without_one: The mean after the most that any one site can have added is taken away.
        cases: In the comparison, in size classes.
        sites: That have compared.
    """

    refuses: bool
    mean: float
    lower: float
    without_one: float
    cases: int
    sites: int


@dataclass(frozen=True)
class Judgement:
    """A candidate's verdict with the findings that it follows from; `labels` are in the order of LABELS."""

    loss: ComparisonFigures
    labels: tuple[ComparisonFigures, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the candidate."""
        return Verdict.REFUSED if any(found.refuses for found in (self.loss, *self.labels)) else Verdict.ACCEPTED


def judge(gate: Gate, comparisons: Comparisons, sites_min: int) -> Judgement:
    """Judge a candidate.

    Args:
        gate: Of the plan.
        comparisons: Summed over the cohort.
        sites_min: Fewest sites whose comparison may refuse a candidate: the plan's smallest cohort.
    """
    loss_bounds, *label_bounds = bounds_of(gate)
    loss = comparisons.loss
    return Judgement(
        _find(loss, loss_bounds, gate.deviations, gate.margin, units=loss.cases, speaks=loss.sites >= sites_min),
        tuple(
            _find(
                label,
                bounds,
                gate.deviations,
                gate.auc_margin,
                units=label.sites - 1,
                speaks=label.sites >= sites_min and label.cases >= gate.positives_min,
            )
            for label, bounds in zip(comparisons.labels, label_bounds, strict=True)
        ),
    )


def _find(
    compared: Comparison, bounds: ClipAndCases, deviations: float, margin: float, *, units: int, speaks: bool
) -> ComparisonFigures:
    cases = compared.cases
    if cases == 0:
        return ComparisonFigures(False, 0.0, 0.0, 0.0, 0, compared.sites)
    mean = compared.difference_sum / cases
    variance = max(0.0, compared.square_sum / cases - mean * mean)
    lower = mean - deviations * math.sqrt(variance / max(1, units))
    # Every other site has the smallest class of cases at least.
    of_one = min(bounds.cases_max, cases - SMALLEST_CLASS * (compared.sites - 1))
    without_one = (compared.difference_sum - bounds.clip * of_one) / cases
    return ComparisonFigures(
        speaks and min(lower, without_one) > margin, mean, lower, without_one, cases, compared.sites
    )
