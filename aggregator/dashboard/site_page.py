"""One site as its page shows it: its enrolment, its keys, its newest rounds, and the audit's rows about it."""

from dataclasses import dataclass
from datetime import datetime

from federation.limits import is_site_name
from federation.roster import RosterEntry
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.dashboard import wording
from aggregator.dashboard.acts import Act, site_acts
from aggregator.dashboard.site_views import SiteReader, SiteView
from aggregator.errors import NotFound
from aggregator.sites.roster import is_listed
from aggregator.states import Role, SiteStanding
from aggregator.store import people, round_rows, site_lines, site_rows
from aggregator.store.tables import Audit

ROWS_SHOWN = 10  # of a site's seats and audit


@dataclass(frozen=True)
class SeatInRound:
    """A site's seat in a round of any run."""

    run_hex: str
    round_number: int
    words: str
    tone: str
    reason: str


@dataclass(frozen=True)
class SitePage:
    """A site that has joined, or a name that is only invited.

    Attributes:
        name: Of the site.
        view: The site and its last report; None while it has only an invitation.
        invited_until: The end of an invitation that no host has used; None without one.
        six_words: Those of the keys that await approval; empty when none do.
        awaits: Whether keys await approval: "site" for a new site, "keys" for new keys of an approved one, "" for none.
        joined_at: When the host joined.
        approved_at: When it was approved.
        keys: Digest of the keys that rosters list.
        in_roster: Whether the roster in force holds them.
        seats: Its newest seats, newest first.
        audit: The newest rows about it; empty for roles that read no audit.
    """

    name: str
    view: SiteView | None = None
    invited_until: datetime | None = None
    six_words: str = ""
    awaits: str = ""
    joined_at: datetime | None = None
    approved_at: datetime | None = None
    keys: str = ""
    in_roster: bool = False
    seats: tuple[SeatInRound, ...] = ()
    audit: tuple[Audit, ...] = ()

    @property
    def seen(self) -> str:
        """The state that a form about it has to have seen: a site that joined again has other keys."""
        standing = "invited" if self.view is None else self.view.standing
        return f"{standing} {self.keys[:16]} {self.awaits}".strip()

    @property
    def acts(self) -> tuple[Act, ...]:
        """The acts that fit it as it is."""
        standing = None if self.view is None else self.view.standing
        return site_acts(standing, awaits_approval=bool(self.awaits), invited=self.invited_until is not None)


def site_page(app: AppContext, session: Session, name: str, role: Role, *, cannot_write: bool = False) -> SitePage:
    """Read a site; see `SiteReader`.

    Raises:
        NotFound: When there is neither a site nor an invitation of that name.
    """
    if not is_site_name(name):
        raise NotFound(f"expected a site's name, got {name[:32]!r}")
    subject = f"site:{name}"
    trail = [] if role is Role.VIEWER else people.audit_trail(session, subject, ROWS_SHOWN, exact=True)
    audit = tuple(trail)
    invitation, site = site_rows.invitation(session, name), site_rows.find(session, name)
    is_unused = invitation is not None and invitation.used_by is None
    invited_until = invitation.expires_at if invitation is not None and is_unused else None
    line = site_lines.line(session, name)
    if site is None or line is None:
        if invitation is None:
            raise NotFound(f"expected a site or an invitation, got the name {name!r} that has neither")
        return SitePage(name, invited_until=invitation.expires_at, audit=audit)
    view = SiteReader.of(app, session, cannot_write=cannot_write).view(line)
    candidate = site_rows.candidate(session, name)
    awaits = "keys" if candidate is not None else "site" if view.standing is SiteStanding.PENDING else ""
    words = site.fingerprint if candidate is None else candidate.fingerprint
    return SitePage(
        name=name,
        view=view,
        invited_until=invited_until,
        six_words=words if awaits else "",
        awaits=awaits,
        joined_at=site.joined_at,
        approved_at=site.approved_at,
        keys=RosterEntry(site.name, site.signing_key, site.sealing_key).fingerprint.hex(),
        in_roster=is_listed(session, site),
        seats=tuple(
            SeatInRound(
                run_hex=row.run_id.hex(),
                round_number=row.number,
                words=wording.SEAT_STATES[seat.state],
                tone=wording.TONES.get(seat.state, ""),
                reason=wording.REASONS.get(seat.decline_reason or "", seat.decline_reason or ""),
            )
            for seat, row in round_rows.newest_seats(session, name, ROWS_SHOWN)
        ),
        audit=audit,
    )
