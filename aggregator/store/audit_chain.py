"""The audit as a chain: each row's digest is over the row before, so a row that is changed or taken out breaks it.

    digest(row) = SHA-256("hemofed audit v1" || 0x00 || digest(row before) || content(row))

The digest before the first row is 32 zero bytes. A person who can write to the database can also make the chain anew
from any row on. So its head is worth something where a copy of it lies elsewhere: backups print it, and the audit page
shows it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, bindparam, insert, select, text, true, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from aggregator.errors import AuditBroken, RequestRefused
from aggregator.store.tables import Audit

ORIGIN: Final = bytes(32)  # the digest before the first row
CONTENT: Final = ("at", "actor", "subject", "before", "after", "why")
ROWS_AT_ONCE: Final = 10_000  # of a long trail in memory

_DOMAIN: Final = b"hemofed audit v1\0"
_WAITING: Final = "hemofed_audit"  # rows of a transaction, in `Session.info`
_LOCK: Final = 0x6865_6D6F  # of PostgreSQL; no other program of this database takes it

_ROWS = Audit.__table__.c
# Built once: building a statement costs as much as running it.
_APPEND = insert(Audit)
_NEWEST = select(_ROWS.digest).order_by(_ROWS.id.desc()).limit(1)


class ChainHead(NamedTuple):
    """The number of the newest row (PostgreSQL leaves some out), 0 before the first, and its digest."""

    entries: int
    digest: bytes

    @classmethod
    def parse(cls, written: str) -> "ChainHead":
        """Read <entries>:<head>, as a person has noted it.

        Raises:
            RequestRefused: It is of another form.
        """
        form = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", written)
        if form is None:
            raise RequestRefused(
                f"expected ENTRIES:HEAD, the head in 64 hex digits, as backups print it, got {written!r}"
            )
        return cls(int(form[1]), bytes.fromhex(form[2]))


def add(session: Session, row: Mapping[str, Any]) -> None:
    """Let a row join the trail when the transaction ends; all columns of CONTENT are given."""
    session.info.setdefault(_WAITING, []).append(dict(row))


def append(session: Session) -> None:
    """Write the rows that wait; the last statement before the commit.

    Writers of the trail follow one another: SQLite lets one in, and PostgreSQL's are kept apart by a lock. It is the
    last lock that a transaction takes, so no two can wait for each other.
    """
    rows = session.info.pop(_WAITING, [])
    if not rows:
        return
    session.flush()
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    digest = connection.scalar(_NEWEST) or ORIGIN
    for row in rows:
        digest = row["digest"] = next_digest(digest, row)
    connection.execute(_APPEND, rows)


def next_digest(before: bytes, row: Mapping[str, Any]) -> bytes:
    """Compute the digest of a row, 32 bytes, from the digest of the row before and the columns of CONTENT."""
    at: datetime = row["at"]
    # SQLite returns no zone; all times of the database are UTC.
    moment = (at.astimezone(UTC) if at.tzinfo else at).replace(tzinfo=None).isoformat(timespec="microseconds")
    content = json.dumps([moment, *(row[name] for name in CONTENT[1:])])
    return sha256(_DOMAIN + before + content.encode()).digest()


def verify(session: Session, noted: ChainHead | None = None) -> ChainHead:
    """Compute the chain anew from its first row.

    Args:
        session: A session of `Store.read`.
        noted: A head that the chain must have had. The chain alone does not show that its newest rows are gone, nor
            that all of it was computed anew.

    Raises:
        AuditBroken: Naming the first row that does not follow from the one before, or does not fit `noted`.
    """
    head, fits = ChainHead(0, ORIGIN), noted is None or noted == (0, ORIGIN)
    for row in _rows(session.connection()):
        try:
            digest = next_digest(head.digest, dict(row._mapping))
        except (TypeError, AttributeError):  # a value of another type than the column's, which SQLite holds too
            raise _touched(row.id) from None
        if row.digest != digest:
            raise _touched(row.id)
        head = ChainHead(row.id, digest)
        fits = fits or head == noted
    if noted is not None and not fits:
        raise AuditBroken(
            f"expected an audit with row {noted.entries} and the head {noted.digest.hex()} there, got one that "
            + (f"ends at row {head.entries}" if head.entries < noted.entries else "has another head there")
            + "; compare with the last backup, and find out who wrote to the database"
        )
    return head


def head(session: Session) -> ChainHead:
    """Return the head as the newest row says it, without computing the chain."""
    row = session.execute(select(_ROWS.id, _ROWS.digest).order_by(_ROWS.id.desc()).limit(1)).first()
    return ChainHead(0, ORIGIN) if row is None else ChainHead(row.id, row.digest or ORIGIN)


def chain_all(connection: Connection) -> None:
    """Give every row its digest: for a trail that was written before there was a chain."""
    set_digest = update(Audit).where(_ROWS.id == bindparam("row_id")).values(digest=bindparam("chained"))
    digest, chained = ORIGIN, list[dict[str, Any]]()
    for row in _rows(connection):
        digest = next_digest(digest, dict(row._mapping))
        chained.append({"row_id": row.id, "chained": digest})
        if len(chained) == ROWS_AT_ONCE:  # a trail of years would take minutes, one by one
            connection.execute(set_digest, chained)
            chained.clear()
    if chained:
        connection.execute(set_digest, chained)


def _touched(row_id: int) -> AuditBroken:
    return AuditBroken(
        f"expected audit row {row_id} to follow from the row before, got one that was changed, put in, or that "
        "lost the row before; compare with the last backup, and find out who wrote to the database"
    )


def _rows(connection: Connection) -> Iterator[Row[Any]]:
    """Yield all rows, oldest first.

    Raises:
        AuditBroken: Naming a row that cannot be read: SQLite keeps any bytes in any column.
    """
    columns = [_ROWS[name] for name in ("id", *CONTENT, "digest")]
    # No smallest number to begin after: SQLite has numbers that the column of another database cannot hold.
    is_next: ColumnElement[bool] = true()
    while True:
        chosen = select(*columns).where(is_next).order_by(_ROWS.id)
        try:
            rows = connection.execute(chosen.limit(ROWS_AT_ONCE)).all()
        except (SQLAlchemyError, ValueError, TypeError):
            # One by one, for its number. A database that refuses does so here as well.
            ids = connection.scalars(select(_ROWS.id).where(is_next).order_by(_ROWS.id).limit(ROWS_AT_ONCE))
            for row_id in ids.all():
                try:
                    connection.execute(select(*columns).where(_ROWS.id == row_id)).all()
                except (SQLAlchemyError, ValueError, TypeError):
                    raise _touched(row_id) from None
            raise
        yield from rows
        if len(rows) < ROWS_AT_ONCE:
            return
        is_next = _ROWS.id > rows[-1].id
