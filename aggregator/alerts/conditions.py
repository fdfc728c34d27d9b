"""The conditions that need a person, read from the rows as they are now: each in one sentence, with what to do.

A sentence names sites, runs and times. It holds no figure of a site and nothing about a patient: mail and webhooks
leave this machine.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from federation.roster import ROSTER_WARNING_DAYS
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.sites.roster import in_force
from aggregator.states import ModelStanding, RunState, SiteStanding
from aggregator.store import round_rows, run_rows, site_lines, site_rows
from aggregator.units import duration

STALLED_AFTER = timedelta(minutes=10)  # beyond the deadline of a phase; a driver looks twice a second
CERTIFICATE_PART = 4  # sites renew when a third of a certificate's life is left; this late, one has failed
_MIB = 1 << 20


class AlertKind(StrEnum):
    """The conditions."""

    ROUND_STALLED = "round_stalled"
    RUN_PAUSED = "run_paused"
    SITE_SILENT = "site_silent"
    CERTIFICATE_ENDS = "certificate_ends"
    ROSTER_ENDS = "roster_ends"
    MODEL_REFUSED = "model_refused"
    AUDIT_BROKEN = "audit_broken"
    DISK_FILLING = "disk_filling"


ADVICE: dict[AlertKind, str] = {
    AlertKind.ROUND_STALLED: "Look at /readyz and the log: no driver steps the round. Start the service again.",
    AlertKind.RUN_PAUSED: "Type `hemofed-aggregator run explain`, mend the cause, then `run resume`.",
    AlertKind.SITE_SILENT: "Call the hospital; its `hemofed-site status` says what it lacks. `site suspend` lets "
    "rounds go on without it.",
    AlertKind.CERTIFICATE_ENDS: "Call the hospital: its agent renews the certificate once it reaches you.",
    AlertKind.ROSTER_ENDS: "Type `roster export`, let the custodian sign, then `roster import`.",
    AlertKind.MODEL_REFUSED: "Type `hemofed-aggregator run explain`, and ask the hospitals that took part.",
    AlertKind.AUDIT_BROKEN: "Stop the service, keep the state folder, and compare it with the last backup.",
    AlertKind.DISK_FILLING: "Make room for the state folder, or move it to a larger disk.",
}


@dataclass(frozen=True)
class Alert:
    """A condition that holds now. `subject` tells those of one kind apart: a site, a run; empty where there is one."""

    kind: AlertKind
    subject: str
    sentence: str

    @property
    def key(self) -> str:
        """Its name in the database."""
        return f"{self.kind}:{self.subject}"

    @property
    def advice(self) -> str:
        """The step that a person takes."""
        return ADVICE[self.kind]


def raised(app: AppContext, session: Session) -> list[Alert]:
    """Return every condition that holds, but for a broken audit, which takes long to find; see `audit_alert`.

    Args:
        app: The aggregator.
        session: A session of `Store.read`.
    """
    now = app.clock()
    return [*_of_run(session, now), *_of_sites(app, session, now), *_of_roster(session, now), *_of_disk(app)]


def audit_alert(why: str) -> Alert:
    """Return the alert of an audit that is not the one that was written."""
    return Alert(AlertKind.AUDIT_BROKEN, "", f"The audit is broken: {why}")


def _of_run(session: Session, now: datetime) -> Iterator[Alert]:
    run = run_rows.active(session)
    if run is None:
        return
    row = round_rows.newest(session, run.run_id)
    if row is not None and row.state not in round_rows.OVER and now - row.deadline > STALLED_AFTER:
        late = duration((now - row.deadline).total_seconds())
        sentence = f"Round {row.number} of {run.name} is stalled in {row.state}: its deadline passed {late} ago."
        yield Alert(AlertKind.ROUND_STALLED, f"{run.run_id.hex()}/{row.number}", sentence)
    if run.state is RunState.PAUSED:
        reason = run.reason or "no reason is kept"
        yield Alert(AlertKind.RUN_PAUSED, run.run_id.hex(), f"The run {run.name} is paused: {reason}.")
    for model in run_rows.models(session, run.run_id)[-1:]:
        if model.standing is ModelStanding.REFUSED:
            sentence = f"The model after round {model.round_number} of {run.name} was refused: it is worse than before."
            yield Alert(AlertKind.MODEL_REFUSED, f"{run.run_id.hex()}/{model.round_number}", sentence)


def _of_sites(app: AppContext, session: Session, now: datetime) -> Iterator[Alert]:
    silent_hours, life_days = app.settings.alerts.silent_hours, app.settings.enrolment.certificate_days
    for line in site_lines.lines(session):
        standing = site_rows.standing_at(line.approved_at, line.suspended_at, line.revoked_at, line.left_at)
        if standing is not SiteStanding.APPROVED or line.approved_at is None:
            continue
        # A site that has never reported is heard of when it is approved.
        silent = now - max(line.seen_at or line.approved_at, line.approved_at)
        if silent > timedelta(hours=silent_hours):
            how_long = duration(silent.total_seconds())
            yield Alert(AlertKind.SITE_SILENT, line.name, f"{line.name} has been silent for {how_long}.")
        if line.expires_at is not None and line.expires_at - now < timedelta(days=life_days) / CERTIFICATE_PART:
            how = "ended" if line.expires_at <= now else "ends"
            sentence = f"The certificate of {line.name} {how} on {line.expires_at:%Y-%m-%d %H:%M} UTC."
            yield Alert(AlertKind.CERTIFICATE_ENDS, line.name, sentence)


def _of_roster(session: Session, now: datetime) -> Iterator[Alert]:
    roster = in_force(session)
    ends = None if roster is None else roster.expires_at
    if ends is not None and ends - now < timedelta(days=ROSTER_WARNING_DAYS):
        how = "ended" if ends <= now else "ends"
        yield Alert(AlertKind.ROSTER_ENDS, "", f"The roster {how} on {ends:%Y-%m-%d}.")


def _of_disk(app: AppContext) -> Iterator[Alert]:
    free_mib = shutil.disk_usage(app.settings.state.folder).free // _MIB
    least_mib = app.settings.alerts.disk_free_mib
    if free_mib < least_mib:
        sentence = f"The disk of the state folder is filling: {free_mib} MiB are free, expected {least_mib} MiB."
        yield Alert(AlertKind.DISK_FILLING, "", sentence)
