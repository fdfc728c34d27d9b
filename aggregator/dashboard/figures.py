"""Figures of a run's models as the pages show them: those of one model by label, and the curves of all."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from federation.encoding import Layout
from federation.labels import LABELS
from federation.plan import TrainingPlan
from federation.vocabulary import Metric

from aggregator.dashboard.charts import Curve, Point
from aggregator.runs.metrics import NOTHING, LabelMetrics, Report
from aggregator.states import RoundState
from aggregator.store import round_rows
from aggregator.store.round_lines import FiguresLine

NEWEST_DRAWN, OLDER_DRAWN = 30, 90
REPORTS_KEPT = 2048  # parsed; a run has a few hundred rounds, and their figures never change


@dataclass(frozen=True)
class ModelJudgement:
    """Figures of a round's base model from the cohort's decoded sum, or in words why there are none."""

    model_number: int  # the round that made the model; 0 is the initial one
    cohort_size: int | None
    cases_min: int  # a label with fewer positive or negative cases shows nothing
    unit: str  # of a case: slice or patient
    count_deviation: float  # standard deviation of the noise in a number of cases
    labels: tuple[tuple[str, LabelMetrics], ...]
    auc_any: float | None
    weighted_log_loss: float | None
    why_none: str | None
    gate: str | None  # what the gate made of the model, and why; None if it was no candidate


def judgement(
    plan: TrainingPlan, number: int, state: RoundState, base_number: int, figures: FiguresLine | None, cases_min: int
) -> ModelJudgement:
    """Return what a round says of its base model.

    Args:
        plan: Of the run.
        number: Of the round.
        state: Of the round.
        base_number: The round that made its base model.
        figures: Of the round; None while it has none.
        cases_min: See `ModelJudgement`.
    """
    report = NOTHING if figures is None else parsed(figures.report)
    return ModelJudgement(
        model_number=base_number,
        cohort_size=None if figures is None else figures.cohort_size,
        cases_min=cases_min,
        unit=report.unit,
        count_deviation=report.count_deviation,
        labels=tuple(report.labels.items()),
        auc_any=_auc(report, "any"),
        weighted_log_loss=report.weighted_log_loss,
        why_none=None if report.labels else _why_none(plan, number, state, figures),
        gate=None if report.gate is None else report.gate.words(),
    )


def evaluates(plan: TrainingPlan, number: int) -> bool:
    """Whether score histograms leave a site in the round of that number."""
    return Metric.HISTOGRAMS in Layout.of_round(plan, number).metrics


def spread(figures: Sequence[FiguresLine]) -> list[FiguresLine]:
    """Return the newest figures and an even part of the older ones: no chart is wide enough for those of 500 rounds."""
    older, newest = figures[:-NEWEST_DRAWN], figures[-NEWEST_DRAWN:]
    return [*older[:: 1 + len(older) // OLDER_DRAWN], *newest]


def auc_curves(figures: Sequence[FiguresLine]) -> tuple[Curve, ...]:
    """Return one curve a label. x is the model's number; a model that two rounds have measured has two points."""
    reports = [(line.model_number, line.cohort_size, parsed(line.report)) for line in figures]

    def points(label: str) -> Iterator[Point]:
        for number, sites, report in reports:
            auc = _auc(report, label)
            if auc is not None:  # a gap is no point
                yield Point(number, auc, sites, _interval(report, label))

    return tuple(Curve(label, tuple(points(label))) for label in reversed(LABELS))


def loss_curves(figures: Sequence[FiguresLine]) -> tuple[Curve, ...]:
    """Return the curves of the losses of validation and training."""
    # The validation loss is of the model that the round began with, the training loss of the one it made.
    validation = ((line.model_number, parsed(line.report).weighted_log_loss, line.cohort_size) for line in figures)
    training = ((line.number, line.train_loss, line.cohort_size) for line in figures)
    return (Curve("weighted log loss, validation", _known(validation)), Curve("training loss", _known(training)))


@lru_cache(REPORTS_KEPT)
def parsed(report: str) -> Report:
    """Decode a stored report."""
    return Report.from_json(report)


def _why_none(plan: TrainingPlan, number: int, state: RoundState, figures: FiguresLine | None) -> str:
    if figures is None:
        return "no sum was decoded" if state in round_rows.OVER else "the round is not over"
    # `rounds.aggregation` makes an empty report in these cases; the reason is not stored, but follows from the plan.
    if figures.cohort_size < plan.cohort.minimum:
        return f"{figures.cohort_size} sites in the sum, below the plan's minimum of {plan.cohort.minimum}"
    if Metric.HISTOGRAMS not in plan.metrics:
        return "the plan asks for no score histograms"
    if not evaluates(plan, number):
        return "the plan lets no score histograms leave in this round"
    return "nothing was judged"


def _interval(report: Report, label: str) -> tuple[float, float] | None:
    figures = report.labels[label]
    # Those of six labels would cover each other.
    if label != "any" or figures.auc_low is None or figures.auc_high is None:
        return None
    return figures.auc_low, figures.auc_high


def _auc(report: Report, label: str) -> float | None:
    return report.labels[label].auc if label in report.labels else None


# A gap is no point: a line would otherwise fall to zero where a label had too few cases.
def _known(points: Iterable[tuple[int, float | None, int]]) -> tuple[Point, ...]:
    return tuple(Point(number, value, sites) for number, value, sites in points if value is not None)
