"""Rounds, seats and figures as pages list them: columns and counts, without the messages that seats hold."""

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, func, or_, select
from sqlalchemy.orm import Session

from aggregator.states import SeatState
from aggregator.store.engine import columns_of
from aggregator.store.run_rows import MAY_BE_STARTED_FROM
from aggregator.store.tables import ModelMetrics, ModelVersion, Round, Run, Seat


class SeatLine(NamedTuple):
    """A seat."""

    site: str
    state: SeatState
    decline_reason: str | None
    bytes_up: int
    bytes_down: int


class SeatOrder(StrEnum):
    """The orders of the seats of a round."""

    SITE = "site"
    STATE = "state"
    SENT = "sent"  # the most bytes first


def seats(session: Session, round_id: int) -> dict[str, SeatLine]:
    """Return site -> its seat, by site."""
    return {row.site: SeatLine(*row) for row in columns_of(session, _SEATS, {"round": round_id})}


def page_of_seats(
    session: Session, round_id: int, search: str, order: SeatOrder, limit: int, offset: int
) -> list[SeatLine]:
    """Return some seats of a round.

    Args:
        session: A session of `Store.read`.
        round_id: Its primary key.
        search: Only sites whose name holds this.
        order: Of the seats; equal ones by site.
        limit: At most so many.
        offset: So many are left out before.
    """
    by: dict[SeatOrder, tuple[Any, ...]] = {
        SeatOrder.SITE: (),
        SeatOrder.STATE: (Seat.state,),
        SeatOrder.SENT: (Seat.bytes_up.desc(),),
    }
    chosen = _named(_SEATS, search).order_by(None).order_by(*by[order], Seat.site).limit(limit).offset(offset)
    return [SeatLine(*row) for row in columns_of(session, chosen, {"round": round_id})]


def count_seats(session: Session, round_id: int, search: str = "") -> int:
    """Count the seats of `page_of_seats`."""
    counted = select(func.count()).select_from(Seat).where(Seat.round_id == round_id)
    return session.scalar(_named(counted, search)) or 0


class SeatCount(NamedTuple):
    """The seats of a round in one state."""

    state: SeatState
    seats: int
    bytes_up: int


def seat_counts(session: Session, round_ids: Sequence[int]) -> dict[int, list[SeatCount]]:
    """Count the seats of rounds by state, by the rounds' primary keys."""
    counted = (
        select(Seat.round_id, Seat.state, func.count(), func.sum(Seat.bytes_up))
        .where(Seat.round_id.in_(round_ids))
        .group_by(Seat.round_id, Seat.state)
    )
    counts: dict[int, list[SeatCount]] = {round_id: [] for round_id in round_ids}
    for round_id, state, number, bytes_up in columns_of(session, counted):
        counts[round_id].append(SeatCount(state, number, int(bytes_up or 0)))
    return counts


def sites_in(session: Session, wanted: Mapping[int, Collection[SeatState]]) -> dict[int, list[str]]:
    """Return the sites whose seats are in one of the states wanted of a round, by the rounds' primary keys."""
    names: dict[int, list[str]] = {round_id: [] for round_id in wanted}
    any_of = [(Seat.round_id == round_id) & Seat.state.in_(states) for round_id, states in wanted.items()]
    chosen = select(Seat.round_id, Seat.site).where(or_(False, *any_of)).order_by(Seat.site)
    for round_id, site in columns_of(session, chosen):
        names[round_id].append(site)
    return names


def page_of_run(session: Session, run_id: bytes, limit: int, before: int | None = None) -> list[Round]:
    """Return the newest rounds of a run, newest first; `before`: only those with a smaller number."""
    chosen = select(Round).where(Round.run_id == run_id).order_by(Round.number.desc()).limit(limit)
    return list(session.scalars(chosen if before is None else chosen.where(Round.number < before)))


def rounds_begun(session: Session, run_id: bytes) -> int:
    """Count the rounds of a run."""
    return session.scalar(select(func.count()).select_from(Round).where(Round.run_id == run_id)) or 0


class RunLine(NamedTuple):
    """A run in a listing."""

    run: Run
    rounds_begun: int
    newest_model: bytes | None


def page_of_runs(session: Session, limit: int, offset: int) -> list[RunLine]:
    """Return some runs, the newest first."""
    # Scalar subqueries: for the runs of this page only.
    begun = select(func.count()).select_from(Round).where(Round.run_id == Run.run_id).scalar_subquery()
    of_run = select(ModelVersion.digest).where(ModelVersion.run_id == Run.run_id, MAY_BE_STARTED_FROM)
    newest = of_run.order_by(ModelVersion.id.desc()).limit(1).scalar_subquery()
    chosen = select(Run, begun, newest).order_by(Run.created_at.desc()).limit(limit).offset(offset)
    return [RunLine(run, number, model) for run, number, model in session.execute(chosen)]


class FiguresLine(NamedTuple):
    """A round's figures of its base model."""

    number: int
    model_number: int  # the round that made the model; 0 is the initial one
    cohort_size: int
    train_loss: float | None
    report: str


def figures_of_run(session: Session, run_id: bytes) -> list[FiguresLine]:
    """Return the figures of a run's rounds, by round number."""
    return [FiguresLine(*row) for row in columns_of(session, _FIGURES, {"run": run_id})]


def base_numbers(session: Session, round_ids: Sequence[int]) -> dict[int, int]:
    """Return the number of each round's base model, by the primary keys of the rounds."""
    chosen = select(Round.id, _BASE_NUMBER).where(Round.id.in_(round_ids))
    return {round_id: number for round_id, number in columns_of(session, chosen)}


def _named(statement: Select[*tuple[Any, ...]], search: str) -> Select[*tuple[Any, ...]]:
    # autoescape: an underscore is a letter, not SQL's wildcard.
    return statement.where(Seat.site.contains(search, autoescape=True)) if search else statement


_SEATS = (
    select(Seat.site, Seat.state, Seat.decline_reason, Seat.bytes_up, Seat.bytes_down)
    .where(Seat.round_id == bindparam("round"))
    .order_by(Seat.site)
)
# The first of equal models: a round may end in the model of an earlier one.
_BASE_NUMBER = (
    select(func.min(ModelVersion.round_number))
    .where(ModelVersion.run_id == Round.run_id, ModelVersion.digest == Round.base_model)
    .scalar_subquery()
)
_FIGURES = (
    select(Round.number, _BASE_NUMBER, ModelMetrics.cohort_size, ModelMetrics.train_loss, ModelMetrics.report)
    .join(ModelMetrics, ModelMetrics.round_id == Round.id)
    .where(Round.run_id == bindparam("run"))
    .order_by(Round.number)
)
