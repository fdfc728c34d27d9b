"""Runs and rounds as the pages show them, read from the store in one snapshot: plain values, no rows, no HTML."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from federation.encoding import Layout
from federation.forecast import noise_words
from federation.labels import LABELS
from federation.plan import TrainingPlan
from federation.vocabulary import Metric
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.dashboard import wording
from aggregator.dashboard.charts import Curve, Point
from aggregator.dashboard.visibility import Visibility, visibility
from aggregator.runs.faults import sits_out_until
from aggregator.runs.forecast_words import NOT_NOISED
from aggregator.runs.metrics import NOTHING, LabelMetrics, Report
from aggregator.runs.plans import plan_of
from aggregator.runs.privacy_status import PrivacyStatus, privacy_status
from aggregator.states import RoundState, SeatState
from aggregator.store import fault_rows, round_rows, run_rows
from aggregator.store.tables import ModelMetrics, Round, Run, Seat

FAULTS_SHOWN = 50
ROUNDS_SHOWN = 25


@dataclass(frozen=True)
class SeatView:
    """A site in a round."""

    site: str
    state: str
    tone: str
    reason: str | None
    bytes_up: int
    bytes_down: int


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


@dataclass(frozen=True)
class FaultView:
    """A fault held against a site in a run. `until`: the last round that it sits out for all its faults; 0: none."""

    fault_id: int
    site: str
    round_number: int
    words: str
    detail: str
    until: int
    has_evidence: bool


@dataclass(frozen=True)
class RoundView:
    """A round with its seats, phases and figures."""

    number: int
    attempt: int
    evaluation_only: bool
    state: str
    words: str
    tone: str
    reason: str | None
    over: bool
    phase_s: float
    deadline: datetime
    left_s: float
    missing: tuple[str, ...]
    seats: tuple[SeatView, ...]
    cohort: tuple[str, ...]
    members: int | None
    next_model: bytes | None
    judgement: ModelJudgement
    bytes_up: int
    phases: tuple[tuple[str, float], ...]
    visibility: Visibility


@dataclass(frozen=True)
class RunView:
    """A run with its rounds and curves, the newest round first."""

    hex_id: str
    name: str
    purpose: str
    origin: str
    architecture: str
    state: str
    tone: str
    reason: str | None
    created_at: datetime
    ended_at: datetime | None
    rounds_planned: int
    cohort: str
    plan_digest: bytes
    newest_model: bytes
    rounds: tuple[RoundView, ...]  # a page of them
    rounds_begun: int
    auc: tuple[Curve, ...]
    losses: tuple[Curve, ...]
    newest_judgement: ModelJudgement | None
    privacy: PrivacyStatus | None  # None: the sum is not noised
    noise_words: str
    faults: tuple[FaultView, ...]  # the newest first

    @property
    def moving(self) -> bool:
        """Whether a round is in progress, so that the page is worth fetching often."""
        return any(not row.over for row in self.rounds)


def run_view(
    app: AppContext, session: Session, run: Run, rounds_shown: int = ROUNDS_SHOWN, before: int | None = None
) -> RunView:
    """Read a run with a page of its rounds; its curves and its state are of all.

    Args:
        app: The aggregator.
        session: A session of `Store.read`.
        run: The run.
        rounds_shown: At most so many rounds. Each costs several queries.
        before: Only rounds with a smaller number; None for the newest.
    """
    plan = plan_of(run)
    rows = round_rows.of_run(session, run.run_id)
    metrics = {row.round_id: row for row in round_rows.metrics_of_run(session, run.run_id)}
    privacy = privacy_status(session, run)
    older = [row for row in reversed(rows) if before is None or row.number < before]
    numbers = {model.digest: model.round_number for model in reversed(run_rows.models(session, run.run_id))}
    views = [
        _round_view(app, session, plan, row, numbers[row.base_model], metrics.get(row.id))
        for row in older[:rounds_shown]
    ]
    cases_min = app.settings.metrics.positives_min
    judgements = (
        _judgement(plan, row, numbers[row.base_model], metrics.get(row.id), cases_min) for row in reversed(rows)
    )
    return RunView(
        hex_id=run.run_id.hex(),
        name=run.name,
        purpose=plan.purpose,
        origin=plan.origin,
        architecture=plan.architecture,
        state=run.state.value,
        tone=wording.TONES.get(run.state, ""),
        reason=run.reason,
        created_at=run.created_at,
        ended_at=run.ended_at,
        rounds_planned=plan.rounds,
        cohort=f"{plan.cohort.minimum} to {plan.cohort.maximum}, {plan.cohort.target} wanted",
        plan_digest=run.plan_digest,
        newest_model=run_rows.newest_model(session, run.run_id).digest,
        rounds=tuple(views),
        rounds_begun=len(rows),
        auc=_auc_lines(rows, metrics),
        losses=_loss_lines(rows, metrics),
        # The newest round often has no figures yet, or none because its cohort was too small.
        newest_judgement=next((judgement for judgement in judgements if judgement.labels), None),
        privacy=privacy,
        noise_words=NOT_NOISED if privacy is None else noise_words(privacy.noise.over_signal),
        faults=_faults(session, run),
    )


def _faults(session: Session, run: Run) -> tuple[FaultView, ...]:
    held, completed = fault_rows.of_run(session, run.run_id), fault_rows.completed(session, run.run_id)
    until = {site: sits_out_until(faults, completed.get(site, ())) for site, faults in held.items()}
    return tuple(
        FaultView(
            fault_id=fault.id,
            site=fault.site,
            round_number=row.number,
            words=wording.FAULTS[fault.kind],
            detail=fault.detail,
            until=until[fault.site],
            has_evidence=fault.evidence is not None,
        )
        for fault, row in fault_rows.newest(session, run.run_id, FAULTS_SHOWN)
    )


def _round_view(
    app: AppContext, session: Session, plan: TrainingPlan, row: Round, base_number: int, metrics: ModelMetrics | None
) -> RoundView:
    now, seats = app.clock(), round_rows.seats(session, row.id)
    over = row.state in round_rows.OVER
    spent = round_rows.phase_times(session, row.id)
    # Of all attempts: keys of a failed attempt were visible, too.
    reached = frozenset(time.state for time in spent) | {row.state}
    return RoundView(
        number=row.number,
        attempt=row.attempt,
        evaluation_only=plan.evaluates_only(row.number),
        state=row.state.value,
        words=wording.ROUND_STATES[row.state],
        tone=wording.TONES.get(row.state, ""),
        reason=row.reason,
        over=over,
        phase_s=(now - row.phase_since).total_seconds(),
        deadline=row.deadline,
        left_s=(row.deadline - now).total_seconds(),
        missing=() if over else tuple(seat.site for seat in seats if seat.state is _WAITED_FOR.get(row.state)),
        seats=tuple(_seat_view(seat) for seat in seats),
        cohort=tuple(seat.site for seat in seats if seat.state in _IN_COHORT),
        members=row.members,
        next_model=row.next_model,
        judgement=_judgement(plan, row, base_number, metrics, app.settings.metrics.positives_min),
        bytes_up=sum(seat.bytes_up for seat in seats),
        phases=tuple((time.state.value, time.seconds) for time in spent),
        visibility=visibility(
            reached,
            row.members,
            trains=not plan.evaluates_only(row.number),
            evaluates=_evaluates(plan, row),
            private=plan.privacy is not None,
        ),
    )


def _judgement(
    plan: TrainingPlan, row: Round, base_number: int, metrics: ModelMetrics | None, cases_min: int
) -> ModelJudgement:
    report = NOTHING if metrics is None else Report.from_json(metrics.report)
    return ModelJudgement(
        model_number=base_number,
        cohort_size=None if metrics is None else metrics.cohort_size,
        cases_min=cases_min,
        unit=report.unit,
        count_deviation=report.count_deviation,
        labels=tuple(report.labels.items()),
        auc_any=_auc(report, "any"),
        weighted_log_loss=report.weighted_log_loss,
        why_none=None if report.labels else _why_none(plan, row, metrics),
        gate=None if report.gate is None else report.gate.words(),
    )


def _why_none(plan: TrainingPlan, row: Round, metrics: ModelMetrics | None) -> str:
    if metrics is None:
        return "no sum was decoded" if row.state in round_rows.OVER else "the round is not over"
    # `rounds.aggregation` makes an empty report in these cases; the reason is not stored, but follows from the plan.
    if metrics.cohort_size < plan.cohort.minimum:
        return f"{metrics.cohort_size} sites in the sum, below the plan's minimum of {plan.cohort.minimum}"
    if Metric.HISTOGRAMS not in plan.metrics:
        return "the plan asks for no score histograms"
    if not _evaluates(plan, row):
        return "the plan lets no score histograms leave in this round"
    return "nothing was judged"


def _evaluates(plan: TrainingPlan, row: Round) -> bool:
    return Metric.HISTOGRAMS in Layout.of_round(plan, row.number).metrics


# A member that missed a phase belongs to the cohort all the same.
_IN_COHORT = frozenset(SeatState) - {SeatState.OFFERED, SeatState.DECLINED, SeatState.READY, SeatState.LEFT_OUT}
# In each state the round waits for the seats that have not acted yet.
_WAITED_FOR: dict[RoundState, SeatState] = {
    RoundState.TRAINING: SeatState.OFFERED,
    RoundState.KEYS: SeatState.JOINED,
    RoundState.SHARES: SeatState.KEYED,
    RoundState.UPLOAD: SeatState.SHARED,
    RoundState.CONFIRM: SeatState.UPLOADED,
    RoundState.REVEAL: SeatState.CONFIRMED,
}


def _seat_view(seat: Seat) -> SeatView:
    reason = None if seat.decline_reason is None else wording.REASONS.get(seat.decline_reason, seat.decline_reason)
    return SeatView(
        site=seat.site,
        state=wording.SEAT_STATES[seat.state],
        tone=wording.TONES.get(seat.state, ""),
        reason=reason,
        bytes_up=seat.bytes_up,
        bytes_down=seat.bytes_down,
    )


def _auc_lines(rows: list[Round], metrics: dict[int, ModelMetrics]) -> tuple[Curve, ...]:
    """One line a label. x is the model's number: round r measures the model after round r - 1."""
    measured = [(row.number - 1, metrics[row.id]) for row in rows if row.id in metrics]
    reports = [(number, figures.cohort_size, Report.from_json(figures.report)) for number, figures in measured]

    def points(label: str) -> Iterator[Point]:
        for number, sites, report in reports:
            auc = _auc(report, label)
            if auc is not None:  # a gap is no point
                yield Point(number, auc, sites, _interval(report, label))

    return tuple(Curve(label, tuple(points(label))) for label in reversed(LABELS))


def _interval(report: Report, label: str) -> tuple[float, float] | None:
    figures = report.labels[label]
    # Those of six labels would cover each other.
    if label != "any" or figures.auc_low is None or figures.auc_high is None:
        return None
    return figures.auc_low, figures.auc_high


def _loss_lines(rows: list[Round], metrics: dict[int, ModelMetrics]) -> tuple[Curve, ...]:
    measured = [(row.number, metrics[row.id]) for row in rows if row.id in metrics]
    # The validation loss is of the model that the round began with, the training loss of the one it made.
    validation = (
        (number - 1, Report.from_json(figures.report).weighted_log_loss, figures.cohort_size)
        for number, figures in measured
    )
    training = ((number, figures.train_loss, figures.cohort_size) for number, figures in measured)
    return (Curve("weighted log loss, validation", _known(validation)), Curve("training loss", _known(training)))


def _auc(report: Report, label: str) -> float | None:
    return report.labels[label].auc if label in report.labels else None


# A gap is no point: a line would otherwise fall to zero where a label had too few cases.
def _known(points: Iterable[tuple[int, float | None, int]]) -> tuple[Point, ...]:
    return tuple(Point(number, value, sites) for number, value, sites in points if value is not None)
