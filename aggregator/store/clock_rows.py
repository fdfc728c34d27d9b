"""Rows that tell of the host's clock: times that are still to come, and the steps that drivers have followed."""

from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from aggregator.store.tables import Audit, SiteReport

ROWS_READ = 2000  # the newest of the audit; a page must not read a trail of years


def newest_time(session: Session) -> datetime | None:
    """Return the latest time in the newest rows of the audit and in the sites' reports; None without any row."""
    of_audit = select(Audit.at).where(_is_new()).order_by(Audit.at.desc()).limit(1)
    of_reports = select(SiteReport.seen_at).order_by(SiteReport.seen_at.desc()).limit(1)
    times = (session.scalar(of_audit), session.scalar(of_reports))
    return max((at for at in times if at is not None), default=None)


def newest_by(session: Session, actor: str) -> Audit | None:
    """Return the last of the audit's newest rows that has this actor, if any."""
    return session.scalars(
        select(Audit).where(_is_new(), Audit.actor == actor).order_by(Audit.id.desc()).limit(1)
    ).first()


def _is_new() -> ColumnElement[bool]:
    return Audit.id > select(func.max(Audit.id) - ROWS_READ).scalar_subquery()
