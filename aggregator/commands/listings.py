"""Rows of the store as plain values: the same for tables that people read and for --json.

Times are ISO 8601 in UTC, digests hexadecimal. Nothing here is secret.
"""

from collections import Counter
from datetime import UTC, datetime

import msgspec
from federation.roster import Roster, RosterEntry
from sqlalchemy.orm import Session

from aggregator.commands.printing import Row, Value
from aggregator.config import PacingSettings
from aggregator.errors import NotFound
from aggregator.runs.metrics import Report
from aggregator.runs.plans import plan_of
from aggregator.runs.privacy_status import PrivacyStatus
from aggregator.signing_requests import RosterChange
from aggregator.sites.freshness import stale_after_s
from aggregator.sites.roster import is_listed
from aggregator.states import ModelStanding, RoundState, RunState, SiteStanding
from aggregator.store import people, round_rows, run_rows, site_rows
from aggregator.store.tables import Audit, ModelMetrics, ModelVersion, RollbackRecord, Round, Run, Site, SiteReport
from aggregator.units import duration

ROWS_SHOWN = 10  # of a site's seats and audit
ROUND_COLUMNS = ("round", "state", "attempt", "seats", "members", "deadline", "auc_any", "reason")


def list_sites(session: Session, now: datetime, pacing: PacingSettings) -> list[Row]:
    """List every site, and every invited name that has not joined yet.

    Those that rounds may take come first, then the suspended, those that were revoked, and those that left.

    Args:
        session: A session of `Store.read`.
        now: Aware UTC.
        pacing: When a report is old.
    """
    sites = site_rows.all_sites(session)
    reports = {report.site: report for report in site_rows.reports(session)}
    run = run_rows.active(session)
    paused = run is not None and run.state is RunState.PAUSED
    rows = [_site_row(site, reports.get(site.name), now, pacing, run_paused=paused) for site in sites]
    words = {candidate.site: candidate.fingerprint for candidate in site_rows.candidates(session)}
    for row in rows:
        row["new_words"] = words.get(str(row["site"]))
    # An invitation stays after it was used; then the site's own row says more.
    names = {site.name for site in sites}
    for invitation in site_rows.invitations(session):
        if invitation.site not in names:
            rows.append({"site": invitation.site, "standing": "invited", "expires_at": _time(invitation.expires_at)})
    return sorted(rows, key=lambda row: (_APART.get(str(row["standing"]), 0), str(row["site"])))


_APART = {SiteStanding.SUSPENDED.value: 1, SiteStanding.REVOKED.value: 2, SiteStanding.LEFT.value: 3}


def describe_site(session: Session, name: str, now: datetime, pacing: PacingSettings) -> Row:
    """Describe one site with its keys, its certificate, its seats in the newest rounds and its newest audit rows.

    Raises:
        NotFound: When no such site has joined.
    """
    site = site_rows.get(session, name)
    [row] = [row for row in list_sites(session, now, pacing) if row["site"] == name]
    keys = RosterEntry(site.name, site.signing_key, site.sealing_key).fingerprint.hex()
    seats: list[Value] = [
        {"run": of.run_id.hex(), "round": of.number, "state": seat.state.value, "decline_reason": seat.decline_reason}
        for seat, of in round_rows.newest_seats(session, name, ROWS_SHOWN)
    ]
    audit: list[Value] = [audit_row(row) for row in people.audit_trail(session, f"site:{name}", ROWS_SHOWN, exact=True)]
    return {
        **row,
        "keys": keys,
        "in_roster": is_listed(session, site),
        "certificate_expires_at": _time(site_rows.certificate_expiries(session).get(name)),
        "seats": seats,
        "audit": audit,
    }


def describe_roster(roster: Roster | None, awaited: RosterChange) -> Row:
    """Describe the roster in force, and what the next one changes."""
    entries = () if roster is None else roster.entries
    created_at_s = 0 if roster is None else roster.created_at_s
    return {
        "epoch": None if roster is None else roster.epoch,
        "created_at": _time(datetime.fromtimestamp(created_at_s, UTC)) if created_at_s else None,
        "expires_at": None if roster is None else _time(roster.expires_at),
        "sites": {entry.site: entry.fingerprint.hex() for entry in entries},
        "awaits_signature": str(awaited) if awaited else None,
    }


def roster_lines(roster: Row) -> list[Row]:
    """Shorten the sites of `describe_roster` to one line each, for people."""
    sites = roster["sites"]
    # describe_roster puts a mapping of texts there.
    assert isinstance(sites, dict)
    return [{"site": site, "keys": str(keys)[:16]} for site, keys in sites.items()]


def chosen_run(session: Session, prefix: str | None) -> Run:
    """Find the run whose id in hexadecimal begins with `prefix`; when it is None the active run, else the newest.

    Raises:
        NotFound: When there is no such run, or several.
    """
    runs = run_rows.all_runs(session)
    if not runs:
        raise NotFound("no run yet; `run start` begins one")
    if prefix is None:
        return run_rows.current(session) or runs[-1]
    matching = [run for run in runs if run.run_id.hex().startswith(prefix)]
    if not matching:
        raise NotFound(f"expected the beginning of a run's id, got {prefix!r}; no run begins so, see `run list`")
    if len(matching) > 1:
        raise NotFound(f"{len(matching)} runs begin with {prefix!r}; give more of the id")
    return matching[0]


def list_runs(session: Session) -> list[Row]:
    """List every run in one line, the oldest first; `rounds` counts those published."""
    return [
        {
            "run": run.run_id.hex(),
            "name": run.name,
            "state": run.state.value,
            "rounds": sum(row.state is RoundState.PUBLISHED for row in round_rows.of_run(session, run.run_id)),
            "created_at": _time(run.created_at),
            "ended_at": _time(run.ended_at),
            "reason": run.reason,
        }
        for run in run_rows.all_runs(session)
    ]


def list_queue(session: Session) -> list[Row]:
    """List the runs that wait, the next one first."""
    rows: list[Row] = []
    for run in run_rows.queued(session):
        plan = plan_of(run)
        rows.append(
            {
                "run": run.run_id.hex(),
                "name": run.name,
                "queued_at": _time(run.created_at),
                "architecture": plan.architecture,
                "rounds": plan.rounds,
                "minimum": plan.cohort.minimum,
            }
        )
    return rows


def describe_run(session: Session, run: Run, privacy: PrivacyStatus | None) -> Row:
    """Describe a run with all its rounds, seats and metrics.

    Args:
        session: A session of `Store.read`.
        run: The run.
        privacy: Its privacy, see `privacy_status`; None where the sum is not noised.
    """
    metrics = {row.round_id: row for row in round_rows.metrics_of_run(session, run.run_id)}
    rounds: list[Value] = [
        {**_round_row(session, row), "base_model_report": _report(metrics.get(row.id))}
        for row in round_rows.of_run(session, run.run_id)
    ]
    spent: Value = msgspec.to_builtins(privacy)
    return {
        "run": run.run_id.hex(),
        "name": run.name,
        "state": run.state.value,
        "reason": run.reason,
        "plan_digest": run.plan_digest.hex(),
        "created_at": _time(run.created_at),
        "ended_at": _time(run.ended_at),
        "rounds": rounds,
        "privacy": spent,
    }


def list_models(session: Session, run: Run) -> list[Row]:
    """List the models of a run, the initial one first, each with the report of the round that judged it, if any."""
    metrics = {row.model_digest: row for row in round_rows.metrics_of_run(session, run.run_id)}
    models, rollbacks = run_rows.models(session, run.run_id), run_rows.rollbacks(session, run.run_id)
    numbers = {model.digest: model.round_number for model in reversed(models)}
    return [
        {
            "round": model.round_number,
            "model_digest": model.digest.hex(),
            "size_bytes": model.size_bytes,
            "created_at": _time(model.created_at),
            "standing": None if model.standing is None else model.standing.value,
            "trained_from": _trained_from(session, model, numbers),
            "why": _rollback_words(model, rollbacks, numbers) or _gate_words(metrics.get(model.digest)),
            "report": _report(metrics.get(model.digest)),
        }
        for model in models
    ]


def _trained_from(session: Session, model: ModelVersion, numbers: dict[bytes, int]) -> int | None:
    """Return the round of the model that another one was trained from; None for the initial one."""
    if model.round_number == 0:
        return None
    return numbers[round_rows.get(session, model.run_id, model.round_number).base_model]


def _rollback_words(model: ModelVersion, rollbacks: list[RollbackRecord], numbers: dict[bytes, int]) -> str | None:
    """Say which rollback led past a model."""
    if model.standing is not ModelStanding.ROLLED_BACK:
        return None
    # The first one that was signed after the model was made and leads to one before it.
    passing = [
        row
        for row in rollbacks
        if row.after_round >= model.round_number and numbers[row.model_digest] < model.round_number
    ]
    number = numbers[passing[0].model_digest]
    return f"after round {passing[0].after_round} the run went back to the model of round {number}"


def _gate_words(metrics: ModelMetrics | None) -> str | None:
    """Say why a model was accepted or refused; None for one that no round has compared with another."""
    gate = None if metrics is None else Report.from_json(metrics.report).gate
    return None if gate is None else gate.words()


def list_administrators(session: Session) -> list[Row]:
    """List the administrators of the dashboard, by name."""
    return [
        {"name": row.name, "role": row.role.value, "created_at": _time(row.created_at)}
        for row in people.administrators(session)
    ]


def audit_row(row: Audit) -> Row:
    """Describe one row of the audit trail."""
    return {
        "id": row.id,
        "at": _time(row.at),
        "actor": row.actor,
        "subject": row.subject,
        "before": row.before,
        "after": row.after,
        "why": row.why,
    }


def round_lines(run: Row) -> list[Row]:
    """Shorten the rounds of `describe_run` to one line each, for people."""
    rounds = run["rounds"]
    # describe_run puts a list of mappings there.
    assert isinstance(rounds, list)
    return [_round_line(row) for row in rounds]


def _site_row(site: Site, report: SiteReport | None, now: datetime, pacing: PacingSettings, *, run_paused: bool) -> Row:
    row: Row = {
        "site": site.name,
        "standing": site_rows.standing(site).value,
        "words": site.fingerprint,
        "joined_at": _time(site.joined_at),
        "approved_at": _time(site.approved_at),
        "suspended_at": _time(site.suspended_at),
        "revoked_at": _time(site.revoked_at),
        "left_at": _time(site.left_at),
        "recoveries_left": site.recoveries_left,
    }
    if report is not None:  # there is none before the first Poll
        age_s = (now - report.seen_at).total_seconds()
        stale = age_s > stale_after_s(pacing, report.state, run_paused=run_paused)
        # A site that left is silent for good; its last report is not late.
        stale = stale and site.left_at is None
        row |= {
            "age_s": age_s,
            "stale": stale,
            "last_report": f"{'STALE, ' if stale else ''}{duration(age_s)} ago",
            "seen_at": _time(report.seen_at),
            "state": report.state,
            "reasons": [reason for reason in report.reasons.split(",") if reason],
            "progress_percent": report.progress_percent,
            "model_digest": report.model_digest.hex(),
            "roster_epoch": report.roster_epoch,
            "version": report.version,
            "ledger_entries": report.ledger_entries,
        }
    return row


def _round_row(session: Session, row: Round) -> Row:
    seats: list[Value] = [
        {
            "site": seat.site,
            "state": seat.state.value,
            "decline_reason": seat.decline_reason,
            "bytes_up": seat.bytes_up,
            "bytes_down": seat.bytes_down,
        }
        for seat in round_rows.seats(session, row.id)
    ]
    # A state is entered once an attempt; the seconds of all attempts are added up.
    seconds: dict[str, float] = {}
    for phase in round_rows.phase_times(session, row.id):
        seconds[phase.state.value] = seconds.get(phase.state.value, 0.0) + phase.seconds
    return {
        "round": row.number,
        "attempt": row.attempt,
        "state": row.state.value,
        "reason": row.reason,
        # The column keeps the deadline of the last state, which means nothing once the round is over.
        "deadline": None if row.ended_at else _time(row.deadline),
        "ended_at": _time(row.ended_at),
        "members": row.members,
        "base_model_digest": row.base_model.hex(),
        "next_model_digest": None if row.next_model is None else row.next_model.hex(),
        "phase_s": {**seconds},
        "seats": seats,
    }


def _round_line(row: Row) -> Row:
    seats, report = row["seats"], row["base_model_report"]
    # _round_row puts a list of mappings there.
    assert isinstance(seats, list)
    counts = Counter(str(seat["state"]) for seat in seats if isinstance(seat, dict))
    counted = " ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    # Only a label that is there has figures; `any` is missing when the cohort was below the plan's minimum.
    labels = report.get("labels") if isinstance(report, dict) else None
    any_label = labels.get("any") if isinstance(labels, dict) else None
    return {**row, "seats": counted, "auc_any": any_label["auc"] if isinstance(any_label, dict) else None}


def _report(metrics: ModelMetrics | None) -> Value:
    """The report as JSON values; None for a model that no round has judged."""
    if metrics is None:
        return None
    report: Value = msgspec.to_builtins(Report.from_json(metrics.report))
    return report


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")
