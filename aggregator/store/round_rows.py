"""Rows of rounds and seats: leases, transitions, payloads, byte counts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from aggregator.errors import NotFound
from aggregator.states import RoundState, SeatState
from aggregator.store.engine import Cause, Change, columns_of, guarded, record, rows_changed, transition
from aggregator.store.run_rows import ACTIVE
from aggregator.store.tables import DealtShare, ModelMetrics, PhaseTime, RosterEpoch, Round, Run, Seat, Site

OVER = (RoundState.PUBLISHED, RoundState.ABANDONED)
_NO_SEAT = "this site has no seat in that round; poll for what to do"


@dataclass(frozen=True)
class SitePosition:
    """The position of one site: the active run, its newest round, the site's seat in it; None where there is none."""

    is_suspended: bool
    epoch: int  # of the newest roster; 0 before the first
    run: Run | None
    row: Round | None
    seat: Seat | None


def subject(row: Round) -> str:
    """Return the audit's name for a round."""
    return f"round:{row.run_id.hex()}/{row.number}"


def seat_subject(row: Round, site: str) -> str:
    """Return the audit's name for a seat."""
    return f"seat:{row.run_id.hex()}/{row.number}/{site}"


# --- rounds ---


def begin_round(session: Session, row: Round, sites: Iterable[str], change: Change) -> None:
    """Begin a round in TRAINING with an OFFERED seat for every site."""
    session.add(row)
    session.flush()  # gives the round its primary key, which the seats need
    record(session, change, None, row.state.value)
    for site in sorted(sites):
        add_seat(session, row, site)


def by_id(session: Session, round_id: int) -> Round:
    """Return the round with this primary key.

    Raises:
        NotFound: When there is none.
    """
    row = session.get(Round, round_id)
    if row is None:
        raise NotFound(f"no round with id {round_id}")
    return row


def get(session: Session, run_id: bytes, number: int) -> Round:
    """Return a round of a run.

    Raises:
        NotFound: When there is none.
    """
    rows = find(session, run_id, number)
    if not rows:
        raise NotFound(f"no round {number} in run {run_id.hex()}")
    return rows[0]


def find(session: Session, run_id: bytes, number: int) -> list[Round]:
    """Return that round in a list, which is empty when there is none."""
    return list(session.scalars(_NUMBERED, {"run": run_id, "number": number}))


def lock(session: Session, run_id: bytes, number: int, site: str) -> tuple[Run, Round, Seat]:
    """Return a run, a round and the site's seat in it; no driver can move the round before the transaction ends.

    Raises:
        NotFound: When there is no such round, or the site has no seat in it.
    """
    locked = session.execute(_LOCK, {"run": run_id, "number": number, "seated": site}).first()
    if locked is None:
        raise NotFound("no such round; poll for what to do")
    run, row, seat_row = locked
    if seat_row is None:
        raise NotFound(_NO_SEAT)
    return run, row, seat_row


def newest(session: Session, run_id: bytes) -> Round | None:
    """Return the round with the highest number, over or not."""
    return session.scalars(select(Round).where(Round.run_id == run_id).order_by(Round.number.desc()).limit(1)).first()


def position(session: Session, site: str) -> SitePosition:
    """Return everything that a Poll needs, in one query; this is the hottest one."""
    current = session.execute(_POSITION, {"seated": site}).first()
    if current is None:  # no run is active; a site still wants the roster's epoch
        suspended_at = session.scalar(_SUSPENDED_AT, {"seated": site})
        return SitePosition(suspended_at is not None, session.scalar(_NEWEST_EPOCH) or 0, None, None, None)
    suspended_at, epoch, run, row, seat_row = current
    return SitePosition(suspended_at is not None, epoch or 0, run, row, seat_row)


# Built once: building a statement costs as much as running it.
_SEATED = and_(Seat.round_id == Round.id, Seat.site == bindparam("seated"))
# A shared lock on the round's row. SQLite ignores it, because its writers exclude one another anyway.
_LOCK = (
    select(Run, Round, Seat)
    .join(Round, Round.run_id == Run.run_id)
    .outerjoin(Seat, _SEATED)
    .where(Run.run_id == bindparam("run"), Round.number == bindparam("number"))
    .with_for_update(read=True, of=Round)
)
_NUMBERED = select(Round).where(Round.run_id == bindparam("run"), Round.number == bindparam("number"))
_UNFINISHED_IDS = select(Round.id).where(Round.state.not_in(OVER)).order_by(Round.id)
# TRAINING with an upload digest: the attempt that the upload belonged to has failed.
_LEFTOVERS = (
    select(Seat.round_id, Seat.site, Seat.upload_digest)
    .join(Round, Round.id == Seat.round_id)
    .where(Seat.upload_digest.is_not(None), Round.state.in_((RoundState.TRAINING, *OVER)))
)
_EXPECTED = select(Seat.upload_digest).where(Seat.upload_digest.is_not(None))
_NEWEST_SEAT = (
    select(Round.number)
    .join(Seat, _SEATED)
    .where(Round.run_id == bindparam("run"))
    .order_by(Round.number.desc())
    .limit(1)
)
_UPLOAD_SEATS = select(Seat).where(Seat.upload_digest == bindparam("upload"))
_SEAT_STATES = select(Seat.site, Seat.state).where(Seat.round_id == bindparam("round"))
# Sets the columns that the parameters name.
_UPDATE_SEAT = update(Seat).where(Seat.round_id == bindparam("round"), Seat.site == bindparam("seated"))
_COUNT_BYTES = _UPDATE_SEAT.values(
    bytes_up=Seat.bytes_up + bindparam("up"), bytes_down=Seat.bytes_down + bindparam("down")
)
_NEWEST_EPOCH = select(func.max(RosterEpoch.epoch))
_SUSPENDED_AT = select(Site.suspended_at).where(Site.name == bindparam("seated"))
_POSITION = (
    select(_SUSPENDED_AT.scalar_subquery(), _NEWEST_EPOCH.scalar_subquery(), Run, Round, Seat)
    .select_from(Run)
    .outerjoin(Round, Round.run_id == Run.run_id)
    .outerjoin(Seat, _SEATED)
    .where(Run.state.in_(ACTIVE))
    .order_by(Run.created_at, Round.number.desc())
    .limit(1)
)


def of_run(session: Session, run_id: bytes) -> list[Round]:
    """Return all rounds of a run, by number."""
    return list(session.scalars(select(Round).where(Round.run_id == run_id).order_by(Round.number)))


def over_on_model(session: Session, digest: bytes) -> list[Round]:
    """Return the rounds of any run that are over and began from this model, oldest first."""
    began_from = select(Round).where(Round.base_model == digest, Round.state.in_(OVER))
    return list(session.scalars(began_from.order_by(Round.id)))


def has_refused_sum(session: Session, run_id: bytes) -> bool:
    """Whether a sum of the run led to no model."""
    refused = select(Round.id).where(
        Round.run_id == run_id, Round.state == RoundState.ABANDONED, Round.sum_blob.is_not(None)
    )
    return session.scalar(refused.limit(1)) is not None


def unfinished_ids(session: Session) -> list[int]:
    """Return the primary keys of the rounds that are not over, oldest first."""
    return list(columns_of(session, _UNFINISHED_IDS).scalars())


def move(
    session: Session, row: Round, after: RoundState, change: Change, values: Mapping[str, object] | None = None
) -> None:
    """Move a round from the state `row` was read in, and keep the time it spent there.

    A `row` of this session is read anew afterwards.

    Args:
        session: A session of `Store.write`.
        row: The round.
        after: The state to enter.
        change: The audit row.
        values: Other columns of the round.

    Raises:
        LostRace: When the round has left that state, or is in another attempt.
    """
    before, attempt = row.state, row.attempt
    seconds = max(0.0, (change.at - row.phase_since).total_seconds())
    ended = {"ended_at": change.at, "lease_owner": None, "lease_until": None} if after in OVER else {}
    merged = {"phase_since": change.at, **ended, **(values or {})}
    # The attempt belongs to the guard: a round may be back in the same state in a later attempt.
    key = {Round.id: row.id, Round.attempt: attempt}
    transition(session, Round.state, key, before, after, change, merged)
    session.add(PhaseTime(round_id=row.id, attempt=attempt, state=before, seconds=seconds))
    # The UPDATE went past the session's objects, so `row` still has its old state.
    session.get(Round, row.id, populate_existing=True)


def end_training(session: Session, row: Round, change: Change) -> None:
    """Let the deadline of a round in TRAINING be now; the driver then freezes the cohort.

    Raises:
        LostRace: When it is no longer in TRAINING.
    """
    statement = update(Round).where(Round.id == row.id, Round.state == RoundState.TRAINING)
    guarded(session, statement.values(deadline=change.at), change, RoundState.TRAINING, "training closed")


def move_times(session: Session, step: timedelta, cause: Cause) -> int:
    """Move the times of unfinished rounds by `step`, because the clock was, and return how many rounds there are."""
    rows = list(session.scalars(select(Round).where(Round.state.not_in(OVER))))
    for row in rows:
        row.began_at, row.phase_since = row.began_at + step, row.phase_since + step
        row.deadline += step
        row.lease_until = row.lease_until and row.lease_until + step
        record(session, cause.of(subject(row)), None, "times moved")
    return len(rows)


def phase_times(session: Session, round_id: int) -> list[PhaseTime]:
    """Return how long a round was in each state, in the order of the states."""
    return list(session.scalars(select(PhaseTime).where(PhaseTime.round_id == round_id).order_by(PhaseTime.id)))


def newest_published(session: Session, limit: int) -> list[Round]:
    """Return the newest published rounds of all runs that changed the model, newest first."""
    published = select(Round).where(Round.state == RoundState.PUBLISHED, Round.next_model != Round.base_model)
    return list(session.scalars(published.order_by(Round.id.desc()).limit(limit)))


def reached(session: Session, run_id: bytes, *states: RoundState) -> list[int]:
    """Return the numbers of a run's rounds that have been in one of `states`, or are, ascending."""
    been = select(PhaseTime.round_id).where(PhaseTime.state.in_(states))
    where = (Round.run_id == run_id) & (Round.state.in_(states) | Round.id.in_(been))
    return list(session.scalars(select(Round.number).where(where).order_by(Round.number)))


def publishes_sum(session: Session, digest: bytes) -> list[Round]:
    """Return the rounds whose published sum is the blob `digest`; usually one or none."""
    return list(session.scalars(select(Round).where(Round.sum_blob == digest)))


def add_metrics(session: Session, metrics: ModelMetrics) -> None:
    """Keep what a round says of its base model."""
    session.add(metrics)
    session.flush()


def metrics_of_run(session: Session, run_id: bytes) -> list[ModelMetrics]:
    """Return the metrics of a run's rounds, by round number."""
    joined = select(ModelMetrics).join(Round, Round.id == ModelMetrics.round_id)
    return list(session.scalars(joined.where(Round.run_id == run_id).order_by(Round.number)))


# --- leases ---


def lease(session: Session, round_id: int, owner: str, now: datetime, until: datetime) -> bool:
    """Take or renew the lease; False when another driver holds it or the round is over.

    There is no audit row: a lease changes nothing outside the drivers.
    """
    # One guarded UPDATE: of two drivers that want the lease, the later one changes no row.
    free = or_(Round.lease_until.is_(None), Round.lease_until <= now, Round.lease_owner == owner)
    statement = update(Round).where(Round.id == round_id, free, Round.state.not_in(OVER))
    return rows_changed(session, statement.values(lease_owner=owner, lease_until=until)) == 1


def leases(session: Session) -> list[tuple[int, str]]:
    """Return (round id, owner) of every lease, expired or not."""
    rows = session.execute(select(Round.id, Round.lease_owner).where(Round.lease_owner.is_not(None)))
    return [(round_id, owner) for round_id, owner in rows if owner is not None]


def release(session: Session, round_id: int, owner: str) -> None:
    """Give the lease back, if this driver still holds it."""
    statement = update(Round).where(Round.id == round_id, Round.lease_owner == owner)
    rows_changed(session, statement.values(lease_owner=None, lease_until=None))


# --- seats ---


def add_seat(session: Session, row: Round, site: str) -> None:
    """Offer the round to one more site; the unique key refuses a second seat of one site."""
    session.add(Seat(round_id=row.id, site=site, state=SeatState.OFFERED, bytes_up=0, bytes_down=0))
    session.flush()


def seat_states(session: Session, round_id: int) -> dict[str, SeatState]:
    """Return site -> state, sorted by site. It reads no payload, so a driver can afford it at every look."""
    rows = columns_of(session, _SEAT_STATES, {"round": round_id})
    return dict(sorted((site, state) for site, state in rows))


def seats(session: Session, round_id: int) -> list[Seat]:
    """Return every seat of a round, by site."""
    statement = select(Seat).where(Seat.round_id == round_id).order_by(Seat.site)
    return list(session.scalars(statement))


def seat(session: Session, round_id: int, site: str) -> Seat | None:
    """Return the seat of one site, if it has one."""
    return session.get(Seat, (round_id, site))


def newest_seats(session: Session, site: str, limit: int) -> list[tuple[Seat, Round]]:
    """Return the newest seats of a site in all runs, newest first, each with its round."""
    seats = select(Seat, Round).join(Round, Round.id == Seat.round_id).where(Seat.site == site)
    return [(seat, row) for seat, row in session.execute(seats.order_by(Round.id.desc()).limit(limit))]


def newest_seat(session: Session, run_id: bytes, site: str) -> int | None:
    """Return the number of the newest round of the run in which the site has a seat."""
    return columns_of(session, _NEWEST_SEAT, {"run": run_id, "seated": site}).scalar()


def held_seat(session: Session, round_id: int, site: str) -> Seat:
    """Return the seat of one site.

    Raises:
        NotFound: When it has none.
    """
    row = seat(session, round_id, site)
    if row is None:
        raise NotFound(_NO_SEAT)
    return row


def move_seat(
    session: Session,
    row: Round,
    site: str,
    before: SeatState,
    after: SeatState,
    change: Change,
    values: Mapping[str, object] | None = None,
) -> None:
    """Move a seat from `before` to `after`, together with other columns of it.

    Raises:
        LostRace: When it is not in `before`.
    """
    transition(session, Seat.state, {Seat.round_id: row.id, Seat.site: site}, before, after, change, values)


def payloads(session: Session, round_id: int, column: InstrumentedAttribute[bytes | None]) -> dict[str, bytes]:
    """Return site -> serialized message of one phase of the current attempt, sorted by site."""
    rows = columns_of(session, _sent(column, with_payload=True), {"round": round_id})
    # Sorted here, by code point as secure aggregation does: a database may collate names in another order.
    return dict(sorted((site, payload) for site, payload in rows))


def senders(session: Session, round_id: int, column: InstrumentedAttribute[bytes | None]) -> list[str]:
    """Return the sites of `payloads`, sorted, without reading the messages."""
    return sorted(columns_of(session, _sent(column, with_payload=False), {"round": round_id}).scalars())


@cache  # one statement for each of the few columns
def _sent(column: InstrumentedAttribute[bytes | None], *, with_payload: bool) -> Select[*tuple[Any, ...]]:
    wanted = (Seat.site, column) if with_payload else (Seat.site,)
    return select(*wanted).where(Seat.round_id == bindparam("round"), column.is_not(None))


_OF_ATTEMPT = (
    Seat.advertisement,
    Seat.shares_digest,
    Seat.complaints,
    Seat.upload_claim,
    Seat.confirmation,
    Seat.reveal,
)


def clear_payloads(session: Session, round_id: int) -> None:
    """Forget the messages of an attempt that failed. Digests of blobs stay until the blobs are deleted."""
    nothing = {column.key: None for column in _OF_ATTEMPT}
    rows_changed(session, update(Seat).where(Seat.round_id == round_id).values(nothing))
    rows_changed(session, delete(DealtShare).where(DealtShare.round_id == round_id))


def expect_upload(session: Session, round_id: int, site: str, digest: bytes) -> None:
    """Remember which blob the member is about to send."""
    rows_changed(session, _UPDATE_SEAT, {"round": round_id, "seated": site, "upload_digest": digest})


def forget_upload(session: Session, round_id: int, site: str, digest: bytes) -> None:
    """Forget the blob `digest` of a member; a newer one that the member has offered since stays."""
    # The digest is part of the guard: the member may offer the upload of the next attempt at this very moment.
    where = _is_seat(round_id, site) & (Seat.upload_digest == digest)
    rows_changed(session, update(Seat).where(where).values(upload_digest=None))


def upload_seats(session: Session, digest: bytes) -> list[Seat]:
    """Return the seats that expect the blob `digest`. `rounds.uploads` lets no second seat expect it."""
    return list(session.scalars(_UPLOAD_SEATS, {"upload": digest}))


def expected_uploads(session: Session) -> set[bytes]:
    """Return the digest of every upload that a seat names."""
    return {digest for digest in columns_of(session, _EXPECTED).scalars() if digest is not None}


def leftovers(session: Session) -> list[tuple[int, str, bytes]]:
    """Return (round id, site, digest) of every upload whose attempt is over."""
    return [
        (round_id, site, digest) for round_id, site, digest in columns_of(session, _LEFTOVERS) if digest is not None
    ]


def count_bytes(session: Session, round_id: int, counts: Iterable[tuple[str, int, int]]) -> None:
    """Add (site, bytes up, bytes down) to the seats of a round."""
    rows = [{"round": round_id, "seated": site, "up": up, "down": down} for site, up, down in counts]
    session.connection().execute(_COUNT_BYTES, rows)


def _is_seat(round_id: int, site: str) -> ColumnElement[bool]:
    return (Seat.round_id == round_id) & (Seat.site == site)
