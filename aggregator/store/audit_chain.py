"""The audit as a chain: each row's digest is over the row before, so a row that is changed or taken out breaks it.

    digest(row) = SHA-256("hemofed audit v1" || 0x00 || digest(row before) || content(row))

The digest before the first row is 32 zero bytes. A person who can write to the database can also make the chain anew
from any row on. So its head is worth something where a copy of it lies elsewhere: backups print it, and the audit page
shows it.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, insert, select, text, update
from sqlalchemy.orm import Session

from aggregator.errors import AuditBroken
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
    """The number of rows in the chain, and the digest of the newest."""

    entries: int
    digest: bytes


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


def verify(session: Session) -> ChainHead:
    """Compute the chain anew from its first row.

    Raises:
        AuditBroken: Naming the first row that does not follow from the one before.
    """
    digest, entries = ORIGIN, 0
    for row in _rows(session.connection()):
        digest, entries = next_digest(digest, dict(row._mapping)), entries + 1
        if row.digest != digest:
            raise AuditBroken(
                f"expected audit row {row.id} to follow from the row before, got one that was changed, put in, or that "
                "lost the row before; compare with the last backup, and find out who wrote to the database"
            )
    return ChainHead(entries, digest)


def head(session: Session) -> ChainHead:
    """Return the head as the newest row says it, without computing the chain."""
    row = session.execute(select(_ROWS.id, _ROWS.digest).order_by(_ROWS.id.desc()).limit(1)).first()
    return ChainHead(0, ORIGIN) if row is None else ChainHead(row.id, row.digest or ORIGIN)


def chain_all(connection: Connection) -> None:
    """Give every row its digest: for a trail that was written before there was a chain."""
    digest = ORIGIN
    for row in _rows(connection):
        digest = next_digest(digest, dict(row._mapping))
        connection.execute(update(Audit).where(_ROWS.id == row.id).values(digest=digest))


def _rows(connection: Connection) -> Iterator[Row[Any]]:
    columns, last = [_ROWS[name] for name in ("id", *CONTENT, "digest")], 0
    while True:
        rows = connection.execute(select(*columns).where(_ROWS.id > last).order_by(_ROWS.id).limit(ROWS_AT_ONCE)).all()
        yield from rows
        if len(rows) < ROWS_AT_ONCE:
            return
        last = rows[-1].id
