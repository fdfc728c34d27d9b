"""What sites say of themselves with each Poll: seldom written, never left unread."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from federation.limits import SECAGG_VERSION
from federation.v1 import rounds_pb2 as pb
from sqlalchemy import select

from aggregator.config import AggregatorSettings, StateSettings
from aggregator.context import AppContext, LedgerMark, open_context
from aggregator.migrations import upgrade
from aggregator.sites import reports
from aggregator.store import site_rows
from aggregator.store.tables import Audit, Site, SiteReport

BEGIN = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
SITE: dict[str, object] = {
    "name": "north",
    "csr_der": b"",
    "signing_key": b"",
    "sealing_key": b"",
    "fingerprint": "",
    "joined_at": BEGIN,
    "recoveries_left": 1,
}


class Now:
    at = BEGIN

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def app(tmp_path: Path) -> Iterator[AppContext]:
    opened = replace(open_context(AggregatorSettings(state=StateSettings(folder=tmp_path))), clock=Now())
    upgrade(opened.store.engine)
    with opened.store.write() as session:
        session.add(Site(**SITE))
    yield opened
    opened.store.close()


def say(app: AppContext, entries: int, state: str = "SITE_TRAINING", head: bytes = bytes(32)) -> LedgerMark:
    request = pb.PollRequest(
        state=pb.SiteState.Value(state), ledger_entries=entries, ledger_head=head, secagg=SECAGG_VERSION
    )
    reports.keep(app, "north", request)
    return app.last_reports["north"].longest_before


def row(app: AppContext) -> SiteReport:
    with app.store.read() as session:
        found = site_rows.report(session, "north")
    assert found is not None
    return found


def cuts(app: AppContext) -> list[str]:
    with app.store.read() as session:
        return list(session.scalars(select(Audit.why).where(Audit.after == "ledger rewritten")))


def test_a_report_that_says_nothing_new_is_written_a_few_seconds_later(app: AppContext) -> None:
    say(app, 10)
    say(app, 11)
    assert row(app).ledger_entries == 10
    assert isinstance(app.clock, Now)
    app.clock.at = BEGIN + timedelta(seconds=5)
    say(app, 12)
    assert (row(app).ledger_entries, row(app).seen_at) == (12, app.clock())
    assert cuts(app) == []


def test_a_site_that_changes_its_state_is_written_down_at_once(app: AppContext) -> None:
    say(app, 10)
    say(app, 11, "SITE_READY")
    assert (row(app).state, row(app).ledger_entries) == ("SITE_READY", 11)


def test_a_ledger_cut_between_two_writes_is_in_the_audit(app: AppContext) -> None:
    say(app, 10)
    say(app, 15)
    say(app, 14)
    say(app, 15)
    assert cuts(app) == ["egress ledger had 15 entries, now says 14"]


def test_a_ledger_rewritten_at_the_same_length_is_in_the_audit(app: AppContext) -> None:
    say(app, 10)
    say(app, 11)
    say(app, 11, head=bytes([1]) * 32)
    assert cuts(app) == ["egress ledger had 11 entries, now says 11"]


def test_a_ledger_cut_while_the_aggregator_was_down_is_in_the_audit(app: AppContext) -> None:
    say(app, 10)
    app.last_reports.clear()
    say(app, 9)
    assert cuts(app) == ["egress ledger had 10 entries, now says 9"]


def test_each_report_is_answered_with_the_longest_ledger_before_it(app: AppContext) -> None:
    """The one before and not this one: a site that was put back may have grown a longer ledger since."""
    heads = [bytes([number]) * 32 for number in range(6)]
    assert say(app, 10, head=heads[0]) == (0, b"")
    assert say(app, 15, head=heads[1]) == (10, heads[0])
    assert say(app, 12, head=heads[2]) == (15, heads[1])
    assert say(app, 14, head=heads[3]) == (15, heads[1])
    assert say(app, 16, head=heads[4]) == (15, heads[1])
    assert say(app, 17, head=heads[5]) == (16, heads[4])


def test_the_longest_ledger_stays_in_the_row_when_the_site_reports_a_shorter_one(app: AppContext) -> None:
    say(app, 15, head=bytes([1]) * 32)
    say(app, 12)
    app.last_reports.clear()
    assert say(app, 13) == (15, bytes([1]) * 32)
    assert (row(app).ledger_entries, row(app).ledger_head) == (15, bytes([1]) * 32)


def test_a_ledger_that_was_cut_and_grows_again_is_in_the_audit_once_a_cut(app: AppContext) -> None:
    for entries in (15, 10, 11, 12, 9, 10):
        app.clock.at += timedelta(seconds=6)  # type: ignore[attr-defined]  # it is a Now
        say(app, entries)
    assert cuts(app) == ["egress ledger had 15 entries, now says 10", "egress ledger had 15 entries, now says 9"]


def test_a_host_that_joined_under_the_name_anew_is_not_told_of_the_ledger_before(app: AppContext) -> None:
    say(app, 5000)
    with app.store.write() as session:
        site_rows.put_site(session, Site(**SITE))
    assert say(app, 3) == (0, b"")
    assert cuts(app) == []
