"""Figures of a model from the cohort's summed score histograms. Pure.

A site counts, per label, its validation slices by truth and by the bin of the model's logit: 64 equal bins over
[-8, 8); the outermost two also hold everything beyond. The sums give, within the width of a bin (a quarter of a logit):

    AUC       P(positive scored above negative), ties inside a bin count half (Mann-Whitney; Hanley & McNeil 1982)
    log loss  mean of -log p(truth), every case at the middle of its bin
    ECE       expected calibration error over 15 groups of about equal mass (Naeini et al., AAAI 2015)

A label with fewer than `cases_min` positives or negatives gets none of the three: figures over so few slices tell more
about these patients than about the model. The weighted log loss is RSNA's: the mean over the labels with weight 2/7 for
`any` and 1/7 for each other. It averages all labels at once, so it needs `cases_min` positives and negatives of `any`
only, and `cases_min` cases of each label.

The histograms of a private round count patients, in 16 cells and with noise. They give an AUC with an interval
(`noised_auc`) and no other figure: noise in a group makes a calibration error of its own, and cells of one logit say
little about a loss.
"""

import math
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from federation.encoding.noised import CELLS
from federation.labels import BINS, LABEL_WEIGHTS, LABELS, LOGIT_EDGE
from msgspec import Meta, Struct
from numpy.typing import NDArray

from aggregator.runs.noised_auc import auc_of_counts

CALIBRATION_GROUPS = 15
# A count below this many standard deviations of its noise may as well be none.
_DEVIATIONS_MIN: Final = 2.0

# A case is known to within its bin, so it counts as one at the bin's middle.
_LOGITS = -LOGIT_EDGE + (np.arange(BINS) + 0.5) * (2 * LOGIT_EDGE / BINS)  # middles of the bins
_LOSS_IF_NEGATIVE = np.logaddexp(0.0, _LOGITS)  # -log(1 - sigmoid(x))
_LOSS_IF_POSITIVE = np.logaddexp(0.0, -_LOGITS)  # -log sigmoid(x)
_PROBABILITIES = 1.0 / (1.0 + np.exp(-_LOGITS))


Count = Annotated[int, Meta(ge=0)]


class LabelMetrics(Struct, frozen=True):
    """Figures of one label over the cohort's validation slices or patients. None: too few cases, see the module."""

    positives: Count
    negatives: Count
    auc: Annotated[float, Meta(ge=0, le=1)] | None
    log_loss: Annotated[float, Meta(ge=0)] | None  # nats a slice
    ece: Annotated[float, Meta(ge=0)] | None
    # Interval of 95 % around the AUC; of private rounds only.
    auc_low: Annotated[float, Meta(ge=0, le=1)] | None = None
    auc_high: Annotated[float, Meta(ge=0, le=1)] | None = None


class RefusedLabel(Struct, frozen=True):
    """The AUC of a label that a candidate loses."""

    mean: float
    least: float  # with confidence, and whichever one site is left out
    positives: Count  # slices, in size classes
    sites: Count


class GateReport(Struct, frozen=True):
    """The comparison of a candidate with its predecessor, as `federation.gate` judges it."""

    verdict: Literal["accepted", "refused"]
    mean: float  # nats a patient; above 0: the candidate is worse
    lower: float  # end of the one-sided interval
    without_one: float  # mean without the most that one site can have added
    margin: float  # of the plan
    patients: Count  # in size classes
    sites: Count
    auc_losses: dict[str, RefusedLabel] = {}  # by label: those for which it was refused
    auc_margin: float = 0.0  # of the plan

    def words(self) -> str:
        """Say why, in one clause."""
        if self.verdict == "refused":
            reasons = []
            if (least := min(self.lower, self.without_one)) > self.margin:
                reasons.append(
                    f"worse than its predecessor by {self.mean:.4f} nats a patient over {self.sites} sites, at least "
                    f"{least:.4f}, where the plan allows {self.margin:g}"
                )
            reasons += [
                f"it loses {lost.mean:.3f} of the AUC of {label} over {lost.sites} sites, at least {lost.least:.3f}, "
                f"where the plan allows {self.auc_margin:g}"
                for label, lost in self.auc_losses.items()
            ]
            return f"refused: {'; '.join(reasons)}"
        if self.patients == 0:
            return "accepted: no site could compare it with its predecessor"
        return f"accepted: {self.mean:+.4f} nats a patient against its predecessor, over {self.sites} sites"


class Report(Struct, frozen=True):
    """All labels, by name in the fixed order; empty when the cohort was below the plan's minimum.

    The database holds it as JSON. Unknown keys of a newer version are passed over, so that pages still show a report
    after a rollback.
    """

    labels: dict[str, LabelMetrics]
    weighted_log_loss: Annotated[float, Meta(ge=0)] | None
    # What positives and negatives count: validation slices, or in a private round patients.
    unit: Literal["slice", "patient"] = "slice"
    count_deviation: Annotated[float, Meta(ge=0)] = 0.0  # standard deviation of the noise in each of these counts
    gate: GateReport | None = None  # of a candidate

    def to_json(self) -> str:
        """Encode as {"labels": {name: fields of LabelMetrics}, and the other fields}."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Decode what `to_json` wrote.

        Raises:
            msgspec.ValidationError: When the text is something else.
        """
        return msgspec.json.decode(text, type=cls)


NOTHING = Report({}, None)


def report(histograms: NDArray[np.int64], cases_min: int) -> Report:
    """Compute the figures of a model.

    Args:
        histograms: int64[6 labels, (negative, positive), 64 bins], summed over a cohort.
        cases_min: Fewer positives or negatives than this give no figure, see the module.
    """
    labels = {name: _label(counts[0], counts[1], cases_min) for name, counts in zip(LABELS, histograms, strict=True)}
    any_label = labels["any"]
    losses = [_log_loss(counts[0], counts[1]) for counts in histograms if counts.sum() >= cases_min]
    if len(losses) < len(LABELS) or min(any_label.positives, any_label.negatives) < cases_min:
        return Report(labels, None)
    weighted = sum(weight * loss for weight, loss in zip(LABEL_WEIGHTS, losses, strict=True))
    return Report(labels, float(weighted / sum(LABEL_WEIGHTS)))


def noised_report(histograms: NDArray[np.int64], cases_min: int, variance: float) -> Report:
    """Compute the figures of a model from the histograms of a private round.

    Args:
        histograms: int64[6 labels, (negative, positive), 64 bins], summed over a cohort: patients and noise in every
            fourth bin.
        cases_min: Fewer positives or negatives than this give no figure, nor do counts that the noise drowns.
        variance: Of the noise in one cell of the sum.
    """
    deviation = math.sqrt(CELLS * variance)
    counts_min = max(float(cases_min), _DEVIATIONS_MIN * deviation)
    cells = histograms[:, :, :: BINS // CELLS]
    labels = {
        name: _noised_label(counts[0], counts[1], counts_min, variance)
        for name, counts in zip(LABELS, cells, strict=True)
    }
    return Report(labels, None, "patient", deviation)


def _noised_label(
    negative: NDArray[np.int64], positive: NDArray[np.int64], counts_min: float, variance: float
) -> LabelMetrics:
    positives, negatives = max(0, int(positive.sum())), max(0, int(negative.sum()))
    if min(positives, negatives) < counts_min:
        return LabelMetrics(positives, negatives, None, None, None)
    auc = auc_of_counts(negative, positive, variance)
    return LabelMetrics(positives, negatives, auc.value, None, None, auc.low, auc.high)


def _label(negative: NDArray[np.int64], positive: NDArray[np.int64], cases_min: int) -> LabelMetrics:
    positives, negatives = int(positive.sum()), int(negative.sum())
    if min(positives, negatives) < cases_min:
        return LabelMetrics(positives, negatives, None, None, None)
    return LabelMetrics(
        positives, negatives, _auc(negative, positive), _log_loss(negative, positive), _ece(negative, positive)
    )


def _auc(negative: NDArray[np.int64], positive: NDArray[np.int64]) -> float:
    below = np.cumsum(negative) - negative
    wins = float(np.sum(positive * (below + negative / 2)))
    return wins / (float(positive.sum()) * float(negative.sum()))


def _log_loss(negative: NDArray[np.int64], positive: NDArray[np.int64]) -> float:
    total = float(negative @ _LOSS_IF_NEGATIVE + positive @ _LOSS_IF_POSITIVE)
    return total / float(negative.sum() + positive.sum())


def _ece(negative: NDArray[np.int64], positive: NDArray[np.int64]) -> float:
    cases = negative + positive
    # A bin belongs to the group that holds its middle case, so the groups follow the mass and not the logits.
    middle_rank = np.cumsum(cases) - cases / 2
    group = np.minimum((middle_rank * CALIBRATION_GROUPS / cases.sum()).astype(np.int64), CALIBRATION_GROUPS - 1)
    gap = np.zeros(CALIBRATION_GROUPS)
    np.add.at(gap, group, positive - cases * _PROBABILITIES)
    return float(np.abs(gap).sum() / cases.sum())
