"""The rosters in the database: any epoch, parsed, and the sites that may take part under the newest."""

from functools import lru_cache

from federation.roster import Roster
from federation.v1.enrolment_pb2 import SignedRoster
from sqlalchemy.orm import Session

from aggregator.store import site_rows

ROSTERS_KEPT = 2  # the one in force and the one a round was frozen with


def roster_of(session: Session, epoch: int) -> Roster:
    """Parse the roster of an epoch. Its signature is not checked: this aggregator made and stored it.

    Raises:
        NotFound: when there is no such epoch.
    """
    return _parsed(site_rows.roster_at(session, epoch).signed)


def eligible(session: Session) -> list[str]:
    """Return the sites that may take part in a round, by name: active, and in the newest signed roster."""
    epoch = site_rows.newest_epoch(session)
    if epoch == 0:
        return []
    listed = roster_of(session, epoch).signing_keys
    return [site.name for site in site_rows.active(session) if site.name in listed]


@lru_cache(ROSTERS_KEPT)
def _parsed(signed: bytes) -> Roster:
    return Roster.from_bytes(SignedRoster.FromString(signed).roster)
