"""How good a model's answers are: measures over chances and labels, and how sure they are.

The unit of chance is the patient. A bootstrap draw takes patients with replacement and with each of them all of the
patient's rows; two models are compared on the same draws, so that the difference is paired. Every measure is a function
of weights per row: the set itself is the draw in which each weight is 1, so there is one implementation for both.

    AUC            Mann-Whitney, ties half
    AP             average precision, not interpolated
    BRIER          mean squared distance of chance and label
    ECE            expected calibration error over 15 bins that hold equally many rows of the set
    LOG_LOSS       mean cross-entropy, chances clipped at 1e-15
    SENSITIVITY_90 at a specificity of at least .90; SENSITIVITY_95 likewise
    SPECIFICITY_95 at a sensitivity of at least .95

PPV and NPV are what the threshold behind SPECIFICITY_95 would mean where a finding is as common as said.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

import numpy as np
from federation.labels import LABEL_WEIGHTS, LABELS, MISSING
from numpy.typing import NDArray

from site_client.errors import EvaluationRefused
from site_client.inference import ranked
from site_client.inference.ranked import Ranked, Reals
from site_client.ingest.records import StudyRecord

DRAWS: Final = 2000
PATIENTS_MIN: Final = 10  # for an interval
PREVALENCES: Final = (0.05, 0.10, 0.15, 0.40)  # from emergency rooms to a collection made for training
ECE_BINS: Final = 15
_CLIP: Final = 1e-15
_CELLS_AT_ONCE: Final = 1 << 22  # of a table draws x rows: 32 MiB


class Measure(Enum):
    AUC = "AUC"
    AP = "AP"
    BRIER = "Brier"
    ECE = "ECE"
    LOG_LOSS = "log loss"
    SENSITIVITY_90 = "sensitivity at specificity .90"
    SENSITIVITY_95 = "sensitivity at specificity .95"
    SPECIFICITY_95 = "specificity at sensitivity .95"


_NEEDS_BOTH: Final = frozenset({Measure.AUC, Measure.SENSITIVITY_90, Measure.SENSITIVITY_95, Measure.SPECIFICITY_95})


@dataclass(frozen=True)
class Estimate:
    """`value` None: `reason` says why there is none. low, high: the middle 95 % of the draws; None when not drawn, or
    with fewer than PATIENTS_MIN patients, whose draws would pretend to know.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Difference:
    """`value` = first model - second. p: two-sided, of the draws on the other side of 0, never below 1 / draws.

    low, high and p are None with fewer than PATIENTS_MIN patients.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """Answers beside the truth. chances f64[N,6] in [0,1]; labels int8[N,6] of 0, 1 and MISSING (-1); patients int64[N]
    numbers the patient of each row from 0. A row is a slice or a study. Raises EvaluationRefused for anything else.
    """

    chances: Reals
    labels: NDArray[np.int8]
    patients: NDArray[np.int64]

    def __post_init__(self) -> None:
        rows = len(self.patients)
        if self.chances.shape != (rows, len(LABELS)) or self.labels.shape != (rows, len(LABELS)):
            raise EvaluationRefused(
                f"expected chances and labels of shape ({rows}, {len(LABELS)}), "
                f"got {self.chances.shape} and {self.labels.shape}"
            )
        if not ((self.chances >= 0) & (self.chances <= 1)).all():
            raise EvaluationRefused("expected chances from 0 to 1, got others; a model that diverged cannot be judged")
        if not np.isin(self.labels, (0, 1, MISSING)).all():
            raise EvaluationRefused("expected labels 0, 1 or -1 (missing), got others")

    @property
    def patients_count(self) -> int:
        return int(self.patients.max(initial=-1)) + 1

    def column(self, label: int) -> "Column":
        """One label, without the rows that miss it."""
        known = self.labels[:, label] != MISSING
        return Column(self.chances[known, label], self.labels[known, label], self.patients[known], self.patients_count)


@dataclass(frozen=True, eq=False)
class Column:
    """One label: chances f64[M], truth int8[M] of 0 and 1, patients int64[M] below `patients_count`."""

    chances: Reals
    truth: NDArray[np.int8]
    patients: NDArray[np.int64]
    patients_count: int

    def patients_with(self, value: int) -> int:
        """How many patients have a row with this label value."""
        return len(np.unique(self.patients[self.truth == value]))


def refuse_shared_patients(training: Sequence[StudyRecord], validation: Sequence[StudyRecord]) -> None:
    """Raises EvaluationRefused when a patient is on both sides. The message counts them and names nobody."""
    shared = {study.patient_key for study in training} & {study.patient_key for study in validation}
    if shared:
        raise EvaluationRefused(
            f"expected no patient both in training and in validation, got {len(shared)}; split by patient, not by study"
        )


def measure(column: Column, which: Measure, draws: Reals | None = None) -> Estimate:
    """The set's own figure, and with draws (from `draw_patients`) its 95 % interval."""
    reason = _why_not(column, which)
    if reason is not None:
        return Estimate(None, reason=reason)
    value = float(of_draws(column, which, np.ones((1, column.patients_count)))[0])
    if draws is None or len(np.unique(column.patients)) < PATIENTS_MIN:
        return Estimate(value)
    low, high = interval(of_draws(column, which, draws))
    return Estimate(value, low, high)


def predictive(
    column: Column, prevalences: Sequence[float], draws: Reals | None = None
) -> dict[float, tuple[Estimate, Estimate]]:
    """PPV and NPV by prevalence: the share of true answers among all "yes", and among all "no", where so many rows are
    positive.

    By Bayes' rule from sensitivity and specificity, which do not depend on how many of these very rows are positive.
    """
    reason = _why_not(column, Measure.SPECIFICITY_95)
    if reason is not None:
        return dict.fromkeys(prevalences, (Estimate(None, reason=reason), Estimate(None, reason=reason)))
    own = _rates(column, np.ones((1, column.patients_count)))
    drawn = None if draws is None or len(np.unique(column.patients)) < PATIENTS_MIN else _rates(column, draws)

    def figure(of: Callable[[float, Reals, Reals], Reals], prevalence: float) -> Estimate:
        value = float(of(prevalence, *own)[0])
        if math.isnan(value):
            return Estimate(None, reason="nothing is called negative")
        return Estimate(value) if drawn is None else Estimate(value, *interval(of(prevalence, *drawn)))

    return {prevalence: (figure(_ppv, prevalence), figure(_npv, prevalence)) for prevalence in prevalences}


def compare(first: Column, second: Column, which: Measure, draws: Reals) -> Difference:
    """Paired: both models on the same rows and the same draws. Raises EvaluationRefused when the rows differ."""
    if not (np.array_equal(first.truth, second.truth) and np.array_equal(first.patients, second.patients)):
        raise EvaluationRefused("expected two models on the same rows of the same patients, got different rows")
    reason = _why_not(first, which)
    if reason is not None:
        return Difference(None, reason=reason)
    whole = np.ones((1, first.patients_count))
    value = of_draws(first, which, whole) - of_draws(second, which, whole)
    if len(np.unique(first.patients)) < PATIENTS_MIN:
        return Difference(float(value[0]))
    return _difference(value, of_draws(first, which, draws) - of_draws(second, which, draws))


def weighted_log_loss(scored: Scored, draws: Reals | None = None) -> Estimate:
    """RSNA 2019: mean cross-entropy per label, `any` with weight 2, divided by the weights of the labels that anybody
    knows (7 when all are).
    """
    if not (scored.labels != MISSING).any():
        return Estimate(None, reason="no row has a label")
    value = float(_rsna(scored, np.ones((1, scored.patients_count)))[0])
    if draws is None or scored.patients_count < PATIENTS_MIN:
        return Estimate(value)
    return Estimate(value, *interval(_rsna(scored, draws)))


def compare_log_loss(first: Scored, second: Scored, draws: Reals) -> Difference:
    """The paired difference of two models' weighted log losses."""
    if not (np.array_equal(first.labels, second.labels) and np.array_equal(first.patients, second.patients)):
        raise EvaluationRefused("expected two models on the same rows of the same patients, got different rows")
    if not (first.labels != MISSING).any():
        return Difference(None, reason="no row has a label")
    whole = np.ones((1, first.patients_count))
    value = _rsna(first, whole) - _rsna(second, whole)
    if first.patients_count < PATIENTS_MIN:
        return Difference(float(value[0]))
    return _difference(value, _rsna(first, draws) - _rsna(second, draws))


def accuracy(scored: Scored) -> tuple[Estimate, Estimate]:
    """Share of known cells that a threshold of .5 gets right, and the share that "all negative" gets right.

    The second is there because the first means nothing without it: at RSNA's prevalences it is .943.
    """
    known = scored.labels != MISSING
    if not known.any():
        return Estimate(None, reason="no row has a label"), Estimate(None, reason="no row has a label")
    right = (scored.chances > 0.5) == (scored.labels == 1)
    return Estimate(float(right[known].mean())), Estimate(float((scored.labels[known] == 0).mean()))


def draw_patients(patients: int, draws: int, rng: np.random.Generator) -> Reals:
    """f64[draws, patients]: how often each patient comes in each draw."""
    return rng.multinomial(patients, np.full(patients, 1 / max(1, patients)), size=draws).astype(np.float64)


def interval(values: Reals) -> tuple[float | None, float | None]:
    """The middle 95 % of draws f64[D]; those that lack a kind say nothing and are left out. None when all do."""
    usable = values[np.isfinite(values)]
    if not len(usable):
        return None, None
    low, high = np.quantile(usable, [0.025, 0.975])
    return float(low), float(high)


def reliability(column: Column, bins: int = ECE_BINS) -> list[tuple[float, float, int]]:
    """(mean chance, share of positives, rows) of each bin of equally many rows, from the lowest chance up."""
    place = _bins(column.chances, bins)
    found = [(column.chances[place == index], column.truth[place == index]) for index in range(bins)]
    return [(float(chance.mean()), float(truth.mean()), len(chance)) for chance, truth in found if len(chance)]


# --- weighted measures: f64[D, patients] -> f64[D] ----------------------------------------------------------------

_ORDER: Final[Mapping[Measure, Callable[[Reals, Reals], Reals]]] = MappingProxyType(
    {
        Measure.AUC: ranked.auc,
        Measure.AP: ranked.average_precision,
        Measure.SENSITIVITY_90: lambda negative, positive: ranked.sensitivity_at(0.90, negative, positive),
        Measure.SENSITIVITY_95: lambda negative, positive: ranked.sensitivity_at(0.95, negative, positive),
        Measure.SPECIFICITY_95: lambda negative, positive: ranked.specificity_at(0.95, negative, positive),
    }
)


def of_draws(column: Column, which: Measure, draws: Reals) -> Reals:
    """f64[D]: the measure in each draw f64[D,patients]; nan where a draw lacks what the measure needs."""
    if which is Measure.ECE:
        return _calibration_error(column, draws)
    if which is Measure.BRIER:
        return _mean((column.chances - column.truth) ** 2, column.patients, draws)
    if which is Measure.LOG_LOSS:
        return _mean(_cross_entropy(column.chances, column.truth), column.patients, draws)
    return np.concatenate([_ORDER[which](*counts) for counts in _counts(column, draws)])


def _counts(column: Column, draws: Reals) -> Iterator[tuple[Reals, Reals]]:
    """What `ranked` works on, for a part of the draws at a time."""
    order = Ranked.of(column.chances, column.truth)
    at_once = max(1, _CELLS_AT_ONCE // max(1, len(column.truth)))
    for start in range(0, len(draws), at_once):
        yield order.counts(draws[start : start + at_once, column.patients])


def _rates(column: Column, draws: Reals) -> tuple[Reals, Reals]:
    """f64[D] each: sensitivity and specificity of the threshold behind SPECIFICITY_95."""
    rates = [ranked.rates_at(0.95, *counts) for counts in _counts(column, draws)]
    sensitivity, specificity = (np.concatenate(part) for part in zip(*rates, strict=True))
    return sensitivity, specificity


def _ppv(prevalence: float, sensitivity: Reals, specificity: Reals) -> Reals:
    found = sensitivity * prevalence
    return _divided(found, found + (1 - specificity) * (1 - prevalence))


def _npv(prevalence: float, sensitivity: Reals, specificity: Reals) -> Reals:
    spared = specificity * (1 - prevalence)
    return _divided(spared, spared + (1 - sensitivity) * prevalence)


def _calibration_error(column: Column, draws: Reals) -> Reals:
    """Bins stay the set's own in every draw: they are part of the measure, not of the sample."""
    place = _bins(column.chances, ECE_BINS)
    surplus = column.chances - column.truth
    gaps = [np.abs(draws @ _sums(surplus * (place == index), column)) for index in range(ECE_BINS)]
    rows = draws @ _sums(np.ones_like(surplus), column)
    return _divided(np.sum(gaps, axis=0), rows)


def _rsna(scored: Scored, draws: Reals) -> Reals:
    total = np.zeros(len(draws))
    weight = np.zeros(len(draws))
    for label, own_weight in enumerate(LABEL_WEIGHTS):
        column = scored.column(label)
        mean = _mean(_cross_entropy(column.chances, column.truth), column.patients, draws)
        known = np.isfinite(mean)
        total += np.where(known, own_weight * mean, 0)
        weight += own_weight * known
    return _divided(total, weight)


def _cross_entropy(chances: Reals, truth: NDArray[np.int8]) -> Reals:
    clipped = chances.clip(_CLIP, 1 - _CLIP)
    loss: Reals = -np.where(truth == 1, np.log(clipped), np.log1p(-clipped))
    return loss


def _mean(each: Reals, patients: NDArray[np.int64], draws: Reals) -> Reals:
    sums = np.bincount(patients, each, minlength=draws.shape[1])
    rows = np.bincount(patients, minlength=draws.shape[1])
    return _divided(draws @ sums, draws @ rows)


def _sums(each: Reals, column: Column) -> Reals:
    return np.bincount(column.patients, each, minlength=column.patients_count).astype(np.float64)


def _bins(chances: Reals, bins: int) -> NDArray[np.int64]:
    """Which bin each row falls into, by its rank; equal chances share the bin of the first of them."""
    first = np.searchsorted(np.sort(chances), chances, side="left")
    return (first * bins // max(1, len(chances))).astype(np.int64)


def _divided(part: Reals, whole: Reals) -> Reals:
    out: Reals = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return out


def _why_not(column: Column, which: Measure) -> str | None:
    positive = int((column.truth == 1).sum())
    if not len(column.truth):
        return "no row has this label"
    if positive == 0 and (which in _NEEDS_BOTH or which is Measure.AP):
        return "no positive row"
    if positive == len(column.truth) and which in _NEEDS_BOTH:
        return "no negative row"
    return None


def _difference(value: Reals, draws: Reals) -> Difference:
    low, high = interval(draws)
    usable = draws[np.isfinite(draws)]
    sides = [(np.sum(usable <= 0) + 1) / (len(usable) + 1), (np.sum(usable >= 0) + 1) / (len(usable) + 1)]
    return Difference(float(value[0]), low, high, min(1.0, 2 * float(min(sides))))
