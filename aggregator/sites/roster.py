"""The rosters in the database: the one in force, the change that awaits the custodian's signature, the next one.

The aggregator lists sites and the custodian decides: a site is in the roster when a signed one that holds its keys has
been imported. A site that was revoked or has left is out of every round at once, whatever roster is in force.
"""

from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.roster import ROSTER_WARNING_DAYS, Roster, RosterEntry, custodian_after, custodian_of, verify_roster
from federation.v1.enrolment_pb2 import SignedRoster
from federation.wire import parse, serialize
from sqlalchemy.orm import Session

from aggregator.errors import WrongState
from aggregator.signing_requests import RosterChange, RosterRequest
from aggregator.sites.authority import Authority
from aggregator.store import OPERATOR, Change, Store, record, site_rows
from aggregator.store.tables import RosterEpoch, Site

ROSTERS_KEPT = 2  # the one in force and the one a round was frozen with


def roster_of(session: Session, epoch: int) -> Roster:
    """Parse the roster of an epoch. Its signature was verified when it was imported.

    Raises:
        NotFound: When there is no such epoch.
    """
    return _parsed(site_rows.signed_roster(session, epoch))


def in_force(session: Session) -> Roster | None:
    """Return the newest roster; None before the first."""
    row = site_rows.newest_roster(session)
    return None if row is None else _parsed(row.signed)


def eligible(session: Session) -> list[str]:
    """Return the sites that may take part in a round, by name.

    They are active, not suspended, and in the newest roster with their keys.
    """
    row = site_rows.newest_roster(session)
    if row is None:
        return []
    # With its keys: a site that joined anew has others, and waits for the custodian's next signature.
    listed = _keys(row.signed)
    return [
        site.name
        for site in site_rows.active_keys(session)
        if site.suspended_at is None and listed.get(site.name) == (site.signing_key, site.sealing_key)
    ]


def is_listed(session: Session, site: Site) -> bool:
    """Whether the newest roster holds this site's own keys."""
    roster = in_force(session)
    return roster is not None and _entry(site) in roster.entries


def awaited_change(session: Session) -> RosterChange:
    """Compare the roster in force with the active sites: what the next signature has to change."""
    roster = in_force(session)
    return RosterChange.between(() if roster is None else roster.entries, _active(session))


def request_roster(session: Session) -> RosterRequest:
    """Make the request for a roster of all active sites, also when only its dates would be new."""
    row = site_rows.newest_roster(session)
    proposed = Roster(1 if row is None else row.epoch + 1, _active(session))
    return RosterRequest(proposed=proposed.to_bytes(), in_force=b"" if row is None else row.signed)


def import_roster(
    store: Store, authority: Authority, signed: SignedRoster, now: datetime, actor: str = OPERATOR
) -> RosterChange:
    """Put a roster into force that the custodian has signed.

    Raises:
        BadSignature: When the custodian's newest key did not sign it.
        Malformed, RosterRefused: When it is no roster, or one of an older key or epoch.
        WrongState: When it is in force already, or has ended.
    """
    with store.write() as session:
        before = in_force(session)
        key = custodian_of(signed, authority.custodian, held=custodian_in_force(session, authority))
        roster = verify_roster(signed, key, 0 if before is None else before.epoch)
        if before is not None and roster.epoch == before.epoch:
            raise WrongState(f"a roster of epoch {roster.epoch} is in force already; export a new request")
        if roster.has_expired(now):
            raise WrongState(f"the roster of epoch {roster.epoch} has ended; export a new request and sign it")
        changes = RosterChange.between(() if before is None else before.entries, roster.entries)
        site_rows.add_roster(session, RosterEpoch(epoch=roster.epoch, signed=serialize(signed), created_at=now))
        change = Change(now, actor, f"roster:{roster.epoch}", f"signed by the custodian: {changes}")
        record(session, change, None if before is None else f"epoch {before.epoch}", f"epoch {roster.epoch}")
    return changes


def custodian_in_force(session: Session, authority: Authority) -> Ed25519PublicKey:
    """Return the custodian's newest key: that of the certificate, or its successor by the newest roster."""
    row = site_rows.newest_roster(session)
    if row is None:
        return authority.custodian
    return custodian_after(parse(SignedRoster, row.signed).successions, authority.custodian)


def roster_notices(session: Session, folder: Path, now: datetime) -> list[str]:
    """Say what the coordinator has to do about the roster: one sentence each, none when nothing is due.

    Args:
        session: Of the store.
        folder: The state folder.
        now: Aware UTC.
    """
    notices = []
    if (folder / "ca" / "custodian.key").exists():
        notices.append("The custodian's key lies on this machine: hand it over with `hemofed-custodian take-over`.")
    if change := awaited_change(session):
        notices.append(f"A roster awaits the custodian's signature; it {change}. See `roster export`.")
    roster = in_force(session)
    if roster is None or roster.expires_at is None:
        return notices
    if roster.has_expired(now):
        notices.append(f"The roster ended on {roster.expires_at:%Y-%m-%d}: no site takes part. See `roster export`.")
    elif roster.expires_at - now < timedelta(days=ROSTER_WARNING_DAYS):
        left = (roster.expires_at - now).days
        notices.append(f"The roster ends on {roster.expires_at:%Y-%m-%d}, in {left} days. See `roster export`.")
    return notices


def _active(session: Session) -> tuple[RosterEntry, ...]:
    return tuple(_entry(site) for site in site_rows.active_keys(session))


def _entry(site: Site | site_rows.ActiveSite) -> RosterEntry:
    return RosterEntry(site.name, site.signing_key, site.sealing_key)


@lru_cache(ROSTERS_KEPT)
def _parsed(signed: bytes) -> Roster:
    return Roster.from_bytes(SignedRoster.FromString(signed).roster)


@lru_cache(ROSTERS_KEPT)
def _keys(signed: bytes) -> dict[str, tuple[bytes, bytes]]:
    return {entry.site: (entry.signing_key, entry.sealing_key) for entry in _parsed(signed).entries}
