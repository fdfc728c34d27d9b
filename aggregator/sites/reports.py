"""What a site says of itself with each Poll, kept for the coordinator's eyes. Nothing in a round depends on it."""

from datetime import timedelta

from federation.limits import DIGEST_BYTES, REASONS_MAX, VERSION
from federation.v1 import rounds_pb2 as pb

from aggregator.context import AppContext, LastReport
from aggregator.errors import MessageRefused
from aggregator.store import Change, record, site_rows
from aggregator.store.tables import SiteReport

REPORT_EVERY = timedelta(seconds=5)

_SQL_INTEGER_MAX = 2**63 - 1


def keep(app: AppContext, site: str, request: pb.PollRequest) -> None:
    """What the site says of itself, for the dashboard. Written when its state changes, else every few seconds.

    A ledger that got shorter, or has another head at the same length, was cut or rewritten: the audit says so. Each
    report is held against the one before, which is in memory between two writes: a Poll is no reason to write to the
    disk. What a crash loses is a few seconds of reports.

    Raises: MessageRefused for values outside what rounds.proto says.
    """
    _check_report(request)
    now = app.clock()
    report = SiteReport(
        site=site,
        seen_at=now,
        state=pb.SiteState.Name(request.state),
        reasons=",".join(pb.StateReason.Name(reason) for reason in request.reasons),
        progress_percent=request.progress_percent,
        model_digest=request.model_digest,
        roster_epoch=request.roster_epoch,
        version=request.version,
        ledger_entries=request.ledger_entries,
        ledger_head=request.ledger_head,
    )
    last = app.last_reports.get(site)
    if last is not None and _can_wait(last, report):
        app.last_reports[site] = last._replace(report=report)
        return
    with app.store.write() as session:
        known = [site_rows.report(session, site), None if last is None else last.report]
        for before in known:  # the row is the newer one if another process wrote it
            if before is not None and _ledger_was_cut(before, report):
                why = f"egress ledger had {before.ledger_entries} entries, now says {report.ledger_entries}"
                record(session, Change(now, f"site:{site}", f"site:{site}", why), None, "ledger rewritten")
                break
        site_rows.put_report(session, report)
    app.last_reports[site] = LastReport(report, now)


def _check_report(request: pb.PollRequest) -> None:
    reasons = list(request.reasons)
    refused = {
        "state": request.state == pb.SITE_STATE_UNSPECIFIED,
        "reasons": len(reasons) > REASONS_MAX
        or reasons != sorted(set(reasons))
        or pb.STATE_REASON_UNSPECIFIED in reasons,
        "progress_percent": request.progress_percent > 100,
        "model_digest": len(request.model_digest) not in (0, DIGEST_BYTES),
        "version": bool(request.version) and not VERSION.fullmatch(request.version),
        "ledger_head": len(request.ledger_head) not in (0, DIGEST_BYTES),
        "ledger_entries": request.ledger_entries > _SQL_INTEGER_MAX,
        "roster_epoch": request.roster_epoch > _SQL_INTEGER_MAX,
    }
    for field, is_refused in refused.items():
        if is_refused:
            raise MessageRefused(f"PollRequest.{field} is not as rounds.proto says; update the site's software")


def _can_wait(last: LastReport, report: SiteReport) -> bool:
    """Whether nothing is in `report` that somebody should see before the next one is written anyway."""
    told = ("state", "reasons", "model_digest", "roster_epoch", "version")
    same = all(getattr(last.report, field) == getattr(report, field) for field in told)
    return same and not _ledger_was_cut(last.report, report) and report.seen_at - last.written_at < REPORT_EVERY


def _ledger_was_cut(before: SiteReport, report: SiteReport) -> bool:
    shorter = report.ledger_entries < before.ledger_entries
    return shorter or (report.ledger_entries == before.ledger_entries and report.ledger_head != before.ledger_head)
