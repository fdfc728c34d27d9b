"""The first screen: what goes on, who is in, who is awaited and why, when it ends, what comes next."""

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from federation.vocabulary import SiteState, StateReason

from aggregator.context import AppContext
from aggregator.dashboard.now_view import after_round
from aggregator.dashboard.site_views import certificate_tone
from aggregator.rounds.outlook import outlook
from aggregator.rounds.snapshot import read_snapshot
from aggregator.runs import lifecycle
from aggregator.runs.plans import plan_of
from aggregator.states import FaultKind, RoundState, RunState, SeatState
from aggregator.store import Cause, Change, fault_rows, round_rows, run_rows, site_rows
from aggregator.store.tables import Certificate, Round, SiteReport
from tests.aggregator.conftest import StandingClock
from tests.aggregator.dashboard_fixtures import report_of, words_of


def first_screen(ada: TestClient) -> str:
    """The first screen as text, in one line."""
    return words_of(ada.get("/").text.split('<section class="now"')[1].split("<h2>Sites</h2>")[0])


def test_it_stands_before_any_table_and_chart(enrolled: AppContext, ada: TestClient) -> None:
    page = ada.get("/").text
    now = page.index('<section class="now"')
    assert now < page.index("<table") < page.index('<svg class="chart"')


def test_its_sentence_is_that_of_the_driver(enrolled: AppContext, ada: TestClient, clock: StandingClock) -> None:
    with enrolled.store.read() as session:
        row = session.query(Round).one()
        sentence = outlook(read_snapshot(session, row, clock()), clock()).sentence
    shown = first_screen(ada)
    assert sentence in shown
    assert "0 of 3 wanted are ready; masking starts at 3, or on Thu 09:00 UTC with at least 3" in shown
    assert "Round 1 of 2: training at the sites" in shown
    assert "Then round 2 of 2 begins." in shown


def test_each_awaited_site_says_why_the_most_urgent_first(
    enrolled: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with enrolled.store.write() as session:
        session.query(SiteReport).filter_by(site="south").one().seen_at = clock() - timedelta(hours=26)
        session.merge(report_of("east", clock(), SiteState.PAUSED, StateReason.USER_ACTIVE, 10))
    shown = first_screen(ada)
    said = ["south silent for 1 d 2 h", "east paused: workstation in use, 10 %", "north training, 40 %"]
    places = [shown.index(sentence) for sentence in said]
    assert places == sorted(places)
    assert "0 In" in shown
    assert "3 Awaited" in shown


def test_an_expired_certificate_is_the_reason_whatever_the_last_report_said(
    enrolled: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with enrolled.store.write() as session:
        for site, days in (("north", -3), ("south", 2), ("east", 80)):
            expires_at = clock() + timedelta(days=days)
            session.add(Certificate(fingerprint=site.encode(), site=site, issued_at=clock(), expires_at=expires_at))
    assert "north certificate expired 3 d ago" in first_screen(ada)
    page = ada.get("/").text
    assert '<span class="tag bad">expired</span>' in page
    assert '<span class="tag warn">2 d left</span>' in page
    assert "80 days" in page


@pytest.mark.parametrize(
    ("days", "tone"), [(None, ""), (80.0, ""), (23.0, ""), (22.0, "warn"), (2.0, "warn"), (-0.1, "bad")]
)
def test_a_certificate_that_should_have_been_renewed_is_amber(days: float | None, tone: str) -> None:
    assert certificate_tone(days, lifetime_days=90) == tone


def test_a_site_that_is_not_in_the_round_says_why(enrolled: AppContext, ada: TestClient, clock: StandingClock) -> None:
    with enrolled.store.write() as session:
        row = session.query(Round).one()
        cause = Cause(clock(), "site:south", StateReason.TOO_FEW_STUDIES)
        decline = {"decline_reason": StateReason.TOO_FEW_STUDIES}
        round_rows.move_seat(session, row, "south", SeatState.OFFERED, SeatState.DECLINED, cause.of("seat:x"), decline)
        round_rows.move_seat(session, row, "north", SeatState.OFFERED, SeatState.READY, cause.of("seat:y"))
        site_rows.suspend(session, "east", Change(clock(), "person:ada", "site:east", "for the test"))
    shown = first_screen(ada)
    assert "1 In north ready" in shown
    assert "2 Not in this round" in shown
    assert "south declined: too few studies" in shown
    assert "east suspended" in shown


def test_a_site_that_sits_out_or_is_in_no_signed_roster_says_so(
    enrolled: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with enrolled.store.write() as session:
        row = session.query(Round).one()
        fault_rows.add(session, row, "south", FaultKind.BAD_SHARES, Cause(clock(), "driver:here", "dealt no shares"))
        site = site_rows.get(session, "east")
        site.signing_key = bytes(32)
    shown = first_screen(ada)
    assert "south sits out up to round 9 for its faults" in shown
    assert "east its keys are not in the roster yet: the custodian has to sign one" in shown


def test_revoked_sites_and_those_that_left_stand_apart(
    enrolled: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with enrolled.store.write() as session:
        change = Change(clock(), "person:ada", "site:east", "for the test")
        site_rows.revoke(session, "east", site_rows.APPROVED, change)
        site_rows.leave(session, "south", site_rows.APPROVED, change)
    assert "east" not in first_screen(ada)
    assert "south" not in first_screen(ada)
    text = ada.get("/").text
    apart = text.index("Revoked or left")
    row = '<th scope="row"><a href="/sites/{}">'
    assert text.index(row.format("north")) < apart < text.index(row.format("east"))


def test_during_masking_it_counts_the_members_that_have_answered(
    enrolled: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with enrolled.store.write() as session:
        row = session.query(Round).one()
        row.state, row.deadline = RoundState.KEYS, clock() + timedelta(seconds=20)
        for seat in round_rows.seats(session, row.id):
            seat.state = SeatState.JOINED if seat.site == "south" else SeatState.KEYED
    shown = first_screen(ada)
    assert "2 of 3 members have sent keys; the members share their secrets when all have; otherwise at" in shown
    assert "2 In" in shown
    assert "1 Awaited south silent for 2 h" in shown


def test_between_rounds_it_says_what_a_person_has_to_do(enrolled: AppContext, ada: TestClient) -> None:
    with enrolled.store.read() as session:
        run_id = session.query(Round).one().run_id
    lifecycle.pause(enrolled, run_id, why="a filter was changed")
    assert "Then no round begins until the run is resumed: it is paused." in first_screen(ada)
    with enrolled.store.write() as session:
        row = session.query(Round).one()
        row.state = RoundState.PUBLISHED
    assert "No round begins until the run is resumed. It was paused because: a filter was changed." in first_screen(ada)
    lifecycle.abort(enrolled, run_id)
    assert "Nothing: no run is in progress, and none is queued." in first_screen(ada)


@pytest.mark.parametrize(
    ("state", "number", "sentence"),
    [
        (RunState.RUNNING, 1, "Then round 2 of 2 begins."),
        (RunState.RUNNING, 2, "Then the sites evaluate the last model, and the run is complete."),
        (RunState.RUNNING, 3, "Then the run is complete."),
        (RunState.PAUSED, 1, "Then no round begins until the run is resumed: it is paused."),
    ],
)
def test_what_follows_a_round_is_what_the_lifecycle_does(
    running: AppContext, clock: StandingClock, state: RunState, number: int, sentence: str
) -> None:
    with running.store.write() as session:
        row = session.query(Round).one()
        run = run_rows.get(session, row.run_id)
        assert after_round(state, plan_of(run), number) == sentence
        row.number, row.state, run.state = number, RoundState.PUBLISHED, state
        session.flush()
        # A model was published, or the last training round would be followed by an abort.
        first = run_rows.newest_model(session, run.run_id)
        run_rows.add_model(session, type(first)(**_columns(first) | {"id": None, "round_number": number}))
        lifecycle.continue_run(session, run, Cause(clock(), "driver:here", "for the test"))
        last = round_rows.newest(session, run.run_id)
        assert last is not None
        assert ("is complete" in sentence and last.number == number) == (run.state is RunState.COMPLETED)
        assert ("begins." in sentence or "evaluate" in sentence) == (last.number == number + 1)


def _columns(row: object) -> dict[str, object]:
    return {key: value for key, value in vars(row).items() if not key.startswith("_")}
