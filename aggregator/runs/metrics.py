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
"""

from typing import Annotated

import msgspec
import numpy as np
from federation.labels import BINS, LABEL_WEIGHTS, LABELS, LOGIT_EDGE
from msgspec import Meta, Struct
from numpy.typing import NDArray

CALIBRATION_GROUPS = 15

# A case is known to within its bin, so it counts as one at the bin's middle.
_LOGITS = -LOGIT_EDGE + (np.arange(BINS) + 0.5) * (2 * LOGIT_EDGE / BINS)  # middles of the bins
_LOSS_IF_NEGATIVE = np.logaddexp(0.0, _LOGITS)  # -log(1 - sigmoid(x))
_LOSS_IF_POSITIVE = np.logaddexp(0.0, -_LOGITS)  # -log sigmoid(x)
_PROBABILITIES = 1.0 / (1.0 + np.exp(-_LOGITS))


Count = Annotated[int, Meta(ge=0)]


class LabelMetrics(Struct, frozen=True):
    """Figures of one label over the cohort's validation slices. None: too few cases, see the module."""

    positives: Count
    negatives: Count
    auc: Annotated[float, Meta(ge=0, le=1)] | None
    log_loss: Annotated[float, Meta(ge=0)] | None  # nats a slice
    ece: Annotated[float, Meta(ge=0)] | None


class Report(Struct, frozen=True):
    """All labels, by name in the fixed order; empty when the cohort was below the plan's minimum.

    The database holds it as JSON. Unknown keys of a newer version are passed over, so that pages still show a report
    after a rollback.
    """

    labels: dict[str, LabelMetrics]
    weighted_log_loss: Annotated[float, Meta(ge=0)] | None

    def to_json(self) -> str:
        """Encode as {"labels": {name: {"positives", "negatives", "auc", "log_loss", "ece"}}, "weighted_log_loss"}."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Decode what `to_json` wrote.

        Raises:
            msgspec.ValidationError: when the text is something else.
        """
        return msgspec.json.decode(text, type=cls)


NOTHING = Report({}, None)


def report(histograms: NDArray[np.int64], cases_min: int) -> Report:
    """Compute the figures of a model.

    Args:
        histograms: int64 [6 labels, (negative, positive), 64 bins], summed over a cohort.
        cases_min: Fewer positives or negatives than this give no figure, see the module.
    """
    labels = {name: _label(counts[0], counts[1], cases_min) for name, counts in zip(LABELS, histograms, strict=True)}
    any_label = labels["any"]
    losses = [_log_loss(counts[0], counts[1]) for counts in histograms if counts.sum() >= cases_min]
    if len(losses) < len(LABELS) or min(any_label.positives, any_label.negatives) < cases_min:
        return Report(labels, None)
    weighted = sum(weight * loss for weight, loss in zip(LABEL_WEIGHTS, losses, strict=True))
    return Report(labels, float(weighted / sum(LABEL_WEIGHTS)))


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
