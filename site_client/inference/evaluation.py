"""The full evaluation of a model: every label, slices and studies, curves, intervals over patients."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from federation.labels import LABELS

from site_client.inference import ranked
from site_client.inference.intervals import (
    DRAW_SEED,
    DRAWS,
    PREVALENCES,
    Estimate,
    accuracy,
    draw_patients,
    estimate,
    predictive,
    weighted_log_loss,
)
from site_client.inference.measures import ECE_BINS, Measure, perfect_calibration_error, reliability
from site_client.inference.ranked import Ranked
from site_client.inference.scores import Column, Scored

POSITIVES_MIN: Final = 10
_TOO_FEW: Final = f"fewer than {POSITIVES_MIN} positives"
_ROWS_A_POINT: Final = 20

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Row:
    """The evaluation of one label.

    With fewer than POSITIVES_MIN positives every estimate has a reason instead of a value, and `predictive` and both
    curves are empty.

    Attributes:
        positives: Positive rows.
        rows: Rows with this label.
        patients_with: Patients with a positive row.
        estimates: By measure.
        predictive: PPV and NPV by prevalence.
        roc: False and true positive rates.
        calibration: Mean probability and share of positives, of bins of equally many rows.
        perfect_ece: ECE of a perfect model of this size; None without estimates.
    """

    positives: int
    rows: int
    patients_with: int
    estimates: Mapping[Measure, Estimate]
    predictive: Mapping[float, tuple[Estimate, Estimate]]
    roc: Points
    calibration: Points
    perfect_ece: float | None = None


@dataclass(frozen=True)
class Level:
    """The evaluation of all slices, or of all studies.

    Attributes:
        rows: Slices or studies.
        labels: By label name.
        log_loss: Weighted log loss of RSNA 2019.
        accuracy: At a threshold of .5.
        all_negative: Accuracy of the answer "no hemorrhage" everywhere.
    """

    rows: int
    labels: Mapping[str, Row]
    log_loss: Estimate
    accuracy: Estimate
    all_negative: Estimate


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one model on one set of patients."""

    patients: int
    slices: Level
    studies: Level


def evaluate(slices: Scored, studies: Scored, draws: int = DRAWS) -> Evaluation:
    """Evaluate one model.

    Args:
        slices: One row a slice; may be empty.
        studies: One row a study. Patients have the same numbers in both.
        draws: Of the bootstrap; both levels use the same ones.
    """
    drawn = draw_patients(studies.patients_count, draws, np.random.default_rng(DRAW_SEED))
    return Evaluation(studies.patients_count, _level(slices, drawn), _level(studies, drawn))


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """Return plain values for json.dumps, curves included."""
    levels = {name: _level_json(getattr(evaluation, name)) for name in ("slices", "studies")}
    return {"patients": evaluation.patients, "bootstrap_draws": DRAWS, **levels}


def _level(scored: Scored, draws: ranked.Reals) -> Level:
    labels = {name: _row(scored.column(index), draws) for index, name in enumerate(LABELS)}
    return Level(len(scored.patients), labels, weighted_log_loss([scored], draws), *accuracy(scored))


def _row(column: Column, draws: ranked.Reals) -> Row:
    positives = int((column.truth == 1).sum())
    counts = positives, len(column.truth), column.patients_with(1)
    if positives < POSITIVES_MIN:
        return Row(*counts, {measure: Estimate(None, reason=_TOO_FEW) for measure in Measure}, {}, (), ())
    estimates = {measure: estimate([column], measure, draws) for measure in Measure}
    # A point of a few rows is noise, so a small set has fewer points than ECE has bins.
    bins = min(ECE_BINS, max(2, len(column.truth) // _ROWS_A_POINT))
    calibration = tuple((probability, share) for probability, share, _ in reliability(column, bins))
    return Row(
        *counts,
        estimates,
        predictive(column, PREVALENCES, draws),
        _roc(column),
        calibration,
        perfect_calibration_error(column),
    )


def _roc(column: Column) -> Points:
    if (column.truth == 1).all():  # without a negative row there is no false positive rate
        return ()
    counts = Ranked.of(column.probabilities, column.truth).counts(np.ones((1, len(column.truth))))
    false, true = ranked.roc(*counts)
    return tuple(zip(false.tolist(), true.tolist(), strict=True))


def _level_json(level: Level) -> dict[str, object]:
    labels = {
        name: {
            "positives": row.positives,
            "rows": row.rows,
            "patients_with": row.patients_with,
            "figures": {measure.value: asdict(estimate) for measure, estimate in row.estimates.items()},
            "predictive": {
                f"{prevalence:.2f}": {"ppv": asdict(ppv), "npv": asdict(npv)}
                for prevalence, (ppv, npv) in row.predictive.items()
            },
            "roc": row.roc,
            "calibration": row.calibration,
            "perfect_ece": row.perfect_ece,
        }
        for name, row in level.labels.items()
    }
    whole = {name: asdict(getattr(level, name)) for name in ("log_loss", "accuracy", "all_negative")}
    return {"rows": level.rows, **whole, "labels": labels}
