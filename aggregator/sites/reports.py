"""A site's report about itself, in each Poll, kept for the coordinator. Nothing in a round depends on it."""

from datetime import timedelta
from importlib.metadata import version

from federation.limits import DIGEST_BYTES, REASONS_MAX, SECAGG_VERSION, VERSION
from federation.v1 import rounds_pb2 as pb
from federation.vocabulary import SiteState, StateReason

from aggregator.context import AppContext, LastReport, LedgerMark
from aggregator.errors import MessageRefused
from aggregator.store import Cause, record, site_rows
from aggregator.store.tables import SiteReport

REPORT_EVERY = timedelta(seconds=5)

_SQL_INTEGER_MAX = 2**63 - 1
_STATES = {state.number: state for state in SiteState}
_REASONS = {reason.number: reason for reason in StateReason}


def keep(app: AppContext, site: str, request: pb.PollRequest) -> None:
    """Keep a site's report for the dashboard. It is written when the site's state changes, else every few seconds.

    A ledger that is shorter than the longest one reported, or has another head at that length, was cut or rewritten:
    the audit says so, once a cut. The row keeps the longest ledger. The reply to a Poll carries `longest_before` of
    `app.last_reports`, and the site compares it with its own ledger; the report itself would tell it nothing. Between
    two writes the reports stay in memory; a crash loses a few seconds of them.

    Raises:
        MessageRefused: For values outside the bounds of rounds.proto, or from a site of another version of secure
            aggregation.
    """
    # First: an older site is told what to install, not what it may not send.
    if request.secagg != SECAGG_VERSION:
        raise MessageRefused(
            f"expected a site that speaks version {SECAGG_VERSION} of secure aggregation, got version "
            f"{request.secagg or 1}; install hemofed {version('hemofed')} at the site"
        )
    _check_report(request)
    now = app.clock()
    mark = LedgerMark(request.ledger_entries, request.ledger_head)
    report = SiteReport(
        site=site,
        seen_at=now,
        state=_STATES[request.state].value,
        reasons=",".join(_REASONS[reason].value for reason in request.reasons),
        progress_percent=request.progress_percent,
        model_digest=request.model_digest,
        roster_epoch=request.roster_epoch,
        version=request.version,
        ledger_entries=mark.entries,
        ledger_head=mark.head,
    )
    last = app.last_reports.get(site)
    # A Poll is the most frequent call, and a synced write costs more than all the rest of it.
    if last is not None and _can_wait(last, report):
        longest = _longer(last.longest, mark)
        app.last_reports[site] = LastReport(report, last.written_at, longest, longest_before=last.longest)
        return
    with app.store.write() as session:
        row = site_rows.report(session, site)
        if row is None:  # of a host that joined under this name just now: its ledger is another one
            last = None
        # The row is the newer one if another process wrote it.
        marks = [LedgerMark(0, b"")]
        marks += [] if row is None else [LedgerMark(row.ledger_entries, row.ledger_head)]
        marks += [] if last is None else [last.longest]
        seen = max(marks, key=lambda seen: seen.entries)
        if _is_cut(seen, mark, last):
            why = f"egress ledger had {seen.entries} entries, now says {mark.entries}"
            record(session, Cause(now, f"site:{site}", why).of(f"site:{site}"), None, "ledger rewritten")
        longest = _longer(seen, mark)
        report.ledger_entries, report.ledger_head = longest
        site_rows.put_report(session, report)
    # After the commit: a report that could not be written must be tried again with the next Poll.
    report.ledger_entries, report.ledger_head = mark
    app.last_reports[site] = LastReport(report, now, longest, longest_before=seen)


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
    is_cut = _is_cut(last.longest, LedgerMark(report.ledger_entries, report.ledger_head), last)
    return same and not is_cut and report.seen_at - last.written_at < REPORT_EVERY


def _is_cut(seen: LedgerMark, mark: LedgerMark, last: LastReport | None) -> bool:
    """Whether a ledger that was `seen` was cut since the last report; a cut one grows again, which is no second cut."""
    if last is None:
        return _differs(seen, mark)
    before = LedgerMark(last.report.ledger_entries, last.report.ledger_head)
    return _differs(seen, mark) and not (_differs(seen, before) and not _differs(before, mark))


def _differs(before: LedgerMark, after: LedgerMark) -> bool:
    return after.entries < before.entries or (after.entries == before.entries and after.head != before.head)


def _longer(seen: LedgerMark, mark: LedgerMark) -> LedgerMark:
    return mark if mark.entries > seen.entries else seen
