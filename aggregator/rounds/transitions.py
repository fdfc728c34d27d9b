"""Carrying out a decision: the transitions of one round and its seats, in the caller's transaction."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from aggregator.rounds.decisions import Abandon, Advance, Freeze, Retry
from aggregator.runs.lifecycle import Cause, continue_run, pause_after
from aggregator.runs.plans import plan_of
from aggregator.states import PHASE_SEATS, RoundState, SeatState
from aggregator.store import Change, round_rows, site_rows
from aggregator.store.tables import Round, Run

AGGREGATING_S_MIN = 3600.0  # opening is arithmetic on what has arrived: only a broken disk takes this long

_NEXT = {
    RoundState.KEYS: RoundState.SHARES,
    RoundState.SHARES: RoundState.UPLOAD,
    RoundState.UPLOAD: RoundState.CONFIRM,
    RoundState.CONFIRM: RoundState.REVEAL,
    RoundState.REVEAL: RoundState.AGGREGATING,
}


@dataclass(frozen=True)
class Step:
    """A round in hand: its rows, and who acts when."""

    session: Session
    run: Run
    row: Round
    ending: Cause


def freeze(step: Step, decision: Freeze) -> None:
    """TRAINING -> KEYS, with the roster in force."""
    frozen = {"roster_epoch": site_rows.newest_epoch(step.session), "deadline": _phase_deadline(step)}
    _move(step, RoundState.KEYS, f"cohort of {len(decision.members)}", frozen)
    for site in decision.members:
        _move_seat(step, site, SeatState.READY, SeatState.JOINED, "in the cohort")
    states = round_rows.seat_states(step.session, step.row.id)
    for site in decision.left_out:
        _move_seat(step, site, states[site], SeatState.LEFT_OUT, "the cohort was frozen without it")


def advance(step: Step, decision: Advance) -> None:
    """To the next phase; who did not answer missed it."""
    phase = step.row.state
    after = _NEXT[phase]
    deadline = _phase_deadline(step)
    if after is RoundState.AGGREGATING:
        deadline = max(deadline, step.ending.at + timedelta(seconds=AGGREGATING_S_MIN))
    missed = f"; {len(decision.missed)} members missed" if decision.missed else ""
    _move(step, after, f"phase {phase} is over{missed}", {"deadline": deadline})
    for site in decision.missed:
        _move_seat(step, site, PHASE_SEATS[phase][0], SeatState.MISSED, f"did not answer in phase {phase}")


def retry(step: Step, decision: Retry) -> None:
    """Back to TRAINING in a new attempt: nothing of the old one is kept, those still there are ready at once.

    With enough of them the others get one phase's time to come back; else the training deadline stands, if that is
    longer.
    """
    row, phase_s = step.row, plan_of(step.run).deadlines.phase_s
    before, done = PHASE_SEATS[row.state]
    states = round_rows.seat_states(step.session, row.id)
    ready = round_rows.sites_in(states, {done})
    deadline = step.ending.at + timedelta(seconds=phase_s)
    if len(ready) < plan_of(step.run).cohort.minimum:
        training_s = plan_of(step.run).deadlines.training_s
        deadline = max(deadline, row.began_at + timedelta(seconds=training_s))
    anew = {"attempt": row.attempt + 1, "roster_epoch": 0, "deadline": deadline, "reason": decision.reason}
    _move(step, RoundState.TRAINING, decision.reason, anew)
    round_rows.clear_payloads(step.session, row.id)
    for site in ready:
        _move_seat(step, site, done, SeatState.READY, "the attempt failed; the update is still there")
    for site in decision.missed:
        _move_seat(step, site, before, SeatState.MISSED, "did not answer")


def abandon(step: Step, decision: Abandon, in_a_row_max: int) -> None:
    """The round is spent; the next number starts from the same model, unless too many in a row were abandoned."""
    _move(step, RoundState.ABANDONED, decision.reason, {"reason": decision.reason})
    ending = Cause(step.ending.at, step.ending.actor, decision.reason)
    pause_after(step.session, step.run, in_a_row_max, ending)
    continue_run(step.session, step.run, ending)


def _move(step: Step, after: RoundState, why: str, values: dict[str, object]) -> None:
    change = Change(step.ending.at, step.ending.actor, round_rows.subject(step.row), why)
    round_rows.move(step.session, step.row, after, change, values)


def _move_seat(step: Step, site: str, before: SeatState, after: SeatState, why: str) -> None:
    change = Change(step.ending.at, step.ending.actor, round_rows.seat_subject(step.row, site), why)
    round_rows.move_seat(step.session, step.row, site, before, after, change)


def _phase_deadline(step: Step) -> datetime:
    return step.ending.at + timedelta(seconds=plan_of(step.run).deadlines.phase_s)
