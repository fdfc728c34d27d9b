"""A model's answers judged in full: every label, slices and studies, curves, and intervals over patients."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from federation.labels import LABELS

from site_client.inference import ranked
from site_client.inference.metrics import (
    DRAWS,
    ECE_BINS,
    PREVALENCES,
    Column,
    Estimate,
    Measure,
    Scored,
    accuracy,
    draw_patients,
    measure,
    predictive,
    reliability,
    weighted_log_loss,
)
from site_client.inference.ranked import Ranked

POSITIVES_MIN: Final = 10
_TOO_FEW: Final = f"fewer than {POSITIVES_MIN} positives"
_ROWS_A_POINT: Final = 20
_DRAW_SEED: Final = 20_240_229

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Row:
    """One label. `figures` has a reason instead of a value where there are fewer than POSITIVES_MIN positives, and then
    `predictive` (PPV and NPV by prevalence) and both curves are empty. roc: false and true positive rate. calibration:
    mean chance and share of positives of bins of equally many rows.
    """

    positives: int
    rows: int
    patients_with: int
    figures: Mapping[Measure, Estimate]
    predictive: Mapping[float, tuple[Estimate, Estimate]]
    roc: Points
    calibration: Points


@dataclass(frozen=True)
class Level:
    """All slices, or all studies."""

    rows: int
    labels: Mapping[str, Row]
    log_loss: Estimate
    accuracy: Estimate
    all_negative: Estimate


@dataclass(frozen=True)
class Evaluation:
    patients: int
    slices: Level
    studies: Level


def evaluate(slices: Scored, studies: Scored, draws: int = DRAWS) -> Evaluation:
    """One model's answers, patients numbered alike in both. Both levels are judged on the same draws of patients."""
    drawn = draw_patients(studies.patients_count, draws, np.random.default_rng(_DRAW_SEED))
    return Evaluation(studies.patients_count, _level(slices, drawn), _level(studies, drawn))


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """Plain values for json.dumps; the curves included."""
    levels = {name: _level_json(getattr(evaluation, name)) for name in ("slices", "studies")}
    return {"patients": evaluation.patients, "bootstrap_draws": DRAWS, **levels}


def _level(scored: Scored, draws: ranked.Reals) -> Level:
    own, all_negative = accuracy(scored)
    labels = {name: _row(scored.column(place), draws) for place, name in enumerate(LABELS)}
    return Level(len(scored.patients), labels, weighted_log_loss(scored, draws), own, all_negative)


def _row(column: Column, draws: ranked.Reals) -> Row:
    positives = int((column.truth == 1).sum())
    counts = positives, len(column.truth), column.patients_with(1)
    if positives < POSITIVES_MIN:
        return Row(*counts, {which: Estimate(None, reason=_TOO_FEW) for which in Measure}, {}, (), ())
    figures = {which: measure(column, which, draws) for which in Measure}
    return Row(*counts, figures, predictive(column, PREVALENCES, draws), _roc(column), _calibration(column))


def _roc(column: Column) -> Points:
    if (column.truth == 1).all():
        return ()
    false, true = ranked.roc(*Ranked.of(column.chances, column.truth).counts(np.ones((1, len(column.truth)))))
    return tuple(zip(false.tolist(), true.tolist(), strict=True))


def _calibration(column: Column) -> Points:
    """Fewer bins than ECE has when there are few rows: a point of a handful of rows is noise."""
    bins = min(ECE_BINS, max(2, len(column.truth) // _ROWS_A_POINT))
    return tuple((chance, share) for chance, share, _ in reliability(column, bins))


def _level_json(level: Level) -> dict[str, object]:
    labels = {
        name: {
            "positives": row.positives,
            "rows": row.rows,
            "patients_with": row.patients_with,
            "figures": {which.value: asdict(figure) for which, figure in row.figures.items()},
            "predictive": {
                f"{prevalence:.2f}": {"ppv": asdict(ppv), "npv": asdict(npv)}
                for prevalence, (ppv, npv) in row.predictive.items()
            },
            "roc": row.roc,
            "calibration": row.calibration,
        }
        for name, row in level.labels.items()
    }
    whole = {name: asdict(getattr(level, name)) for name in ("log_loss", "accuracy", "all_negative")}
    return {"rows": level.rows, **whole, "labels": labels}
