"""The sites as the pages show them: each one's last report, and how old it is."""

from dataclasses import dataclass
from datetime import datetime

from federation.vocabulary import SiteState
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.dashboard import wording
from aggregator.sites.freshness import stale_after_s
from aggregator.states import RunState, SiteStanding
from aggregator.store import run_rows, site_rows


@dataclass(frozen=True)
class SiteView:
    """A site and its last report; all fields of the report are None or empty before the first one."""

    name: str
    standing: SiteStanding
    tone_of_standing: str
    certificate_days: float | None  # until the newest certificate expires; negative afterwards
    state: str = "never seen"
    tone: str = ""
    reasons: tuple[str, ...] = ()
    seen_at: datetime | None = None
    age_s: float | None = None
    stale: bool = False
    progress_percent: int | None = None
    version: str = "–"
    model: bytes | None = None
    holds_newest: bool = False
    roster_behind: bool = False
    ledger_entries: int | None = None

    @property
    def takes_part(self) -> bool:
        """Whether rounds may take the site, now or once it is approved."""
        return self.standing in (SiteStanding.APPROVED, SiteStanding.PENDING)


def site_views(app: AppContext, session: Session) -> tuple[SiteView, ...]:
    """Read every site that ever joined: first those that rounds may take, then the others, each by name."""
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
        report = reports.get(site.name)
        if report is None:
            views.append(SiteView(site.name, standing, tone, days))
            continue
        age_s = (now - report.seen_at).total_seconds()
        stale_s = stale_after_s(app.settings.pacing, report.state, run_paused=paused)
        shows_progress = report.state in (SiteState.TRAINING, SiteState.PAUSED)
        views.append(
            SiteView(
                name=site.name,
                standing=standing,
                tone_of_standing=tone,
                certificate_days=days,
                state=wording.SITE_STATES.get(report.state, report.state),
                tone=wording.SITE_TONES.get(report.state, ""),
                reasons=tuple(wording.REASONS.get(name, name) for name in report.reasons.split(",") if name),
                seen_at=report.seen_at,
                age_s=age_s,
                # A site that left is silent for good; its last report is not late.
                stale=standing is not SiteStanding.LEFT and age_s > stale_s,
                progress_percent=report.progress_percent if shows_progress else None,
                version=report.version,
                model=report.model_digest or None,
                holds_newest=bool(newest_model) and report.model_digest == newest_model,
                roster_behind=report.roster_epoch < epoch,
                ledger_entries=report.ledger_entries,
            )
        )
    return tuple(sorted(views, key=lambda view: (not view.takes_part, view.name)))
