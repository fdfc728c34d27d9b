"""Rows of sites, their invitations, certificates, challenges and reports, and of the rosters made of them.

Functions of one statement each; `sites.enrolment` composes them into transactions. `guarded` changes a row that two
processes could change at once, so the later one gets LostRace.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Update, bindparam, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from aggregator.errors import LostRace, NotFound
from aggregator.states import SiteStanding
from aggregator.store.engine import Change, columns_of, guarded, rows_changed
from aggregator.store.tables import Candidate, Certificate, Challenge, Invitation, RosterEpoch, Site, SiteReport

PENDING, APPROVED = SiteStanding.PENDING, SiteStanding.APPROVED
SUSPENDED, REVOKED, LEFT = SiteStanding.SUSPENDED, SiteStanding.REVOKED, SiteStanding.LEFT
MEMBERS = (APPROVED, SUSPENDED)  # their keys are in force


def standing(site: Site) -> SiteStanding:
    """Derive the standing of a site from the times in its row."""
    return standing_at(site.approved_at, site.suspended_at, site.revoked_at, site.left_at)


def standing_at(
    approved_at: datetime | None, suspended_at: datetime | None, revoked_at: datetime | None, left_at: datetime | None
) -> SiteStanding:
    """Derive the standing of a site from those times."""
    if revoked_at is not None:
        return REVOKED
    if left_at is not None:
        return LEFT
    if approved_at is None:
        return PENDING
    return APPROVED if suspended_at is None else SUSPENDED


def find(session: Session, name: str) -> Site | None:
    """Return the site of that name; None when it never joined."""
    return session.get(Site, name)


def get(session: Session, name: str) -> Site:
    """Return the site of that name.

    Raises:
        NotFound: When it never joined.
    """
    site = find(session, name)
    if site is None:
        raise NotFound(f"no site {name!r} has joined; `site list` shows those that have")
    return site


def all_sites(session: Session) -> list[Site]:
    """Return every site that ever joined, by name."""
    return list(session.scalars(select(Site).order_by(Site.name)))


def active(session: Session) -> list[Site]:
    """Return the sites that are approved, not revoked and have not left, by name: those of a roster."""
    return list(session.scalars(_ACTIVE))


class ActiveSite(NamedTuple):
    """The keys of an active site, and whether rounds may take it."""

    name: str
    signing_key: bytes
    sealing_key: bytes
    suspended_at: datetime | None


def active_keys(session: Session) -> list[ActiveSite]:
    """Return the same sites without their other columns: drivers ask twice a second."""
    return [ActiveSite(*row) for row in columns_of(session, _ACTIVE_KEYS)]


def count_active(session: Session) -> int:
    """Count those sites."""
    return session.scalar(select(func.count()).select_from(_ACTIVE.subquery())) or 0


def invitation(session: Session, site: str) -> Invitation | None:
    """Return the invitation of that name, used or not."""
    return session.get(Invitation, site)


def invitations(session: Session) -> list[Invitation]:
    """Return every invitation, used or not, by name."""
    return list(session.scalars(select(Invitation).order_by(Invitation.site)))


def put_invitation(session: Session, row: Invitation) -> None:
    """Store an invitation; it replaces an older one of that name, used or not."""
    session.merge(row)


def withdraw_invitation(session: Session, site: str) -> bool:
    """Delete an invitation, and say whether there was one."""
    return rows_changed(session, delete(Invitation).where(Invitation.site == site)) == 1


def claim_invitation(session: Session, site: str, secret_hash: bytes, request_digest: bytes) -> bool:
    """Bind an unused invitation to one JoinRequest; False when another request was first."""
    # `used_by` is part of the guard: of two hosts with one token, the later one changes no row.
    unused = Invitation.site == site, Invitation.secret_hash == secret_hash, Invitation.used_by.is_(None)
    return rows_changed(session, update(Invitation).where(*unused).values(used_by=request_digest)) == 1


def put_site(session: Session, row: Site) -> None:
    """Store a site; it replaces the row of a site that joined under that name before, and drops that one's report."""
    session.merge(row)
    # Another host has another ledger, and must not be told that it was longer.
    session.execute(delete(SiteReport).where(SiteReport.site == row.name))


def approve(session: Session, name: str, fingerprint: str, change: Change) -> None:
    """Approve a pending site whose six words are `fingerprint`.

    Raises:
        LostRace: When the site is no longer pending, or joined again with other keys since its words were read.
    """
    # The words are part of the guard: the coordinator approves the keys that were read out on the telephone, no others.
    pending = (
        Site.name == name,
        Site.fingerprint == fingerprint,
        Site.approved_at.is_(None),
        Site.revoked_at.is_(None),
    )
    guarded(session, update(Site).where(*pending).values(approved_at=change.at), change, PENDING, APPROVED)


def revoke(session: Session, name: str, before: str, change: Change) -> None:
    """Revoke a site that stands at `before`.

    Raises:
        LostRace: When it was revoked or left in between.
    """
    guarded(session, _still_in(name).values(revoked_at=change.at), change, before, REVOKED)


def suspend(session: Session, name: str, change: Change) -> None:
    """Let no new round take an approved site.

    Raises:
        LostRace: When it is suspended already, or is not approved any more.
    """
    approved = _still_in(name).where(Site.approved_at.is_not(None), Site.suspended_at.is_(None))
    guarded(session, approved.values(suspended_at=change.at), change, APPROVED, SUSPENDED)


def resume(session: Session, name: str, change: Change) -> None:
    """Let rounds take a suspended site again.

    Raises:
        LostRace: When it is not suspended any more.
    """
    suspended = _still_in(name).where(Site.suspended_at.is_not(None))
    guarded(session, suspended.values(suspended_at=None), change, SUSPENDED, APPROVED)


def candidate(session: Session, name: str) -> Candidate | None:
    """Return the new keys that wait for the approval of this site, if any."""
    return session.get(Candidate, name)


def candidates(session: Session) -> list[Candidate]:
    """Return all new keys that wait for approval, by site."""
    return list(session.scalars(select(Candidate).order_by(Candidate.site)))


def put_candidate(session: Session, row: Candidate) -> None:
    """Keep new keys until they are approved; they replace others that waited."""
    session.merge(row)


def withdraw_candidate(session: Session, name: str) -> bool:
    """Forget new keys that wait, and say whether there were any."""
    return rows_changed(session, delete(Candidate).where(Candidate.site == name)) == 1


def rekey(session: Session, row: Candidate, recoveries: int, change: Change) -> None:
    """Put a site's new keys in the place of its old ones. The report of its old host is forgotten.

    Raises:
        LostRace: When other keys wait by now, or the site is out.
    """
    waiting = Candidate.site == row.site, Candidate.fingerprint == row.fingerprint
    if rows_changed(session, delete(Candidate).where(*waiting)) != 1:
        raise LostRace(f"site:{row.site}: other keys than those wait for approval by now")
    keys = {"csr_der": row.csr_der, "signing_key": row.signing_key, "sealing_key": row.sealing_key}
    times = {"joined_at": row.joined_at, "approved_at": change.at, "recoveries_left": recoveries}
    approved = _still_in(row.site).where(Site.approved_at.is_not(None))
    guarded(session, approved.values(keys | times | {"fingerprint": row.fingerprint}), change, None, "rekeyed")
    # Another host has another ledger, and must not be told that it was longer.
    session.execute(delete(SiteReport).where(SiteReport.site == row.site))


def leave(session: Session, name: str, before: str, change: Change) -> None:
    """Let a site that stands at `before` leave for good.

    Raises:
        LostRace: When it is not approved, was revoked or left already.
    """
    approved = _still_in(name).where(Site.approved_at.is_not(None))
    guarded(session, approved.values(left_at=change.at), change, before, LEFT)


def spend_recovery(session: Session, name: str, change: Change) -> None:
    """Take one from the recoveries that a site has left.

    Raises:
        LostRace: When none is left.
    """
    # The count is part of the guard: two recoveries at once cannot both spend the last one.
    any_left = Site.name == name, Site.recoveries_left > 0
    statement = update(Site).where(*any_left).values(recoveries_left=Site.recoveries_left - 1)
    guarded(session, statement, change, None, "recovered")


def add_certificate(session: Session, row: Certificate) -> None:
    """Store a certificate; a call that is repeated after a lost answer stores the same row."""
    session.merge(row)


def certificate_issued_at(session: Session, site: str, issued_at: datetime) -> Certificate | None:
    """Return the site's certificate of that second; the one that expires last, when the site joined twice in it."""
    # Revoked and approved anew within one second, a site has two rows; those of the first time have expired.
    chosen = select(Certificate).where(Certificate.site == site, Certificate.issued_at == issued_at)
    return session.scalars(chosen.order_by(Certificate.expires_at.desc()).limit(1)).first()


def certificate_expiries(session: Session) -> dict[str, datetime]:
    """Return by site when its newest certificate expires, of every site that has one."""
    newest = select(Certificate.site, func.max(Certificate.expires_at)).group_by(Certificate.site)
    return {site: expires_at for site, expires_at in session.execute(newest)}


def end_certificates(session: Session, site: str, now: datetime) -> None:
    """Let every certificate of the site expire at `now`."""
    # Expired and not deleted: the next call is still found to be of this site, and learns that it was revoked or left.
    session.execute(
        update(Certificate).where(Certificate.site == site, Certificate.expires_at > now).values(expires_at=now)
    )


class Holder(NamedTuple):
    """The site of an issued certificate, when the certificate expires, and the times of that site's standing."""

    site: str
    expires_at: datetime
    approved_at: datetime | None
    revoked_at: datetime | None
    left_at: datetime | None


def holder(session: Session, fingerprint: bytes) -> Holder | None:
    """Return the holder of a certificate, by the SHA-256 of its DER; None for one that this CA did not issue."""
    row = columns_of(session, _HOLDER, {"fingerprint": fingerprint}).first()
    return None if row is None else Holder(*row)


# `_IN` also guards revoke and leave: of the two at once, the later one changes no row.
# Run at every call or look. Built once: building a statement costs as much as running it.
_IN = Site.revoked_at.is_(None), Site.left_at.is_(None)
_ACTIVE = select(Site).where(Site.approved_at.is_not(None), *_IN).order_by(Site.name)
_SEEN = select(SiteReport.site, SiteReport.seen_at)
_ACTIVE_KEYS = (
    select(Site.name, Site.signing_key, Site.sealing_key, Site.suspended_at)
    .where(Site.approved_at.is_not(None), *_IN)
    .order_by(Site.name)
)
_NEWEST_EPOCH = select(func.max(RosterEpoch.epoch))
_SIGNED_ROSTER = select(RosterEpoch.signed).where(RosterEpoch.epoch == bindparam("epoch"))
_NEWEST_ROSTER = select(RosterEpoch).order_by(RosterEpoch.epoch.desc()).limit(1)
_HOLDER = (
    select(Site.name, Certificate.expires_at, Site.approved_at, Site.revoked_at, Site.left_at)
    .join(Certificate, Certificate.site == Site.name)
    .where(Certificate.fingerprint == bindparam("fingerprint"))
)


def use_challenge(session: Session, row: Challenge, now: datetime) -> None:
    """Note that a challenge was answered, and forget those that have expired since they were.

    Raises:
        LostRace: When it was answered before.
    """
    session.execute(delete(Challenge).where(Challenge.expires_at <= now))
    session.add(row)
    # The nonce is the primary key, so the database itself decides which of two answers was first.
    try:
        session.flush()
    except IntegrityError:
        raise LostRace("this challenge was answered before") from None


def newest_roster(session: Session) -> RosterEpoch | None:
    """Return the roster in force; None before the first site is approved."""
    return session.scalars(_NEWEST_ROSTER).first()


def newest_epoch(session: Session) -> int:
    """Return the epoch of the roster in force; 0 before the first."""
    return session.scalar(_NEWEST_EPOCH) or 0


def signed_roster(session: Session, epoch: int) -> bytes:
    """Return the serialized SignedRoster of one epoch; a round keeps the epoch it was frozen with.

    Raises:
        NotFound: When there is no such epoch.
    """
    signed = columns_of(session, _SIGNED_ROSTER, {"epoch": epoch}).scalar()
    if signed is None:
        raise NotFound(f"no roster of epoch {epoch}")
    return signed


def add_roster(session: Session, row: RosterEpoch) -> None:
    """Add the roster of the next epoch.

    Raises:
        LostRace: When another process made that epoch first.
    """
    session.add(row)
    # The epoch is the primary key, so the database itself decides which of two processes was first.
    try:
        session.flush()
    except IntegrityError:
        raise LostRace(f"roster epoch {row.epoch} was made by another process; do it again") from None


def put_report(session: Session, row: SiteReport) -> None:
    """Store a site's report; it replaces the one before."""
    session.merge(row)


def report(session: Session, site: str) -> SiteReport | None:
    """Return the last stored report of a site."""
    return session.get(SiteReport, site)


def reports(session: Session) -> list[SiteReport]:
    """Return the last stored report of every site, by name."""
    return list(session.scalars(select(SiteReport).order_by(SiteReport.site)))


def seen_times(session: Session) -> dict[str, datetime]:
    """Return by site when its last stored report came, of every site that has reported."""
    return {site: seen_at for site, seen_at in columns_of(session, _SEEN)}


def move_reports(session: Session, step: timedelta) -> None:
    """Move the times of all stored reports by `step`, because the clock was."""
    for row in reports(session):
        row.seen_at += step


def _still_in(name: str) -> Update:
    return update(Site).where(Site.name == name, *_IN)
