"""Quality of a model before and after packing, on the same patients: AUC by label, weighted log loss, intervals."""

from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from federation.labels import LABELS

from site_client.errors import BundleRefused
from site_client.inference.evaluation import POSITIVES_MIN
from site_client.inference.intervals import (
    DRAW_SEED,
    DRAWS,
    compare,
    compare_log_loss,
    draw_patients,
    estimate,
    weighted_log_loss,
)
from site_client.inference.measures import Measure
from site_client.inference.scores import Reals, Scored
from site_client.inference.scoring import ScoredStudies

LOSS_MAX: Final = 0.005  # of AUC


@dataclass(frozen=True)
class Quality:
    """Measures of a model and of its packed form.

    Attributes:
        patients: Validation patients.
        studies: Their studies.
        levels: Plain values for JSON, of "slices" and "studies": log loss, and by label AUC, each before, after and
            their paired difference with 95 % intervals over patients. Labels with fewer than POSITIVES_MIN positives
            are left out.
        worst: Level and label with the lowest difference in AUC, and the difference; None where no label has an AUC.
    """

    patients: int
    studies: int
    levels: dict[str, object]
    worst: tuple[str, float] | None

    def as_json(self) -> dict[str, object]:
        """Return plain values for json.dumps."""
        return {"patients": self.patients, "studies": self.studies, "bootstrap_draws": DRAWS, **self.levels}

    def refuse_a_loss(self) -> None:
        """Check that packing cost little.

        Raises:
            BundleRefused: A label lost more than LOSS_MAX of AUC, or no label's AUC could be measured.
        """
        if self.worst is None:
            raise BundleRefused(
                f"expected a label with {POSITIVES_MIN} positives among the validation patients, got none, so the loss "
                "is not known; label more studies, or give --force"
            )
        label, difference = self.worst
        if difference < -LOSS_MAX:
            raise BundleRefused(
                f"expected a packed model within {LOSS_MAX} of the model's AUC, got {difference:+.4f} for {label}; "
                "pack another architecture, or give --force"
            )


def quality_of(before: ScoredStudies, after: ScoredStudies) -> Quality:
    """Compare the scores of a model and of its packed form on the same studies."""
    patients = before.studies.patients_count
    draws = draw_patients(patients, DRAWS, np.random.default_rng(DRAW_SEED))
    levels: dict[str, object] = {}
    differences: list[tuple[str, float]] = []
    for name, first, second in (
        ("slices", before.slices, after.slices),
        ("studies", before.studies, after.studies),
    ):
        if not len(first.patients):
            continue
        labels, lost = _labels(first, second, draws)
        differences += [(f"{label} by {name}", difference) for label, difference in lost]
        log_losses = [asdict(weighted_log_loss([scored], draws)) for scored in (first, second)]
        change = asdict(compare_log_loss([second], [first], draws))
        log_loss = {"before": log_losses[0], "after": log_losses[1], "difference": change}
        levels[name] = {"rows": len(first.patients), "log_loss": log_loss, "auc": labels}
    worst = min(differences, key=lambda item: item[1], default=None)
    return Quality(patients, len(before.studies.patients), levels, worst)


def _labels(first: Scored, second: Scored, draws: Reals) -> tuple[dict[str, object], list[tuple[str, float]]]:
    rows: dict[str, object] = {}
    lost = []
    for index, label in enumerate(LABELS):
        before, after = first.column(index), second.column(index)
        positives = int((before.truth == 1).sum())
        difference = compare([after], [before], Measure.AUC, draws)
        # With fewer the AUC moves by more than LOSS_MAX when two rows change places.
        if positives < POSITIVES_MIN or difference.value is None:
            continue
        rows[label] = {
            "positives": positives,
            "before": asdict(estimate([before], Measure.AUC, draws)),
            "after": asdict(estimate([after], Measure.AUC, draws)),
            "difference": asdict(difference),
        }
        lost.append((label, difference.value))
    return rows, lost
