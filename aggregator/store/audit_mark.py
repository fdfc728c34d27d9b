"""The end of the audit trail, noted in a file beside the database, and compared at the next start.

SQLite takes a write-ahead log that is damaged, cut or gone for one that ends there, and goes on from an earlier moment
without a word. Hospitals that have moved on would be refused, each with another sentence. The audit has a row for every
change of a state, so a database that lost its end lost rows of it.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import inspect, select
from sqlalchemy.exc import DatabaseError

from aggregator.errors import StateFolderRefused
from aggregator.secret_file import write_secret
from aggregator.store.engine import Store
from aggregator.store.tables import Audit

NAME = "audit.mark"
RESTORE = 'restore the whole folder from a backup (docs/OPERATIONS.md, "Backup and restore")'

_ROWS = Audit.__table__.c


class Mark(NamedTuple):
    """The newest row of the audit: its number, 0 before the first, and the head of the chain in hex.

    Notes of version 0.1.0 hold the SHA-256 of the row's content instead.
    """

    entries: int
    sha256: str


def note(store: Store, folder: Path) -> Mark:
    """Write down the newest row, if the file is behind it, and return it.

    Args:
        store: The database. What it has committed survives a power cut, so the note is never ahead of it.
        folder: The state folder.
    """
    head, noted = _row(store, None), _noted(folder)
    # Never lowered: the mark shows that a database has lost its end.
    if head.entries > noted.entries or not (folder / NAME).exists():
        write_secret(folder / NAME, json.dumps(head._asdict()).encode())
    return head


def check(store: Store, folder: Path) -> None:
    """Compare the database with the file.

    Raises:
        StateFolderRefused: When the database is damaged, ends before the noted row, or holds another one in its place.
    """
    check_intact(store, folder)
    noted = _noted(folder)
    if not noted.entries:
        return
    held = _row(store, noted.entries)
    if noted in (held, _row(store, noted.entries, chained=False)):
        return
    last = _row(store, None).entries
    raise StateFolderRefused(
        f"expected the database of {folder} to hold audit row {noted.entries} as {NAME} notes it, got "
        + ("another row in its place" if held.entries else f"one that ends at row {last}")
        + f": its end was lost or an older copy was put back; {RESTORE}, or go on with what is there by deleting {NAME}"
    )


def check_intact(store: Store, folder: Path) -> None:
    """Let SQLite read all of its file; other databases check their own.

    Raises:
        StateFolderRefused: When it is damaged.
    """
    if store.is_shared:
        return
    try:
        with store.engine.connect() as connection:
            answer = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
    except DatabaseError as error:
        answer = str(error.orig)
    if answer != "ok":
        raise StateFolderRefused(f"expected an intact database in {folder}, got one that is damaged; {RESTORE}")


def _noted(folder: Path) -> Mark:
    try:
        return Mark(**json.loads((folder / NAME).read_bytes()))
    except FileNotFoundError:  # before the first note, or deleted to go on with an older database
        return Mark(0, "")
    except (ValueError, TypeError):
        raise StateFolderRefused(
            f"expected {folder / NAME} as the aggregator wrote it, got something else; the disk may be failing: "
            "compare the newest rows of `hemofed-aggregator audit` with the last backup, then delete the file"
        ) from None


def _row(store: Store, number: int | None, *, chained: bool = True) -> Mark:
    """The row of that number, or the newest one; number 0 when there is none.

    Args:
        store: The database, perhaps of an older version: this runs before the tables are brought up to date.
        number: Of the row; None for the newest.
        chained: Whether the mark is the chain's head, where the row has one.
    """
    inspector = inspect(store.engine)
    if not inspector.has_table(Audit.__tablename__):
        return Mark(0, "")
    held = {column["name"] for column in inspector.get_columns(Audit.__tablename__)}
    rows = select(*(column for column in _ROWS if column.name in held)).order_by(_ROWS.id.desc()).limit(1)
    if number is not None:
        rows = rows.where(_ROWS.id == number)
    with store.engine.connect() as connection:
        row = connection.execute(rows).first()
    if row is None:
        return Mark(0, "")
    values = dict(row._mapping)
    digest = values.pop("digest", None)
    if chained and digest is not None:
        return Mark(row.id, digest.hex())
    content = json.dumps([str(value) for value in values.values()])
    return Mark(row.id, hashlib.sha256(content.encode()).hexdigest())
