"""Runs and their rounds as the pages list them, read from the store in one snapshot: plain values, no rows, no HTML.

Rounds are read by the page and their seats as counts, so that a page costs as many statements for a thousand sites.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from federation.forecast import noise_words
from federation.plan import TrainingPlan
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.dashboard import wording
from aggregator.dashboard.charts import Curve
from aggregator.dashboard.figures import ModelJudgement, auc_curves, judgement, loss_curves, spread
from aggregator.runs.faults import sits_out_until
from aggregator.runs.forecast_words import NOT_NOISED
from aggregator.runs.plans import plan_of
from aggregator.runs.privacy_status import PrivacyStatus, privacy_status
from aggregator.states import RoundState, SeatState
from aggregator.store import fault_rows, round_lines, round_rows, run_rows
from aggregator.store.round_lines import FiguresLine, RunLine, SeatCount
from aggregator.store.tables import Round, Run

FAULTS_SHOWN = 50
ROUNDS_SHOWN = 25
NAMES_SHOWN = 12  # of sites in a line; more are a number


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
    """A round in one line.

    Attributes:
        missing: The number of sites that it waits for; `missing_names` holds them while they are few.
        cohort: The number of members; `cohort_names` holds them while they are few.
    """

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
    missing: int
    missing_names: tuple[str, ...]
    cohort: int
    cohort_names: tuple[str, ...]
    next_model: bytes | None
    judgement: ModelJudgement
    bytes_up: int


@dataclass(frozen=True)
class RunView:
    """A run with its curves and a page of its rounds, the newest first."""

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
        rounds_shown: At most so many rounds.
        before: Only rounds with a smaller number; None for the newest.
    """
    plan, cases_min = plan_of(run), app.settings.metrics.positives_min
    figures = round_lines.figures_of_run(session, run.run_id)
    privacy = privacy_status(session, run)
    rows = round_lines.page_of_run(session, run.run_id, rounds_shown, before)
    # A round with figures has a decoded sum, so it is over.
    judgements = (
        judgement(plan, line.number, RoundState.PUBLISHED, line.model_number, line, cases_min)
        for line in reversed(figures)
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
        rounds=_round_views(app, session, plan, rows, {line.number: line for line in figures}),
        rounds_begun=round_lines.rounds_begun(session, run.run_id),
        auc=auc_curves(spread(figures)),
        losses=loss_curves(spread(figures)),
        # The newest round often has no figures yet, or none because its cohort was too small.
        newest_judgement=next((found for found in judgements if found.labels), None),
        privacy=privacy,
        noise_words=NOT_NOISED if privacy is None else noise_words(privacy.noise.over_signal),
        faults=_faults(session, run),
    )


@dataclass(frozen=True)
class RunLineView:
    """A run in one line."""

    hex_id: str
    name: str
    architecture: str
    state: str
    tone: str
    reason: str | None
    created_at: datetime
    rounds_begun: int
    rounds_planned: int
    newest_model: bytes | None


def run_line(line: RunLine) -> RunLineView:
    """Return a run as listings show it."""
    plan = plan_of(line.run)
    return RunLineView(
        hex_id=line.run.run_id.hex(),
        name=line.run.name,
        architecture=plan.architecture,
        state=line.run.state.value,
        tone=wording.TONES.get(line.run.state, ""),
        reason=line.run.reason,
        created_at=line.run.created_at,
        rounds_begun=line.rounds_begun,
        rounds_planned=plan.rounds,
        newest_model=line.newest_model,
    )


def _faults(session: Session, run: Run) -> tuple[FaultView, ...]:
    held = fault_rows.of_run(session, run.run_id)
    completed = fault_rows.completed(session, run.run_id) if held else {}
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


def _round_views(
    app: AppContext, session: Session, plan: TrainingPlan, rows: list[Round], figures: dict[int, FiguresLine]
) -> tuple[RoundView, ...]:
    now = app.clock()
    counts = round_lines.seat_counts(session, [row.id for row in rows])
    base_numbers = round_lines.base_numbers(session, list(counts))
    cohorts = {row.id: _count(counts[row.id], IN_COHORT) for row in rows}
    missing = {row.id: _count(counts[row.id], waited_for(row)) for row in rows}
    # Names only where they are few: those of a thousand sites are on the page of the round.
    few = {row.id: IN_COHORT for row in rows if 0 < cohorts[row.id] <= NAMES_SHOWN}
    cohort_names = round_lines.sites_in(session, few)
    few = {row.id: waited_for(row) for row in rows if 0 < missing[row.id] <= NAMES_SHOWN}
    missing_names = round_lines.sites_in(session, few)
    cases_min = app.settings.metrics.positives_min
    return tuple(
        RoundView(
            number=row.number,
            attempt=row.attempt,
            evaluation_only=plan.evaluates_only(row.number),
            state=row.state.value,
            words=wording.ROUND_STATES[row.state],
            tone=wording.TONES.get(row.state, ""),
            reason=row.reason,
            over=row.state in round_rows.OVER,
            phase_s=(now - row.phase_since).total_seconds(),
            deadline=row.deadline,
            left_s=(row.deadline - now).total_seconds(),
            missing=missing[row.id],
            missing_names=tuple(missing_names.get(row.id, ())),
            cohort=cohorts[row.id],
            cohort_names=tuple(cohort_names.get(row.id, ())),
            next_model=row.next_model,
            judgement=judgement(plan, row.number, row.state, base_numbers[row.id], figures.get(row.number), cases_min),
            bytes_up=sum(count.bytes_up for count in counts[row.id]),
        )
        for row in rows
    )


def _count(counts: list[SeatCount], states: Collection[SeatState]) -> int:
    return sum(count.seats for count in counts if count.state in states)


def waited_for(row: Round) -> frozenset[SeatState]:
    """Return the states of the seats that a round waits for; none once it is over."""
    return _WAITED_FOR.get(row.state, frozenset())


# A member that missed a phase belongs to the cohort all the same.
IN_COHORT = frozenset(SeatState) - {SeatState.OFFERED, SeatState.DECLINED, SeatState.READY, SeatState.LEFT_OUT}
# In each state the round waits for the seats that have not acted yet.
_WAITED_FOR: dict[RoundState, frozenset[SeatState]] = {
    RoundState.TRAINING: frozenset({SeatState.OFFERED}),
    RoundState.KEYS: frozenset({SeatState.JOINED}),
    RoundState.SHARES: frozenset({SeatState.KEYED}),
    RoundState.UPLOAD: frozenset({SeatState.SHARED}),
    RoundState.CONFIRM: frozenset({SeatState.UPLOADED}),
    RoundState.REVEAL: frozenset({SeatState.CONFIRMED}),
}
