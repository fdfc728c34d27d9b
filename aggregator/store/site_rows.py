"""Sites, their invitations, certificates, challenges, reports, and the rosters made of them.

Functions of one statement each; `enrolment` composes them into transactions. A row that a race could change twice is
changed by `guarded`, so the loser gets LostRace.
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Update, bindparam, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from aggregator.errors import LostRace, NotFound
from aggregator.states import SiteStanding
from aggregator.store.engine import Change, guarded, rows_changed
from aggregator.store.tables import Certificate, Challenge, Invitation, RosterEpoch, Site, SiteReport

PENDING, APPROVED = SiteStanding.PENDING, SiteStanding.APPROVED
REVOKED, LEFT = SiteStanding.REVOKED, SiteStanding.LEFT


def standing(site: Site) -> SiteStanding:
    """What the times of the row amount to."""
    if site.revoked_at is not None:
        return REVOKED
    if site.left_at is not None:
        return LEFT
    return PENDING if site.approved_at is None else APPROVED


def find(session: Session, name: str) -> Site | None:
    return session.get(Site, name)


def get(session: Session, name: str) -> Site:
    """Raises: NotFound."""
    site = find(session, name)
    if site is None:
        raise NotFound(f"no site {name!r} has joined; `site list` shows those that have")
    return site


def everyone(session: Session) -> list[Site]:
    """All that ever joined, by name."""
    return list(session.scalars(select(Site).order_by(Site.name)))


def active(session: Session) -> list[Site]:
    """Approved, and neither revoked nor gone, by name: those a roster holds and a round may invite."""
    return list(session.scalars(_ACTIVE))


def invitation(session: Session, site: str) -> Invitation | None:
    return session.get(Invitation, site)


def invitations(session: Session) -> list[Invitation]:
    return list(session.scalars(select(Invitation).order_by(Invitation.site)))


def put_invitation(session: Session, row: Invitation) -> None:
    """A new invitation replaces an older one of that name, used or not."""
    session.merge(row)


def withdraw_invitation(session: Session, site: str) -> bool:
    """Whether there was one."""
    return rows_changed(session, delete(Invitation).where(Invitation.site == site)) == 1


def claim_invitation(session: Session, site: str, secret_hash: bytes, request_digest: bytes) -> bool:
    """Bind an unused invitation to one JoinRequest; False when another request was first."""
    unused = Invitation.site == site, Invitation.secret_hash == secret_hash, Invitation.used_by.is_(None)
    return rows_changed(session, update(Invitation).where(*unused).values(used_by=request_digest)) == 1


def put_site(session: Session, row: Site) -> None:
    """A site that joins again, after it was out or with a second invitation, replaces its row."""
    session.merge(row)


def approve(session: Session, name: str, fingerprint: str, change: Change) -> None:
    """Raises: LostRace when the site is not pending any more, or joined again with other keys since they were read."""
    pending = (
        Site.name == name,
        Site.fingerprint == fingerprint,
        Site.approved_at.is_(None),
        Site.revoked_at.is_(None),
    )
    guarded(session, update(Site).where(*pending).values(approved_at=change.at), change, PENDING, APPROVED)


def revoke(session: Session, name: str, before: str, change: Change) -> None:
    """Raises: LostRace when it is out already."""
    guarded(session, _still_in(name).values(revoked_at=change.at), change, before, REVOKED)


def leave(session: Session, name: str, change: Change) -> None:
    """Raises: LostRace when it is not approved, or out already."""
    approved = _still_in(name).where(Site.approved_at.is_not(None))
    guarded(session, approved.values(left_at=change.at), change, APPROVED, LEFT)


def spend_recovery(session: Session, name: str, change: Change) -> None:
    """Raises: LostRace when none is left."""
    left = Site.name == name, Site.recoveries_left > 0
    spent = update(Site).where(*left).values(recoveries_left=Site.recoveries_left - 1)
    guarded(session, spent, change, None, "recovered")


def add_certificate(session: Session, row: Certificate) -> None:
    """The same certificate twice is one row: a call repeated after a lost answer."""
    session.merge(row)


def certificate_issued_at(session: Session, site: str, issued_at: datetime) -> Certificate | None:
    """The one that is good the longest, should the site have been out and in again within that second."""
    chosen = select(Certificate).where(Certificate.site == site, Certificate.issued_at == issued_at)
    return session.scalars(chosen.order_by(Certificate.expires_at.desc()).limit(1)).first()


def certificate_expiry(session: Session, site: str) -> datetime | None:
    """When the site's newest certificate expires; None before it has one."""
    return session.scalar(select(func.max(Certificate.expires_at)).where(Certificate.site == site))


def end_certificates(session: Session, site: str, now: datetime) -> None:
    """No certificate of the site is accepted from `now` on."""
    session.execute(
        update(Certificate).where(Certificate.site == site, Certificate.expires_at > now).values(expires_at=now)
    )


class Holder(NamedTuple):
    """Whom a certificate we issued was issued to, until when it is good, and how that site stands."""

    site: str
    expires_at: datetime
    approved_at: datetime | None
    revoked_at: datetime | None
    left_at: datetime | None


def holder(session: Session, fingerprint: bytes) -> Holder | None:
    """By the SHA-256 of the certificate's DER."""
    row = session.execute(_HOLDER, {"fingerprint": fingerprint}).first()
    return None if row is None else Holder(*row)


# Asked at every call or look: made once, because making a statement costs as much as carrying it out.
_IN = Site.revoked_at.is_(None), Site.left_at.is_(None)
_ACTIVE = select(Site).where(Site.approved_at.is_not(None), *_IN).order_by(Site.name)
_NEWEST_EPOCH = select(func.max(RosterEpoch.epoch))
_HOLDER = (
    select(Site.name, Certificate.expires_at, Site.approved_at, Site.revoked_at, Site.left_at)
    .join(Certificate, Certificate.site == Site.name)
    .where(Certificate.fingerprint == bindparam("fingerprint"))
)


def add_challenge(session: Session, row: Challenge, now: datetime, outstanding_max: int) -> None:
    """Add a challenge; the site's expired ones, and the soonest to expire beyond `outstanding_max`, make room."""
    session.execute(delete(Challenge).where(Challenge.expires_at <= now))
    kept = select(Challenge.nonce).where(Challenge.site == row.site).order_by(Challenge.expires_at.desc())
    newest = list(session.scalars(kept.limit(outstanding_max - 1)))
    session.execute(delete(Challenge).where(Challenge.site == row.site, Challenge.nonce.not_in(newest)))
    session.add(row)


def challenge(session: Session, nonce: bytes) -> Challenge | None:
    return session.get(Challenge, nonce)


def use_challenge(session: Session, nonce: bytes) -> bool:
    """Delete it; False when another call was first."""
    return rows_changed(session, delete(Challenge).where(Challenge.nonce == nonce)) == 1


def drop_challenges(session: Session, site: str) -> None:
    session.execute(delete(Challenge).where(Challenge.site == site))


def newest_roster(session: Session) -> RosterEpoch | None:
    return session.scalars(select(RosterEpoch).order_by(RosterEpoch.epoch.desc()).limit(1)).first()


def newest_epoch(session: Session) -> int:
    """0 before the first roster."""
    return session.scalar(_NEWEST_EPOCH) or 0


def roster_at(session: Session, epoch: int) -> RosterEpoch:
    """The roster of one epoch; rounds keep the epoch they froze. Raises: NotFound."""
    row = session.get(RosterEpoch, epoch)
    if row is None:
        raise NotFound(f"no roster of epoch {epoch}")
    return row


def add_roster(session: Session, row: RosterEpoch) -> None:
    """Raises: LostRace when another process made that epoch first."""
    session.add(row)
    try:
        session.flush()
    except IntegrityError:
        raise LostRace(f"roster epoch {row.epoch} was made by another process; do it again") from None


def put_report(session: Session, row: SiteReport) -> None:
    """What a site said of itself; replaces what it said before."""
    session.merge(row)


def report(session: Session, site: str) -> SiteReport | None:
    return session.get(SiteReport, site)


def reports(session: Session) -> list[SiteReport]:
    return list(session.scalars(select(SiteReport).order_by(SiteReport.site)))


def _still_in(name: str) -> Update:
    return update(Site).where(Site.name == name, *_IN)
