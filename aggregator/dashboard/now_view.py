"""The first screen: the step that is going on, who is in, who is awaited and why, when it ends, and what comes next."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from federation.plan import TrainingPlan
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.dashboard import wording
from aggregator.dashboard.site_views import CANNOT_WRITE, SET_BACK, SiteView
from aggregator.rounds.outlook import outlook
from aggregator.rounds.snapshot import read_snapshot
from aggregator.runs.faults import sits_out_until
from aggregator.runs.plans import plan_of
from aggregator.states import PHASE_SEATS, RoundState, RunState, SeatState, SiteStanding
from aggregator.store import fault_rows, round_lines, round_rows, run_rows
from aggregator.store.round_lines import SeatLine
from aggregator.store.tables import Round, Run
from aggregator.units import duration


@dataclass(frozen=True)
class SiteInRound:
    """A site with regard to the round in progress, and in words how it is."""

    name: str
    words: str
    tone: str = ""


@dataclass(frozen=True)
class NowView:
    """The first screen of a run.

    Attributes:
        step: The step that is going on.
        next: What happens next.
        afterwards: What follows the round.
        deadline: When the step ends at the latest; None between rounds.
        left_s: Seconds until then.
        answered: Sites that are ready, or members that have answered.
        awaited: Sites that the round waits for, the most urgent first.
        apart: Sites that are not in this round.
    """

    step: str
    next: str
    afterwards: str = ""
    deadline: datetime | None = None
    left_s: float = 0.0
    answered: tuple[SiteInRound, ...] = ()
    awaited: tuple[SiteInRound, ...] = ()
    apart: tuple[SiteInRound, ...] = ()


def now_view(app: AppContext, session: Session, run: Run, sites: Collection[SiteView]) -> NowView:
    """Read the step that a run is at.

    Args:
        app: The aggregator.
        session: A session of `Store.read`.
        run: The run.
        sites: All sites, as read in the same snapshot.
    """
    plan, row, now = plan_of(run), round_rows.newest(session, run.run_id), app.clock()
    if row is None or row.state in round_rows.OVER:
        waiting = run_rows.queued(session)
        return NowView(step=f"The run is {run.state}", next=_between_rounds(run, waiting[0].name if waiting else None))
    snapshot = read_snapshot(session, row, now)
    coming = outlook(snapshot, now)
    seats = round_lines.seats(session, row.id)
    sitting_out = _sitting_out(session, run, row) if row.state is RoundState.TRAINING else {}
    answered, awaited, apart = [], [], []
    for site in sites:
        if site.standing in (SiteStanding.REVOKED, SiteStanding.LEFT):
            continue  # they are no part of the consortium any more
        if site.name in coming.awaited:
            awaited.append(awaited_because(site))
        elif words := _answer(row, seats.get(site.name), snapshot.eligible):
            answered.append(SiteInRound(site.name, words, "good"))
        else:
            apart.append(_apart(site, row, seats.get(site.name), sitting_out.get(site.name, 0)))
    name = "evaluation of the last model" if plan.evaluates_only(row.number) else f"round {row.number} of {plan.rounds}"
    attempt = f", attempt {row.attempt}" if row.attempt > 1 else ""
    return NowView(
        step=f"{name[0].upper()}{name[1:]}{attempt}: {wording.ROUND_STATES[row.state]}",
        next=coming.sentence,
        afterwards=after_round(run.state, plan, row.number),
        deadline=row.deadline,
        left_s=(row.deadline - now).total_seconds(),
        answered=tuple(answered),
        awaited=tuple(sorted(awaited, key=lambda site: (_URGENCY[site.tone], site.name))),
        apart=tuple(apart),
    )


def after_round(state: RunState, plan: TrainingPlan, number: int) -> str:
    """Say what follows the published round of that number, by the rules of `runs.lifecycle`."""
    if state is RunState.PAUSED:
        return "Then no round begins until the run is resumed: it is paused."
    if plan.evaluates_only(number):
        return "Then the run is complete."
    if plan.evaluates_only(number + 1):
        return "Then the sites evaluate the last model, and the run is complete."
    return f"Then round {number + 1} of {plan.rounds} begins."


def awaited_because(site: SiteView) -> SiteInRound:
    """Say why a site that the round waits for has not answered yet."""
    if site.certificate_days is not None and site.certificate_days < 0:
        ago = duration(-site.certificate_days * 86_400)
        return SiteInRound(site.name, f"certificate expired {ago} ago", "bad")
    if site.age_s is None:
        return SiteInRound(site.name, "has never reported", "warn")
    if site.doubt in (SET_BACK, CANNOT_WRITE):
        return SiteInRound(site.name, site.doubt, "warn")
    if site.stale:
        return SiteInRound(site.name, f"silent for {duration(site.age_s)}", "bad")
    reasons = f": {'; '.join(site.reasons)}" if site.reasons else ""
    progress = f", {site.progress_percent} %" if site.progress_percent is not None else ""
    return SiteInRound(site.name, f"{site.state}{reasons}{progress}", site.tone)


_URGENCY = {"bad": 0, "warn": 1, "": 2, "calm": 3, "good": 4}


def _between_rounds(run: Run, queued: str | None) -> str:
    if run.state is RunState.PAUSED:
        return f"No round begins until the run is resumed. It was paused because: {run.reason or 'no reason is kept'}."
    if run.state is RunState.RUNNING:
        return "The next round begins within moments."
    if queued is not None:
        return f"The queued run {queued} begins within moments."
    return "Nothing: no run is in progress, and none is queued."


def _answer(row: Round, seat: SeatLine | None, eligible: Collection[str]) -> str:
    """Say how the site has answered in the step; empty when it has not."""
    if seat is None:
        return ""
    if row.state is RoundState.TRAINING:
        return "ready" if seat.state is SeatState.READY and seat.site in eligible else ""
    done = SeatState.REVEALED if row.state is RoundState.AGGREGATING else PHASE_SEATS[row.state][1]
    return wording.SEAT_STATES[seat.state] if seat.state is done else ""


def _apart(site: SiteView, row: Round, seat: SeatLine | None, sits_out_until: int) -> SiteInRound:
    """Say why a site is not in this round."""
    if site.standing is SiteStanding.PENDING:
        return SiteInRound(site.name, "awaits approval", "warn")
    if site.standing is SiteStanding.SUSPENDED:
        return SiteInRound(site.name, "suspended", "warn")
    if seat is not None and seat.state is SeatState.DECLINED:
        reason = wording.REASONS.get(seat.decline_reason or "", seat.decline_reason or "no reason is known")
        return SiteInRound(site.name, f"declined: {reason}", "warn")
    if seat is not None and seat.state in (SeatState.LEFT_OUT, SeatState.MISSED):
        return SiteInRound(site.name, wording.SEAT_STATES[seat.state], "warn")
    if sits_out_until >= row.number:
        return SiteInRound(site.name, f"sits out up to round {sits_out_until} for its faults", "warn")
    if row.state is RoundState.TRAINING:
        return SiteInRound(site.name, "its keys are not in the roster yet: the custodian has to sign one", "warn")
    return SiteInRound(site.name, "came after the cohort was formed", "")


def _sitting_out(session: Session, run: Run, row: Round) -> Mapping[str, int]:
    faults = fault_rows.of_run(session, run.run_id)
    completed = fault_rows.completed(session, run.run_id) if faults else {}
    return {site: sits_out_until(held, completed.get(site, ())) for site, held in faults.items()}
