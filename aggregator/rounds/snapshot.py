"""Reads the snapshot of a round that `decisions` decides about, for drivers and for pages that say what comes next."""

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from aggregator.rounds.cohort import complaints_of, guilty_dealers, is_recoverable
from aggregator.rounds.decisions import RoundSnapshot
from aggregator.rounds.failures import sum_history
from aggregator.rounds.regrouping import SumHistory
from aggregator.runs.faults import offered_to
from aggregator.runs.plans import plan_of
from aggregator.states import RoundState
from aggregator.store import round_rows, run_rows, site_rows
from aggregator.store.tables import Round, Seat


def read_snapshot(session: Session, row: Round, now: datetime, before: RoundSnapshot | None = None) -> RoundSnapshot:
    """Read the round.

    Args:
        session: A session of `Store.read` or `Store.write`.
        row: A round that is not over.
        now: Aware UTC.
        before: A look of the same step; it is asked for what other rounds say of this one, where it can be.
    """
    plan = plan_of(run_rows.get(session, row.run_id))
    eligible: Collection[str] = ()
    silent: Collection[str] = ()
    history = SumHistory()
    if row.state is RoundState.TRAINING:
        # Both read all rounds of the run, which do not change within a step.
        if before is not None and (before.state, before.attempt) == (row.state, row.attempt):
            eligible, history = before.eligible, before.history
        else:
            history = sum_history(session, row)
            eligible = frozenset(
                offered_to(session, row.run_id, row.number, plan.cohort.minimum, history.bound_together)
            )
        silent = _silent(session, row, eligible, now, plan.deadlines.grace_s)
    return RoundSnapshot(
        name=round_rows.subject(row),
        state=row.state,
        attempt=row.attempt,
        deadline=row.deadline,
        seats=round_rows.seat_states(session, row.id),
        advertised=len(advertised := round_rows.senders(session, row.id, Seat.advertisement)),
        recoverable=is_recoverable(session, row, len(advertised)) if row.state is RoundState.REVEAL else False,
        guilty=guilty_dealers(session, row, len(advertised)) if row.state is RoundState.UPLOAD else (),
        accused=complaints_of(session, row) if row.state in (RoundState.UPLOAD, RoundState.CONFIRM) else (),
        reveal_until=row.phase_since + timedelta(seconds=plan.deadlines.training_s),
        eligible=eligible,
        silent=silent,
        bounds=plan.cohort,
        history=history,
    )


def newcomers(snapshot: RoundSnapshot) -> list[str]:
    """Return the eligible sites without a seat: those approved since the round began."""
    return sorted(site for site in snapshot.eligible if site not in snapshot.seats)


def _silent(session: Session, row: Round, sites: Collection[str], now: datetime, grace_s: int) -> frozenset[str]:
    """Return the sites that have not reported for so long. Reports are written every few seconds."""
    if not grace_s:
        return frozenset()
    since = now - timedelta(seconds=grace_s)
    seen = site_rows.seen_times(session)
    # A site that never reported is heard of when the round begins, so that it has its time, too.
    return frozenset(site for site in sites if max(seen.get(site, row.began_at), row.began_at) <= since)
