"""Rows of alerts: the conditions that hold, and when people were told of each."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from aggregator.store.engine import columns_of, rows_changed
from aggregator.store.tables import RaisedAlert


def all_rows(session: Session) -> list[RaisedAlert]:
    """Return every alert, the oldest first."""
    return list(session.scalars(select(RaisedAlert).order_by(RaisedAlert.since, RaisedAlert.key)))


def counts(session: Session) -> Counter[str]:
    """Count the alerts by kind."""
    counted = select(RaisedAlert.kind, func.count()).group_by(RaisedAlert.kind)
    return Counter({kind: number for kind, number in columns_of(session, counted)})


def add(session: Session, rows: Sequence[RaisedAlert]) -> None:
    """Keep alerts; one that another process has kept stays as it is."""
    held = set(session.scalars(select(RaisedAlert.key)))
    session.add_all(row for row in rows if row.key not in held)
    session.flush()


def claim(session: Session, key: str, told_at: datetime | None, now: datetime) -> bool:
    """Say that this process tells of an alert now; False when another one has since `told_at` was read."""
    told = RaisedAlert.told_at.is_(None) if told_at is None else RaisedAlert.told_at == told_at
    return rows_changed(session, update(RaisedAlert).where(RaisedAlert.key == key, told).values(told_at=now)) == 1


def untold(session: Session, keys: Sequence[str]) -> None:
    """Take a claim back: no way took the message."""
    rows_changed(session, update(RaisedAlert).where(RaisedAlert.key.in_(keys)).values(told_at=None))


def remove(session: Session, key: str) -> bool:
    """Forget an alert that is over; False when another process has."""
    return rows_changed(session, delete(RaisedAlert).where(RaisedAlert.key == key)) == 1
