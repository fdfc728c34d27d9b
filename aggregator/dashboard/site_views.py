"""The sites as the pages show them: each one's last report, and how old it is."""

from dataclasses import dataclass
from datetime import datetime

from federation.vocabulary import SiteState
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.dashboard import wording
from aggregator.rounds.clock_steps import STEP_S
from aggregator.sites.freshness import stale_after_s
from aggregator.states import RunState, SiteStanding
from aggregator.store import run_rows, site_rows

SET_BACK = "unknown, the clock was set back"
CANNOT_WRITE = "not known here, the aggregator cannot write"
RENEWAL_LATE_AT = 4  # less than one part of so many is left of a certificate's life, and it was not renewed


@dataclass(frozen=True)
class SiteView:
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
_ORDER = ("", "No round takes these", "Revoked or left")


def site_views(app: AppContext, session: Session, *, cannot_write: bool = False) -> tuple[SiteView, ...]:
    """Read every site that ever joined: those that rounds may take, the suspended, those that are out; each by name.

    Args:
        app: The aggregator.
        session: A session of `Store.read`.
        cannot_write: Whether reports are not kept now, so that an old one says nothing about its site.
    """
    now, epoch = app.clock(), site_rows.newest_epoch(session)
    reports = {row.site: row for row in site_rows.reports(session)}
    run = run_rows.current(session)
    newest_model = run_rows.newest_model(session, run.run_id).digest if run is not None else b""
    paused = run is not None and run.state is RunState.PAUSED
    expiries = site_rows.certificate_expiries(session)
    views = []
    for site in site_rows.all_sites(session):
        standing = site_rows.standing(site)
        expires_at = expiries.get(site.name)
        tone = wording.TONES.get(standing, "warn")
        days = None if expires_at is None else (expires_at - now).total_seconds() / 86_400
        # A site that is out has no certificate to care for.
        days = days if standing in (*site_rows.MEMBERS, SiteStanding.PENDING) else None
        tone_of_days = certificate_tone(days, app.settings.enrolment.certificate_days)
        report = reports.get(site.name)
        if report is None:
            views.append(SiteView(site.name, standing, tone, days, tone_of_days))
            continue
        age_s = (now - report.seen_at).total_seconds()
        stale_s = stale_after_s(app.settings.pacing, report.state, run_paused=paused)
        # A site that left is silent for good; its last report is not late.
        is_old = standing is not SiteStanding.LEFT and age_s > stale_s
        ahead = age_s < -STEP_S
        doubt = SET_BACK if ahead else CANNOT_WRITE if is_old and cannot_write else "unknown" if is_old else ""
        shows_progress = report.state in (SiteState.TRAINING, SiteState.PAUSED)
        views.append(
            SiteView(
                name=site.name,
                standing=standing,
                tone_of_standing=tone,
                certificate_days=days,
                certificate_tone=tone_of_days,
                state=wording.SITE_STATES.get(report.state, report.state),
                tone=wording.SITE_TONES.get(report.state, ""),
                reasons=tuple(wording.REASONS.get(name, name) for name in report.reasons.split(",") if name),
                seen_at=report.seen_at,
                age_s=age_s,
                stale=is_old,
                doubt=doubt,
                progress_percent=report.progress_percent if shows_progress else None,
                version=report.version,
                model=report.model_digest or None,
                holds_newest=bool(newest_model) and report.model_digest == newest_model,
                roster_behind=report.roster_epoch < epoch,
                ledger_entries=report.ledger_entries,
            )
        )
    return tuple(sorted(views, key=lambda view: (_ORDER.index(view.group), view.name)))


def certificate_tone(days: float | None, lifetime_days: int) -> str:
    """Return the color of a certificate with so many days left: sites renew it when a third of its life is left."""
    if days is None:
        return ""
    if days < 0:
        return "bad"
    return "warn" if days < lifetime_days / RENEWAL_LATE_AT else ""
