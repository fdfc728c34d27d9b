"""Carrying out a decision: the transitions of one round and its seats, in the caller's transaction."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from federation.v1.secagg_pb2 import BadShares, ComplaintMessage, EncryptedShare
from sqlalchemy.orm import Session

from aggregator.rounds.cohort import complaints_of
from aggregator.rounds.decisions import Abandon, Advance, Freeze, Retry
from aggregator.runs.lifecycle import continue_run, pause_after, pause_because
from aggregator.runs.plans import plan_of
from aggregator.states import PHASE_SEATS, FaultKind, RoundState, SeatState
from aggregator.store import Cause, fault_rows, masking_rows, round_rows, site_rows
from aggregator.store.tables import Round, Run, Seat

# The least deadline of AGGREGATING. It is arithmetic on bytes that are here: only a broken disk takes this long.
AGGREGATING_S_MIN = 3600.0

_NEXT = {
    RoundState.KEYS: RoundState.SHARES,
    RoundState.SHARES: RoundState.UPLOAD,
    RoundState.UPLOAD: RoundState.CONFIRM,
    RoundState.CONFIRM: RoundState.REVEAL,
    RoundState.REVEAL: RoundState.AGGREGATING,
}


@dataclass(frozen=True)
class Step:
    """One step of a round: its rows, and who makes it when."""

    session: Session
    run: Run
    row: Round
    cause: Cause


def freeze(step: Step, decision: Freeze) -> None:
    """Begin masking: TRAINING -> KEYS, with the roster in force.

    Raises:
        LostRace: When the round or a seat is no longer in the state it was read in; so do all functions here.
    """
    # Read before the round moves: the seats left out may be OFFERED or READY.
    states = round_rows.seat_states(step.session, step.row.id)
    frozen = {"roster_epoch": site_rows.newest_epoch(step.session), "deadline": _phase_deadline(step)}
    _move(step, RoundState.KEYS, f"cohort of {len(decision.members)}", frozen)
    for site in decision.members:
        _move_seat(step, site, SeatState.READY, SeatState.JOINED, "in the cohort")
    for site in decision.left_out:
        _move_seat(step, site, states[site], SeatState.LEFT_OUT, "the cohort was frozen without it")


def advance(step: Step, decision: Advance) -> None:
    """Begin the next phase; members that did not answer have MISSED this one."""
    phase = step.row.state
    after = _NEXT[phase]
    deadline = _phase_deadline(step)
    if after is RoundState.AGGREGATING:
        deadline = max(deadline, step.cause.at + timedelta(seconds=AGGREGATING_S_MIN))
    missed = f"; {len(decision.missed)} members missed" if decision.missed else ""
    _record_silence(step, decision.missed)
    _move(step, after, f"phase {phase} is over{missed}", {"deadline": deadline})
    for site in decision.missed:
        _move_seat(step, site, PHASE_SEATS[phase][0], SeatState.MISSED, f"did not answer in phase {phase}")


def retry(step: Step, decision: Retry) -> None:
    """Go back to TRAINING in a new attempt with fresh keys; members that answered are READY at once."""
    row, plan = step.row, plan_of(step.run)
    before, answered = PHASE_SEATS[row.state]
    states = round_rows.seat_states(step.session, row.id)
    # When the attempt ends early, no member has missed the phase.
    still_in = (answered,) if decision.missed or not decision.left_out else (before, answered)
    ready = [site for site, state in states.items() if state in still_in and site not in decision.left_out]
    # With enough members the others get one phase's time to come back. With too few the training deadline stands, if
    # that is later: another site may still finish.
    deadline = _phase_deadline(step)
    if len(ready) < plan.cohort.minimum:
        deadline = max(deadline, row.began_at + timedelta(seconds=plan.deadlines.training_s))
    owing = set(decision.left_out).intersection(decision.missed)
    _record_silence(step, set(decision.missed) - owing)
    complaints = complaints_of(step.session, row) if owing else {}
    for site in sorted(owing):
        cause = step.cause.because(f"did not open the shares that {', '.join(complaints[site])} complained about")
        fault_rows.add(step.session, row, site, FaultKind.SILENT, cause, _evidence_of_bad_shares(step, site))
    for site in sorted(set(decision.left_out) - owing):
        cause = step.cause.because("dealt no shares to members that say so, more than may lie")
        fault_rows.add(step.session, row, site, FaultKind.BAD_SHARES, cause, _evidence_of_bad_shares(step, site))
    anew = {"attempt": row.attempt + 1, "roster_epoch": 0, "deadline": deadline, "reason": decision.reason}
    _move(step, RoundState.TRAINING, decision.reason, anew)
    # No message of the old attempt may meet one of the new: its keys and shares are of no use and would not verify.
    round_rows.clear_payloads(step.session, row.id)
    for site in decision.left_out:
        _move_seat(step, site, states[site], SeatState.LEFT_OUT, decision.reason)
    for site in ready:
        _move_seat(step, site, states[site], SeatState.READY, "the attempt failed; the update is still there")
    for site in sorted(set(decision.missed).difference(decision.left_out)):
        _move_seat(step, site, before, SeatState.MISSED, "did not answer")


def abandon(step: Step, decision: Abandon, in_a_row_max: int, refused_sum: Mapping[str, object] | None = None) -> None:
    """End the round without a model. The next number starts from the same one, unless too many in a row ended so.

    Args:
        step: The step.
        decision: Why.
        in_a_row_max: So many abandoned rounds in a row pause the run.
        refused_sum: Columns of the round that describe a sum which led to no model.
    """
    seats = round_rows.seat_states(step.session, step.row.id)
    _record_silence(step, [site for site, seat in seats.items() if _is_awaited(step, seat)])
    _move(step, RoundState.ABANDONED, decision.reason, {"reason": decision.reason, **(refused_sum or {})})
    cause = step.cause.because(decision.reason)
    # Pause first: a paused run begins no round.
    if decision.pauses_run:
        pause_because(step.session, step.run, cause)
    pause_after(step.session, step.run, in_a_row_max, cause)
    continue_run(step.session, step.run, cause)


def _move(step: Step, after: RoundState, why: str, values: dict[str, object]) -> None:
    change = step.cause.because(why).of(round_rows.subject(step.row))
    round_rows.move(step.session, step.row, after, change, values)


def _move_seat(step: Step, site: str, before: SeatState, after: SeatState, why: str) -> None:
    change = step.cause.because(why).of(round_rows.seat_subject(step.row, site))
    round_rows.move_seat(step.session, step.row, site, before, after, change)


def _is_awaited(step: Step, seat: SeatState) -> bool:
    return step.row.state in PHASE_SEATS and seat is PHASE_SEATS[step.row.state][0]


def _record_silence(step: Step, missed: Iterable[str]) -> None:
    for site in missed:
        cause = step.cause.because(f"was ready, and did not answer in phase {step.row.state}")
        fault_rows.add(step.session, step.row, site, FaultKind.SILENT, cause)


def _evidence_of_bad_shares(step: Step, dealer: str) -> bytes:
    evidence = BadShares()
    for site, data in round_rows.payloads(step.session, step.row.id, Seat.complaints).items():
        for complaint in ComplaintMessage.FromString(data).complaints:
            if complaint.dealer == dealer:
                (dealt,) = masking_rows.dealt(step.session, step.row.id, [dealer], [site])
                evidence.complaints.append(complaint)
                evidence.dealt.append(EncryptedShare.FromString(dealt))
    return evidence.SerializeToString(deterministic=True)


def _phase_deadline(step: Step) -> datetime:
    return step.cause.at + timedelta(seconds=plan_of(step.run).deadlines.phase_s)
