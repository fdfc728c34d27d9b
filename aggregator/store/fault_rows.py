"""Rows of faults: what is held against a site, in which round, with the evidence."""

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from aggregator.errors import NotFound
from aggregator.states import FaultKind, RoundState
from aggregator.store.engine import Cause, record
from aggregator.store.tables import Fault, Round, Seat


@dataclass(frozen=True)
class FaultInRound:
    """A fault, and the number of its round."""

    round_number: int
    kind: FaultKind


def add(session: Session, row: Round, site: str, kind: FaultKind, cause: Cause, evidence: bytes | None = None) -> None:
    """Hold a fault in the round's current attempt against a site, with one audit row. `cause.why` says what it did.

    A repetition changes nothing.
    """
    same = select(Fault.id).where(
        Fault.round_id == row.id, Fault.attempt == row.attempt, Fault.site == site, Fault.kind == kind
    )
    if session.scalar(same) is not None:
        return
    session.add(
        Fault(
            round_id=row.id,
            attempt=row.attempt,
            site=site,
            kind=kind,
            detail=cause.why,
            evidence=evidence,
            at=cause.at,
        )
    )
    session.flush()
    record(session, cause.of(f"site:{site}"), None, f"fault: {kind.value}")


def of_run(session: Session, run_id: bytes) -> dict[str, list[FaultInRound]]:
    """Return the faults in a run by site, oldest first."""
    rows = session.execute(
        select(Fault.site, Round.number, Fault.kind)
        .join(Round, Round.id == Fault.round_id)
        .where(Round.run_id == run_id)
        .order_by(Fault.id)
    )
    faults: dict[str, list[FaultInRound]] = defaultdict(list)
    for site, number, kind in rows:
        faults[site].append(FaultInRound(number, kind))
    return faults


def of_round(session: Session, round_id: int) -> list[Fault]:
    """Return what is held against members of a round, oldest first."""
    return list(session.scalars(select(Fault).where(Fault.round_id == round_id).order_by(Fault.id)))


def newest(session: Session, run_id: bytes, limit: int) -> list[tuple[Fault, Round]]:
    """Return the newest faults of a run, each with its round."""
    in_run = select(Fault, Round).join(Round, Round.id == Fault.round_id).where(Round.run_id == run_id)
    return [(fault, row) for fault, row in session.execute(in_run.order_by(Fault.id.desc()).limit(limit))]


def evidence(session: Session, fault_id: int) -> bytes:
    """Return the evidence of a fault.

    Raises:
        NotFound: When there is no such fault, or it has none.
    """
    fault = session.get(Fault, fault_id)
    if fault is None or fault.evidence is None:
        raise NotFound("no evidence of that number")
    return fault.evidence


def completed(session: Session, run_id: bytes) -> dict[str, set[int]]:
    """Return by site the numbers of the rounds whose published sum holds its upload."""
    rows = session.execute(
        select(Seat.site, Round.number)
        .join(Round, Round.id == Seat.round_id)
        .where(Round.run_id == run_id, Round.state == RoundState.PUBLISHED, Seat.upload_claim.is_not(None))
    )
    numbers: dict[str, set[int]] = defaultdict(set)
    for site, number in rows:
        numbers[site].add(number)
    return numbers
