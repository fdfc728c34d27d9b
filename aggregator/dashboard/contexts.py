"""What the pages show, read from the store in one snapshot: plain values, no rows, no HTML."""

from dataclasses import dataclass
from datetime import datetime

from federation.plan import TrainingPlan
from sqlalchemy.orm import Session

from aggregator.dashboard import words
from aggregator.dashboard.charts import Line
from aggregator.hub import Hub
from aggregator.metrics import LABELS, NOTHING, Report
from aggregator.plans import plan_of
from aggregator.states import RoundState, SeatState
from aggregator.store import rounds, runs, sites
from aggregator.tables import ModelMetrics, Round, Run, Seat, SiteReport

STALE_FACTOR = 3  # a site is stale when it is this many polling intervals late


@dataclass(frozen=True)
class SiteView:
    name: str
    standing: str
    state: str
    tone: str
    reasons: tuple[str, ...]
    seen_at: datetime | None
    age_s: float | None
    stale: bool
    progress_percent: int | None
    version: str
    model: bytes | None
    holds_newest: bool
    roster_behind: bool
    certificate_days: float | None
    ledger_entries: int | None


@dataclass(frozen=True)
class SeatView:
    site: str
    state: str
    tone: str
    reason: str | None
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class RoundView:
    number: int
    attempt: int
    evaluation_only: bool
    state: str
    words: str
    tone: str
    reason: str | None
    over: bool
    phase_s: float
    left_s: float
    missing: tuple[str, ...]
    seats: tuple[SeatView, ...]
    cohort: tuple[str, ...]
    members: int | None
    next_model: bytes | None
    auc_any: float | None
    weighted_log_loss: float | None
    train_loss: float | None
    bytes_up: int
    phases: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class RunView:
    hex_id: str
    name: str
    purpose: str
    arm: str
    state: str
    tone: str
    reason: str | None
    created_at: datetime
    ended_at: datetime | None
    rounds_planned: int
    cohort: str
    plan_digest: bytes
    newest_model: bytes
    rounds: tuple[RoundView, ...]
    auc: tuple[Line, ...]
    losses: tuple[Line, ...]


def shown_run(session: Session) -> Run | None:
    """The run in progress, else the last one."""
    every = runs.every(session)
    return runs.active(session) or (every[-1] if every else None)


def run_view(hub: Hub, session: Session, run: Run) -> RunView:
    plan = plan_of(run)
    rows = rounds.of_run(session, run.run_id)
    metrics = {row.round_id: row for row in rounds.metrics_of_run(session, run.run_id)}
    now = hub.clock()
    return RunView(
        hex_id=run.run_id.hex(),
        name=run.name,
        purpose=plan.purpose,
        arm=plan.arm,
        state=run.state.value,
        tone=words.TONES.get(run.state.value, ""),
        reason=run.reason,
        created_at=run.created_at,
        ended_at=run.ended_at,
        rounds_planned=plan.rounds,
        cohort=f"{plan.cohort.minimum} to {plan.cohort.maximum}, {plan.cohort.target} wanted",
        plan_digest=run.plan_digest,
        newest_model=runs.newest_model(session, run.run_id).digest,
        rounds=tuple(_round_view(session, plan, row, metrics.get(row.id), now) for row in reversed(rows)),
        auc=_auc_lines(rows, metrics),
        losses=_loss_lines(rows, metrics),
    )


def site_views(hub: Hub, session: Session) -> tuple[SiteView, ...]:
    """Every site that ever joined, with the age of all that is known of it."""
    now = hub.clock()
    reports = {row.site: row for row in sites.reports(session)}
    run = shown_run(session)
    newest = runs.newest_model(session, run.run_id).digest if run is not None else b""
    epoch = sites.newest_epoch(session)
    views = []
    for site in sites.everyone(session):
        expires = sites.certificate_expiry(session, site.name)
        report = reports.get(site.name)
        days = None if expires is None else (expires - now).total_seconds() / 86_400
        views.append(_site_view(hub, site.name, sites.standing(site), report, days, newest, epoch, now))
    return tuple(views)


def _site_view(
    hub: Hub,
    name: str,
    standing: str,
    report: SiteReport | None,
    certificate_days: float | None,
    newest: bytes,
    epoch: int,
    now: datetime,
) -> SiteView:
    if report is None:
        return SiteView(
            name,
            standing,
            "never seen",
            "",
            (),
            None,
            None,
            False,
            None,
            "–",
            None,
            False,
            False,
            certificate_days,
            None,
        )
    age_s = (now - report.seen_at).total_seconds()
    pacing = hub.settings.pacing
    late = age_s > STALE_FACTOR * max(pacing.idle_s if report.state == "SITE_IDLE" else pacing.training_s, 2.0)
    return SiteView(
        name=name,
        standing=standing,
        state=words.SITE_STATES.get(report.state, report.state),
        tone=words.SITE_TONES.get(report.state, ""),
        reasons=tuple(words.REASONS.get(code, code) for code in report.reasons.split(",") if code),
        seen_at=report.seen_at,
        age_s=age_s,
        stale=late,
        progress_percent=report.progress_percent if report.state in ("SITE_TRAINING", "SITE_PAUSED") else None,
        version=report.version,
        model=report.model_digest or None,
        holds_newest=bool(newest) and report.model_digest == newest,
        roster_behind=report.roster_epoch < epoch,
        certificate_days=certificate_days,
        ledger_entries=report.ledger_entries,
    )


def _round_view(
    session: Session, plan: TrainingPlan, row: Round, metrics: ModelMetrics | None, now: datetime
) -> RoundView:
    seats = rounds.seats(session, row.id)
    over = row.state in rounds.OVER
    report = NOTHING if metrics is None else Report.from_json(metrics.report)
    return RoundView(
        number=row.number,
        attempt=row.attempt,
        evaluation_only=row.number > plan.rounds,
        state=row.state.value,
        words=words.ROUND_STATES[row.state.value],
        tone=words.TONES.get(row.state.value, ""),
        reason=row.reason,
        over=over,
        phase_s=(now - row.phase_since).total_seconds(),
        left_s=(row.deadline - now).total_seconds(),
        missing=() if over else tuple(_missing(row, seats)),
        seats=tuple(_seat_view(seat) for seat in seats),
        cohort=tuple(seat.site for seat in seats if seat.state in _IN_COHORT),
        members=row.members,
        next_model=row.next_model,
        auc_any=_auc(report, "any"),
        weighted_log_loss=report.weighted_log_loss,
        train_loss=metrics.train_loss if metrics is not None else None,
        bytes_up=sum(seat.bytes_up for seat in seats),
        phases=tuple((time.state.value, time.seconds) for time in rounds.phase_times(session, row.id)),
    )


_IN_COHORT = frozenset(SeatState) - {SeatState.OFFERED, SeatState.DECLINED, SeatState.READY, SeatState.LEFT_OUT}
_WAITED_FOR: dict[RoundState, SeatState] = {
    RoundState.TRAINING: SeatState.OFFERED,
    RoundState.KEYS: SeatState.JOINED,
    RoundState.SHARES: SeatState.KEYED,
    RoundState.UPLOAD: SeatState.SHARED,
    RoundState.CONFIRM: SeatState.UPLOADED,
    RoundState.REVEAL: SeatState.CONFIRMED,
}


def _missing(row: Round, seats: list[Seat]) -> list[str]:
    return [seat.site for seat in seats if seat.state == _WAITED_FOR.get(row.state)]


def _seat_view(seat: Seat) -> SeatView:
    reason = None if seat.decline_reason is None else words.REASONS.get(seat.decline_reason, seat.decline_reason)
    state = seat.state.value
    return SeatView(
        seat.site, words.SEAT_STATES[state], words.TONES.get(state, ""), reason, seat.bytes_up, seat.bytes_down
    )


def _auc_lines(rows: list[Round], metrics: dict[int, ModelMetrics]) -> tuple[Line, ...]:
    """One line a label; x is the model's number: what round r measures is the model after round r - 1."""
    reports = [(row.number - 1, Report.from_json(metrics[row.id].report)) for row in rows if row.id in metrics]
    return tuple(
        Line(label, _known([(number, _auc(report, label)) for number, report in reports])) for label in reversed(LABELS)
    )


def _loss_lines(rows: list[Round], metrics: dict[int, ModelMetrics]) -> tuple[Line, ...]:
    found = [(row.number, metrics[row.id]) for row in rows if row.id in metrics]
    judged = [(number - 1, Report.from_json(each.report).weighted_log_loss) for number, each in found]
    trained = [(number, each.train_loss) for number, each in found]
    return (Line("weighted log loss, validation", _known(judged)), Line("training loss", _known(trained)))


def _auc(report: Report, label: str) -> float | None:
    return report.labels[label].auc if label in report.labels else None


def _known(points: list[tuple[int, float | None]]) -> tuple[tuple[int, float], ...]:
    return tuple((number, value) for number, value in points if value is not None)
