"""Rows of sessions at the dashboard.

A session is in force until its end, while its row is there, and while its person is, with the password of the log-in.
"""

import hashlib
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import bindparam, delete, select
from sqlalchemy.orm import Session

from aggregator.states import Role
from aggregator.store.engine import columns_of, rows_changed
from aggregator.store.tables import Administrator, DashboardSession


class Visitor(NamedTuple):
    """The person of a session in force, with the role of this moment."""

    token_hash: bytes
    name: str
    role: Role


def begin(session: Session, row: DashboardSession) -> None:
    """Keep a session, and forget those whose time is over."""
    rows_changed(session, delete(DashboardSession).where(DashboardSession.ends_at <= row.began_at))
    session.add(row)
    session.flush()


def visitor(session: Session, token_hash: bytes, now: datetime) -> Visitor | None:
    """Return the person of a session; None when it is not in force at `now`."""
    row = columns_of(session, _VISITOR, {"token": token_hash}).first()
    if row is None or row.ends_at <= now or mark_of(row.password_hash) != row.password_mark:
        return None
    return Visitor(token_hash, row.name, row.role)


def in_force(session: Session, now: datetime) -> list[DashboardSession]:
    """Return every session in force, by person, the newest first."""
    chosen = (
        select(DashboardSession, Administrator.password_hash)
        .join(Administrator, Administrator.name == DashboardSession.name)
        .where(DashboardSession.ends_at > now)
        .order_by(DashboardSession.name, DashboardSession.began_at.desc())
    )
    return [row for row, password_hash in session.execute(chosen) if mark_of(password_hash) == row.password_mark]


def end(session: Session, token_hash: bytes) -> bool:
    """End a session, and say whether there was one."""
    return rows_changed(session, delete(DashboardSession).where(DashboardSession.token_hash == token_hash)) == 1


def mark_of(password_hash: str) -> bytes:
    """Return what changes with the stored hash and reveals nothing of it."""
    return hashlib.sha256(b"session\0" + password_hash.encode()).digest()


# Built once: every page asks.
_VISITOR = (
    select(
        DashboardSession.name,
        DashboardSession.ends_at,
        DashboardSession.password_mark,
        Administrator.password_hash,
        Administrator.role,
    )
    .join(Administrator, Administrator.name == DashboardSession.name)
    .where(DashboardSession.token_hash == bindparam("token"))
)
