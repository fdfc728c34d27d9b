"""Sites with their last report and their certificate, as lines of a listing: sorted, searched and paged by SQL."""

from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import Select, case, func, or_, select
from sqlalchemy.orm import Session

from aggregator.store.engine import columns_of
from aggregator.store.tables import Candidate, Certificate, Invitation, Site, SiteReport


class SiteOrder(StrEnum):
    """The orders of a listing. Sites that no round takes, and those that are out, stand at its end in each."""

    NAME = "name"
    REPORTED = "reported"  # the longest silent first
    STATE = "state"
    CERTIFICATE = "certificate"  # the one that ends first
    VERSION = "version"  # the oldest first


class SiteLine(NamedTuple):
    """A site; all fields from `seen_at` on are None before its first report."""

    name: str
    approved_at: datetime | None
    suspended_at: datetime | None
    revoked_at: datetime | None
    left_at: datetime | None
    expires_at: datetime | None  # of the newest certificate
    seen_at: datetime | None
    state: str | None
    reasons: str | None
    progress_percent: int | None
    model_digest: bytes | None
    roster_epoch: int | None
    version: str | None
    ledger_entries: int | None


def lines(
    session: Session,
    search: str = "",
    order: SiteOrder = SiteOrder.NAME,
    limit: int | None = None,
    offset: int = 0,
) -> list[SiteLine]:
    """Return the sites that ever joined.

    Args:
        session: A session of `Store.read`.
        search: Only sites whose name holds this.
        order: Of the lines; equal ones by name.
        limit: At most so many; None for all.
        offset: So many are left out before.
    """
    # A digit for each group: the order of `dashboard.site_views`.
    group = case((or_(Site.revoked_at.is_not(None), Site.left_at.is_not(None)), 2), (Site.suspended_at.is_(None), 0))
    by: dict[SiteOrder, tuple[Any, ...]] = {
        SiteOrder.NAME: (),
        SiteOrder.REPORTED: (SiteReport.seen_at.is_not(None), SiteReport.seen_at),
        SiteOrder.STATE: (SiteReport.state.is_(None), SiteReport.state),
        SiteOrder.CERTIFICATE: (_EXPIRIES.c.expires_at.is_(None), _EXPIRIES.c.expires_at),
        SiteOrder.VERSION: (SiteReport.version.is_(None), SiteReport.version),
    }
    chosen = _named(_LINES, search).order_by(func.coalesce(group, 1), *by[order], Site.name)
    if limit is not None:
        chosen = chosen.limit(limit).offset(offset)
    return [SiteLine(*row) for row in columns_of(session, chosen)]


def line(session: Session, name: str) -> SiteLine | None:
    """Return one site; None when it never joined."""
    row = columns_of(session, _LINES.where(Site.name == name)).first()
    return None if row is None else SiteLine(*row)


def count(session: Session, search: str = "") -> int:
    """Count the sites of `lines`."""
    return session.scalar(_named(select(func.count()).select_from(Site), search)) or 0


def awaiting_approval(session: Session) -> list[str]:
    """Return the sites whose six words are still to be compared, new ones and those with new keys, by name."""
    is_pending = Site.approved_at.is_(None) & Site.revoked_at.is_(None) & Site.left_at.is_(None)
    with_new_keys = select(Candidate.site)
    return sorted(session.scalars(select(Site.name).where(is_pending | Site.name.in_(with_new_keys))))


def invited(session: Session) -> list[tuple[str, datetime]]:
    """Return the names that are invited and have not joined, each with the end of its invitation."""
    not_joined = Invitation.site.not_in(select(Site.name))
    rows = session.execute(select(Invitation.site, Invitation.expires_at).where(not_joined).order_by(Invitation.site))
    return [(name, expires_at) for name, expires_at in rows]


def _named(statement: Select[*tuple[Any, ...]], search: str) -> Select[*tuple[Any, ...]]:
    # autoescape: an underscore is a letter, not SQL's wildcard.
    return statement.where(Site.name.contains(search, autoescape=True)) if search else statement


# Built once, and columns without objects: a first screen reads them for every site.
_EXPIRIES = (
    select(Certificate.site, func.max(Certificate.expires_at).label("expires_at"))
    .group_by(Certificate.site)
    .subquery("expiries")
)
_LINES = (
    select(
        Site.name,
        Site.approved_at,
        Site.suspended_at,
        Site.revoked_at,
        Site.left_at,
        _EXPIRIES.c.expires_at,
        SiteReport.seen_at,
        SiteReport.state,
        SiteReport.reasons,
        SiteReport.progress_percent,
        SiteReport.model_digest,
        SiteReport.roster_epoch,
        SiteReport.version,
        SiteReport.ledger_entries,
    )
    .outerjoin(SiteReport, SiteReport.site == Site.name)
    .outerjoin(_EXPIRIES, _EXPIRIES.c.site == Site.name)
)
