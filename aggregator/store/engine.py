"""The database connection, and the one way to change a state.

Every module of this package takes a `Session` that `Store.read` or `Store.write` made, so that a use case chooses
which changes belong into one transaction. Rows stay readable after it ends.

SQLite runs in WAL with full synchronization: readers never wait, and writers take the write lock when they begin, so
that a transaction that has read cannot fail halfway for a lock. PostgreSQL works the same; there the guard of
`transition` decides a race.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from sqlite3 import Error as SqliteError
from threading import Lock
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy import Connection, CursorResult, Delete, Engine, Select, Update, bindparam, create_engine, event, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import InstrumentedAttribute, Session

from aggregator.errors import ConfigRefused, LostRace
from aggregator.states import ROUND_TRANSITIONS, RUN_TRANSITIONS, SEAT_TRANSITIONS, RoundState, RunState, SeatState
from aggregator.store import audit_chain

BUSY_TIMEOUT_MS = 30_000
OPERATOR = "operator"  # the audit's name for a coordinator who is not named

State = TypeVar("State", RunState, RoundState, SeatState)
Columns = TypeVarTuple("Columns")


class Store:
    """One engine, shared by all use cases. Thread-safe; a Session is not."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # SQLite lets one writer in and has the others sleep longer and longer, long after it is free again. With this
        # lock the next writer of the process begins at once. Other processes, and PostgreSQL, use their own locks.
        self._write_lock: AbstractContextManager[object] = Lock() if engine.dialect.name == "sqlite" else nullcontext()
        self._writer = engine.execution_options(hemofed_write=True)

    @property
    def is_shared(self) -> bool:
        """Whether several aggregators may use the database at once."""
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yields a session on one consistent snapshot; writes in it are rolled back."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yields a session in one transaction: committed when the block ends, rolled back when it raises."""
        with self._write_lock, Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session
            audit_chain.append(session)

    def checkpoint(self) -> None:
        """Move what is committed from SQLite's write-ahead log into the file, as far as no reader is in the way."""
        if not self.is_shared:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close all connections; a later session opens new ones."""
        self.engine.dispose()


@dataclass(frozen=True)
class Change:
    """The actor, the row, the time and the reason of a change: its audit row without the states."""

    at: datetime
    actor: str  # person:<name>, unix:<name>, site:<name>, driver:<owner>, dashboard
    subject: str  # run:<hex>, round:<hex>/<n>, seat:<hex>/<n>/<site>, site:<name>
    why: str  # one sentence or a closed code; never free text from a site


@dataclass(frozen=True)
class Cause:
    """The actor, the time and the reason of changes. It may change several rows: each gets a Change of its own."""

    at: datetime
    actor: str
    why: str

    def of(self, subject: str) -> Change:
        """Return the change of the row that the audit calls `subject`."""
        return Change(self.at, self.actor, subject, self.why)

    def because(self, why: str) -> "Cause":
        """Return the same actor and time with another reason."""
        return replace(self, why=why)


def open_store(url: str) -> Store:
    """Connect. The tables must be there already: `migrations` makes them.

    Args:
        url: As SQLAlchemy writes it: sqlite:////var/lib/hemofed/hub.sqlite, postgresql+psycopg://...

    Raises:
        ConfigRefused: When it is no such URL, or the database's driver is not installed.
    """
    try:
        return _open(url)
    except ModuleNotFoundError as error:
        raise ConfigRefused(
            f"[state] database needs the Python package {error.name}, which is not installed; "
            "pip install 'hemofed[postgres]'"
        ) from None
    except ArgumentError:  # its text may repeat the password
        raise ConfigRefused(
            "[state] database: expected a URL such as postgresql+psycopg://user:password@host/name, got another text"
        ) from None


def _open(url: str) -> Store:
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_engine(url, pool_size=32, max_overflow=32)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return Store(engine)
    return Store(create_engine(url, pool_size=32, max_overflow=32, pool_pre_ping=True))


def transition(
    session: Session,
    column: InstrumentedAttribute[State],
    key: Mapping[InstrumentedAttribute[Any], object],
    before: State,
    after: State,
    change: Change,
    values: Mapping[str, object] | None = None,
) -> None:
    """Move one row from `before` to `after`, together with `values`, and write its audit row.

    Example::

        transition(session, Round.state, {Round.id: 7}, RoundState.TRAINING, RoundState.KEYS, change, {"deadline": ...})

    Args:
        session: A session of `Store.write`.
        column: The state column.
        key: Values of columns that name one row; its state is guarded here.
        before: The state that the caller has read.
        after: The state to enter.
        change: The audit row.
        values: Other columns of the same row.

    Raises:
        LostRace: When the row is not, or no longer, in `before`.
        ValueError: For a step that `states` does not know.
    """
    if after not in allowed_after(before):
        raise ValueError(f"{type(before).__name__}: no transition from {before} to {after} in aggregator.states")
    is_row = {f"is_{named.key}": value for named, value in key.items()}
    parameters = {**is_row, "before": before, column.key: after, **(values or {})}
    guarded(session, _moving(column, tuple(key)), change, before.value, after.value, parameters)


@cache  # one statement for each kind of row: building it costs more than running it
def _moving(column: InstrumentedAttribute[Any], key: tuple[InstrumentedAttribute[Any], ...]) -> Update:
    """Build the UPDATE of `transition`; SQLAlchemy sets the columns that its parameters name."""
    is_row = (named == bindparam(f"is_{named.key}") for named in key)
    return update(column.class_).where(*is_row, column == bindparam("before"))


def guarded(
    session: Session,
    statement: Update,
    change: Change,
    before: str | None,
    after: str,
    parameters: Mapping[str, object] | None = None,
) -> None:
    """Run an UPDATE whose WHERE holds the old state, and write its audit row; for changes that are no state column.

    Raises:
        LostRace: When no row matched.
        RuntimeError: When several did, because the WHERE named more than one row.
    """
    rows = rows_changed(session, statement, parameters)
    if rows == 0:
        raise LostRace(
            f"{change.subject}: expected {before or 'the state just read'} before {after}, but it has changed"
        )
    # The caller's transaction rolls back both cases, so no row keeps a change without its audit row.
    if rows > 1:
        raise RuntimeError(f"{change.subject}: {rows} rows for one transition")
    record(session, change, before, after)


def rows_changed(session: Session, statement: Update | Delete, parameters: Mapping[str, object] | None = None) -> int:
    """Run a statement and count its rows. Objects of the session keep old values; read them anew."""
    # What was added to the session goes first: the statement may concern it.
    session.flush()
    return session.connection().execute(statement, parameters).rowcount


def columns_of(
    session: Session, statement: Select[*Columns], parameters: Mapping[str, object] | None = None
) -> CursorResult[*Columns]:
    """Run a SELECT of single columns, past the session's objects: in half the time of `session.execute`."""
    session.flush()
    return session.connection().execute(statement, parameters)


def record(session: Session, change: Change, before: str | None, after: str) -> None:
    """Append one audit row at the end of the transaction: for a row that is new, or for an event without a state."""
    row = {"at": change.at, "actor": change.actor, "subject": change.subject}
    audit_chain.add(session, row | {"before": before, "after": after, "why": change.why})


def allowed_after(
    before: RunState | RoundState | SeatState,
) -> frozenset[RunState] | frozenset[RoundState] | frozenset[SeatState]:
    """Return the states that may follow `before`, from the table of its kind."""
    match before:
        case RunState():
            return RUN_TRANSITIONS[before]
        case RoundState():
            return ROUND_TRANSITIONS[before]
        case SeatState():
            return SEAT_TRANSITIONS[before]


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # sqlite3 begins nothing by itself; _begin_sqlite does
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # an answered call must survive a power cut: the site will not repeat it
        "foreign_keys = ON",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    begin = "BEGIN IMMEDIATE" if connection.get_execution_options().get("hemofed_write", False) else "BEGIN"
    # Every call begins two or three transactions, and through SQLAlchemy this word costs as much as a query.
    try:
        connection.connection.cursor().execute(begin)
    except SqliteError as error:
        raise DBAPIError.instance(begin, None, error, SqliteError) from error
