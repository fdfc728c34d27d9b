"""The sites as the pages show them: each one's last report, and how old it is."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from federation.vocabulary import SiteState
from sqlalchemy.orm import Session

from aggregator.config import AggregatorSettings
from aggregator.context import AppContext
from aggregator.dashboard import wording
from aggregator.rounds.clock_steps import STEP_S
from aggregator.sites.freshness import stale_after_s
from aggregator.states import RunState, SiteStanding
from aggregator.store import run_rows, site_rows
from aggregator.store.site_lines import SiteLine

SET_BACK = "unknown, the clock was set back"
CANNOT_WRITE = "not known here, the aggregator cannot write"
RENEWAL_LATE_AT = 4  # less than one part of so many is left of a certificate's life, and it was not renewed


class SiteView(NamedTuple):  # a tuple: a first screen makes one for each site, and a dataclass costs thrice as much
    """A site and its last report; all fields of the report are None or empty before the first one."""

    name: str
    standing: SiteStanding
    tone_of_standing: str
    certificate_days: float | None  # until the newest certificate expires; negative afterwards
    certificate_tone: str = ""
    state: str = "never seen"
    tone: str = ""
    reasons: tuple[str, ...] = ()
    seen_at: datetime | None = None
    age_s: float | None = None
    stale: bool = False
    doubt: str = ""  # the reason why the last report does not tell how the site is; empty while it does
    progress_percent: int | None = None
    version: str = "–"
    model: bytes | None = None
    holds_newest: bool = False
    roster_behind: bool = False
    ledger_entries: int | None = None

    @property
    def group(self) -> str:
        """The heading that it stands under; empty for those that rounds may take, now or once they are approved."""
        return _GROUPS.get(self.standing, "")


_GROUPS = {
    SiteStanding.SUSPENDED: "No round takes these",
    SiteStanding.REVOKED: "Revoked or left",
    SiteStanding.LEFT: "Revoked or left",
}


@dataclass(frozen=True)
class SiteReader:
    """Makes views of sites by the facts that all of them share.

    Attributes:
        settings: Of the aggregator.
        now: Aware UTC.
        epoch: Of the newest roster.
        newest_model: Digest of the current run's newest model; empty without a run.
        run_paused: Whether the current run is paused.
        cannot_write: Whether reports are not kept now, so that an old one says nothing about its site.
    """

    settings: AggregatorSettings
    now: datetime
    epoch: int
    newest_model: bytes
    run_paused: bool
    cannot_write: bool

    @classmethod
    def of(cls, app: AppContext, session: Session, *, cannot_write: bool = False) -> "SiteReader":
        """Read the shared facts in a session of `Store.read`."""
        run = run_rows.current(session)
        return cls(
            settings=app.settings,
            now=app.clock(),
            epoch=site_rows.newest_epoch(session),
            newest_model=b"" if run is None else run_rows.newest_model(session, run.run_id).digest,
            run_paused=run is not None and run.state is RunState.PAUSED,
            cannot_write=cannot_write,
        )

    def view(self, line: SiteLine) -> SiteView:
        """Return a site as the pages show it."""
        standing = site_rows.standing_at(line.approved_at, line.suspended_at, line.revoked_at, line.left_at)
        tone = wording.TONES.get(standing, "warn")
        # A site that is out has no certificate to care for.
        cares = line.expires_at is not None and standing in (*site_rows.MEMBERS, SiteStanding.PENDING)
        days = (line.expires_at - self.now).total_seconds() / 86_400 if line.expires_at and cares else None
        tone_of_days = certificate_tone(days, self.settings.enrolment.certificate_days)
        # All columns of a report are there together.
        if line.seen_at is None or line.state is None:
            return SiteView(line.name, standing, tone, days, tone_of_days)
        age_s = (self.now - line.seen_at).total_seconds()
        stale_s = stale_after_s(self.settings.pacing, line.state, run_paused=self.run_paused)
        # A site that left is silent for good; its last report is not late.
        is_old = standing is not SiteStanding.LEFT and age_s > stale_s
        unknown = CANNOT_WRITE if self.cannot_write else "unknown"
        shows_progress = line.state in (SiteState.TRAINING, SiteState.PAUSED)
        return SiteView(
            name=line.name,
            standing=standing,
            tone_of_standing=tone,
            certificate_days=days,
            certificate_tone=tone_of_days,
            state=wording.SITE_STATES.get(line.state, line.state),
            tone=wording.SITE_TONES.get(line.state, ""),
            reasons=tuple(wording.REASONS.get(name, name) for name in (line.reasons or "").split(",") if name),
            seen_at=line.seen_at,
            age_s=age_s,
            stale=is_old,
            doubt=SET_BACK if age_s < -STEP_S else unknown if is_old else "",
            progress_percent=line.progress_percent if shows_progress else None,
            version=line.version or "–",
            model=line.model_digest or None,
            holds_newest=bool(self.newest_model) and line.model_digest == self.newest_model,
            roster_behind=(line.roster_epoch or 0) < self.epoch,
            ledger_entries=line.ledger_entries,
        )


def certificate_tone(days: float | None, lifetime_days: int) -> str:
    """Return the color of a certificate with so many days left: sites renew it when a third of its life is left."""
    if days is None:
        return ""
    if days < 0:
        return "bad"
    return "warn" if days < lifetime_days / RENEWAL_LATE_AT else ""
