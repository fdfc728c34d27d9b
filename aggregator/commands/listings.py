"""What the command line lists: rows of the store as plain values, the same for people and for --json.

Times are ISO 8601 in UTC, digests hexadecimal. Nothing here is secret.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from aggregator.errors import NotFound
from aggregator.states import RoundState
from aggregator.store import people, round_rows, run_rows, site_rows
from aggregator.store.tables import Audit, Round, Run, Site, SiteReport

Value = str | int | float | bool | None | Sequence["Value"] | Mapping[str, "Value"]
Row = dict[str, Value]


def list_sites(session: Session) -> list[Row]:
    """Every site, and every name invited that has not joined yet; by name."""
    joined = site_rows.everyone(session)
    reports = {report.site: report for report in site_rows.reports(session)}
    rows = [_site_row(site, reports.get(site.name)) for site in joined]
    names = {site.name for site in joined}
    for invitation in site_rows.invitations(session):
        if invitation.site not in names:
            rows.append({"site": invitation.site, "standing": "invited", "expires_at": _time(invitation.expires_at)})
    return sorted(rows, key=lambda row: str(row["site"]))


def chosen_run(session: Session, beginning: str | None) -> Run:
    """The run whose id begins so; the newest when None.

    Raises: NotFound when there is none, or when several begin so.
    """
    every = run_rows.every(session)
    fitting = [run for run in every if run.run_id.hex().startswith(beginning or "")]
    if not every:
        raise NotFound("no run yet; `run start` begins one")
    if not fitting:
        raise NotFound(f"expected the beginning of a run's id, got {beginning!r}; no run begins so, see `run list`")
    if beginning is not None and len(fitting) > 1:
        raise NotFound(f"{len(fitting)} runs begin with {beginning!r}; give more of the id")
    return fitting[-1]


def list_runs(session: Session) -> list[Row]:
    """Every run in one line, the oldest first; `rounds` counts those published."""
    published = RoundState.PUBLISHED
    return [
        {
            "run": run.run_id.hex(),
            "name": run.name,
            "state": run.state.value,
            "rounds": sum(row.state is published for row in round_rows.of_run(session, run.run_id)),
            "created_at": _time(run.created_at),
            "ended_at": _time(run.ended_at),
            "reason": run.reason,
        }
        for run in run_rows.every(session)
    ]


def describe_run(session: Session, run: Run) -> Row:
    """A run with all its rounds, seats and metrics."""
    metrics = {row.round_id: row for row in round_rows.metrics_of_run(session, run.run_id)}
    listed: list[Value] = []
    for row in round_rows.of_run(session, run.run_id):
        judged = metrics.get(row.id)
        report: Value = None if judged is None else json.loads(judged.report)
        listed.append({**_round_row(session, row), "base_model_report": report})
    return {
        "run": run.run_id.hex(),
        "name": run.name,
        "state": run.state.value,
        "reason": run.reason,
        "plan_digest": run.plan_digest.hex(),
        "created_at": _time(run.created_at),
        "ended_at": _time(run.ended_at),
        "rounds": listed,
    }


def list_models(session: Session, run: Run) -> list[Row]:
    """The models of a run, the initial one first; with what a later round said of each, where one did."""
    said = {row.model_digest: row for row in round_rows.metrics_of_run(session, run.run_id)}
    return [
        {
            "round": model.round_number,
            "model_digest": model.digest.hex(),
            "size_bytes": model.size_bytes,
            "created_at": _time(model.created_at),
            "report": json.loads(said[model.digest].report) if model.digest in said else None,
        }
        for model in run_rows.models(session, run.run_id)
    ]


def list_administrators(session: Session) -> list[Row]:
    return [{"name": row.name, "created_at": _time(row.created_at)} for row in people.administrators(session)]


def audit_row(row: Audit) -> Row:
    return {
        "id": row.id,
        "at": _time(row.at),
        "actor": row.actor,
        "subject": row.subject,
        "before": row.before,
        "after": row.after,
        "why": row.why,
    }


ROUND_COLUMNS = ("round", "state", "attempt", "seats", "members", "deadline", "auc_any", "reason")


def round_lines(run: Row) -> list[Row]:
    """The rounds of a `describe_run`, each as one line for people."""
    listed = run["rounds"]
    # describe_run puts a list of mappings there.
    assert isinstance(listed, list)
    return [_round_line(row) for row in listed]


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """`columns` of `rows` as aligned text with a heading; a missing value is a dash."""
    lines = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _site_row(site: Site, report: SiteReport | None) -> Row:
    row: Row = {
        "site": site.name,
        "standing": site_rows.standing(site).value,
        "words": site.fingerprint,
        "joined_at": _time(site.joined_at),
        "approved_at": _time(site.approved_at),
        "revoked_at": _time(site.revoked_at),
        "left_at": _time(site.left_at),
        "recoveries_left": site.recoveries_left,
    }
    if report is not None:
        row |= {
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
    return {
        "round": row.number,
        "attempt": row.attempt,
        "state": row.state.value,
        "reason": row.reason,
        "deadline": None if row.ended_at else _time(row.deadline),
        "ended_at": _time(row.ended_at),
        "members": row.members,
        "base_model_digest": row.base_model.hex(),
        "next_model_digest": None if row.next_model is None else row.next_model.hex(),
        "phase_s": _phase_seconds(session, row.id),
        "seats": seats,
    }


def _round_line(row: Row) -> Row:
    seats, report = row["seats"], row["base_model_report"]
    # _round_row puts a list of mappings there.
    assert isinstance(seats, list)
    counted = Counter(str(seat["state"]) for seat in seats if isinstance(seat, dict))
    told = " ".join(f"{count} {state}" for state, count in sorted(counted.items()))
    return {**row, "seats": told, "auc_any": _auc_any(report)}


def _auc_any(report: Value) -> Value:
    """AUC of the label `any` out of a metrics report; None where none was shown."""
    labels = report.get("labels") if isinstance(report, dict) else None
    judged = labels.get("any") if isinstance(labels, dict) else None
    return judged.get("auc") if isinstance(judged, dict) else None


def _phase_seconds(session: Session, round_id: int) -> dict[str, Value]:
    """Seconds in each state, over all attempts."""
    total: dict[str, float] = {}
    for spent in round_rows.phase_times(session, round_id):
        total[spent.state.value] = total.get(spent.state.value, 0.0) + spent.seconds
    return {**total}


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")


def _cell(value: Value) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
