"""What the pages show of the sites: what each last said of itself, and how old that is."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from aggregator.config import PacingSettings
from aggregator.context import AppContext
from aggregator.dashboard import wording
from aggregator.dashboard.contexts import shown_run
from aggregator.states import RunState
from aggregator.store import run_rows, site_rows
from aggregator.store.tables import SiteReport

STALE_FACTOR = 3  # a site is stale when it is this many polling intervals late
STALE_LEAST_S = 15.0  # below this a late poll says nothing: reports are written every few seconds only


@dataclass(frozen=True)
class SiteView:
    """A site and its last report; everything of the report is None or empty before the first one."""

    name: str
    standing: str
    certificate_days: float | None
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


def site_views(app: AppContext, session: Session) -> tuple[SiteView, ...]:
    """Every site that ever joined, by name."""
    now, epoch = app.clock(), site_rows.newest_epoch(session)
    reports = {row.site: row for row in site_rows.reports(session)}
    run = shown_run(session)
    newest = run_rows.newest_model(session, run.run_id).digest if run is not None else b""
    silence_s = _silence_s(app.settings.pacing, paused=run is not None and run.state is RunState.PAUSED)
    views = []
    for site in site_rows.everyone(session):
        expires, report = site_rows.certificate_expiry(session, site.name), reports.get(site.name)
        days = None if expires is None else (expires - now).total_seconds() / 86_400
        if report is None:
            views.append(SiteView(site.name, site_rows.standing(site), days))
        else:
            views.append(_reported(site.name, site_rows.standing(site), days, report, silence_s, now, newest, epoch))
    return tuple(views)


def _silence_s(pacing: PacingSettings, *, paused: bool) -> dict[str, float]:
    """By state, the seconds of silence after which a site is late: several of the intervals it was told to keep."""
    busy = max(pacing.training_s, pacing.paused_s if paused else 0.0)
    idle = max(pacing.idle_s, busy)
    return {"SITE_IDLE": max(STALE_FACTOR * idle, STALE_LEAST_S), "": max(STALE_FACTOR * busy, STALE_LEAST_S)}


def _reported(
    name: str,
    standing: str,
    certificate_days: float | None,
    report: SiteReport,
    silence_s: dict[str, float],
    now: datetime,
    newest: bytes,
    epoch: int,
) -> SiteView:
    age_s = (now - report.seen_at).total_seconds()
    return SiteView(
        name=name,
        standing=standing,
        certificate_days=certificate_days,
        state=wording.SITE_STATES.get(report.state, report.state),
        tone=wording.SITE_TONES.get(report.state, ""),
        reasons=tuple(wording.REASONS.get(code, code) for code in report.reasons.split(",") if code),
        seen_at=report.seen_at,
        age_s=age_s,
        stale=standing != site_rows.LEFT and age_s > silence_s.get(report.state, silence_s[""]),
        progress_percent=report.progress_percent if report.state in ("SITE_TRAINING", "SITE_PAUSED") else None,
        version=report.version,
        model=report.model_digest or None,
        holds_newest=bool(newest) and report.model_digest == newest,
        roster_behind=report.roster_epoch < epoch,
        ledger_entries=report.ledger_entries,
    )
