"""A site's report about itself, in each Poll, kept for the coordinator. Nothing in a round depends on it."""

from datetime import timedelta

from federation.limits import DIGEST_BYTES, REASONS_MAX, VERSION
from federation.v1 import rounds_pb2 as pb
from federation.vocabulary import SiteState, StateReason

from aggregator.context import AppContext, LastReport
from aggregator.errors import MessageRefused
from aggregator.store import Cause, record, site_rows
from aggregator.store.tables import SiteReport

REPORT_EVERY = timedelta(seconds=5)

_SQL_INTEGER_MAX = 2**63 - 1
_STATES = {state.number: state for state in SiteState}
_REASONS = {reason.number: reason for reason in StateReason}


def keep(app: AppContext, site: str, request: pb.PollRequest) -> None:
    """Keep a site's report for the dashboard. It is written when the site's state changes, else every few seconds.

    A ledger that got shorter, or has another head at the same length, was cut or rewritten: the audit says so. Each
    report is compared with the one before, which stays in memory between two writes. A crash loses a few seconds of
    reports.

    Raises:
        MessageRefused: for values outside the bounds of rounds.proto.
    """
    _check_report(request)
    now = app.clock()
    report = SiteReport(
        site=site,
        seen_at=now,
        state=_STATES[request.state].value,
        reasons=",".join(_REASONS[reason].value for reason in request.reasons),
        progress_percent=request.progress_percent,
        model_digest=request.model_digest,
        roster_epoch=request.roster_epoch,
        version=request.version,
        ledger_entries=request.ledger_entries,
        ledger_head=request.ledger_head,
    )
    last = app.last_reports.get(site)
    # A Poll is the most frequent call, and a synced write costs more than all the rest of it.
    if last is not None and _can_wait(last, report):
        app.last_reports[site] = last._replace(report=report)
        return
    with app.store.write() as session:
        # The row is the newer one if another process wrote it.
        earlier = [site_rows.report(session, site), None if last is None else last.report]
        for before in earlier:
            if before is not None and _ledger_was_cut(before, report):
                why = f"egress ledger had {before.ledger_entries} entries, now says {report.ledger_entries}"
                record(session, Cause(now, f"site:{site}", why).of(f"site:{site}"), None, "ledger rewritten")
                break
        site_rows.put_report(session, report)
    # After the commit: a report that could not be written must be tried again with the next Poll.
    app.last_reports[site] = LastReport(report, now)


def _check_report(request: pb.PollRequest) -> None:
    reasons = list(request.reasons)
    refused = {
        "state": request.state not in _STATES,
        "reasons": len(reasons) > REASONS_MAX
        or reasons != sorted(set(reasons))
        or any(reason not in _REASONS for reason in reasons),
        "progress_percent": request.progress_percent > 100,
        "model_digest": len(request.model_digest) not in (0, DIGEST_BYTES),
        # Free text of a site would be shown on the dashboard: no patient's name can pass for a version.
        "version": bool(request.version) and not VERSION.fullmatch(request.version),
        "ledger_head": len(request.ledger_head) not in (0, DIGEST_BYTES),
        "ledger_entries": request.ledger_entries > _SQL_INTEGER_MAX,
        "roster_epoch": request.roster_epoch > _SQL_INTEGER_MAX,
    }
    for field, is_refused in refused.items():
        if is_refused:
            raise MessageRefused(f"PollRequest.{field} is not as rounds.proto says; update the site's software")


def _can_wait(last: LastReport, report: SiteReport) -> bool:
    """Whether `report` has no news that the dashboard should show before the next write."""
    shown = ("state", "reasons", "model_digest", "roster_epoch", "version")
    same = all(getattr(last.report, field) == getattr(report, field) for field in shown)
    return same and not _ledger_was_cut(last.report, report) and report.seen_at - last.written_at < REPORT_EVERY


def _ledger_was_cut(before: SiteReport, report: SiteReport) -> bool:
    shorter = report.ledger_entries < before.ledger_entries
    return shorter or (report.ledger_entries == before.ledger_entries and report.ledger_head != before.ledger_head)
