"""The dashboard's acts against a web attacker, and against a person with two tabs and a quick finger."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from aggregator.context import AppContext
from aggregator.dashboard.app import HEADERS, create_app, session_key
from aggregator.dashboard.forms import OUTCOME_COOKIE, REFRESH_HEADER
from aggregator.errors import WrongState
from aggregator.runs import lifecycle
from aggregator.sites.authority import Authority, create_authority
from aggregator.states import Role, RoundState, RunState, SeatState, SiteStanding
from aggregator.store import Cause, Change, backup, open_store, people, round_rows, run_rows, site_rows
from aggregator.store.tables import Administrator, DashboardSession, Round, Site
from tests.aggregator.conftest import StandingClock
from tests.aggregator.dashboard_fixtures import PASSWORD, act, form_of, words_of
from tests.custodian import CUSTODIAN

COOKIE = "hemofed_session"


@pytest.fixture(autouse=True)
def ca(app: AppContext, clock: StandingClock) -> Authority:
    return create_authority(app.settings.state.folder / "ca", clock, CUSTODIAN.public_key())


def log_in(browser: TestClient, name: str = "ada") -> TestClient:
    assert browser.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
    return browser


def browser_with(other: TestClient) -> TestClient:
    """Another browser that holds copies of the cookies."""
    return TestClient(other.app, cookies=dict(other.cookies), follow_redirects=False)


def standing(app: AppContext, name: str) -> SiteStanding:
    with app.store.read() as session:
        return site_rows.standing(site_rows.get(session, name))


def run_path(app: AppContext) -> str:
    with app.store.read() as session:
        return f"/runs/{session.query(Round).first().run_id.hex()}"  # type: ignore[union-attr]  # `running` began one


def newest(app: AppContext) -> Round:
    with app.store.read() as session:
        run = run_rows.current(session)
        assert run is not None  # `running` began one
        row = round_rows.newest(session, run.run_id)
    assert row is not None  # with its first round
    return row


# --- sessions ---


def test_a_session_ends_at_its_time_however_much_its_holder_does(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    for number in range(13):
        clock.advance(minutes=55)
        code, _ = act(ada, f"/sites/east/{'resume' if number % 2 else 'suspend'}")
        assert code == 303
        assert "set-cookie" not in ada.get("/").headers
    clock.advance(minutes=6)
    assert ada.get("/").headers["location"] == "/login"


def test_a_session_that_was_ended_stays_ended_after_a_restart(app: AppContext, ada: TestClient) -> None:
    copy = browser_with(ada)
    ada.post("/logout")
    restarted = TestClient(create_app(app), cookies=dict(copy.cookies), follow_redirects=False)
    assert restarted.get("/").status_code == 303


def test_a_planted_cookie_does_not_become_the_session(app: AppContext, client: TestClient) -> None:
    planted = log_in(TestClient(client.app, follow_redirects=False))
    token = planted.cookies[COOKIE]
    reply = client.post("/login", data={"name": "ada", "password": PASSWORD}, headers={"Cookie": f"{COOKIE}={token}"})
    assert reply.cookies[COOKIE] != token
    assert planted.get("/").status_code == 303


def test_a_cookie_says_nothing_and_the_database_holds_no_copy_of_it(app: AppContext, ada: TestClient) -> None:
    token = ada.cookies[COOKIE]
    assert re.fullmatch(r"[\w-]{43}", token)
    with app.store.read() as session:
        rows = session.query(DashboardSession).all()
    assert [row.name for row in rows] == ["ada"]
    assert token.encode() not in b"".join(row.token_hash for row in rows)


def test_over_https_only_a_cookie_of_this_host_alone_is_taken(app: AppContext) -> None:
    visitor = TestClient(create_app(app), base_url="https://testserver", follow_redirects=False)
    reply = log_in(visitor).get("/")
    assert reply.status_code == 200
    token = visitor.cookies[f"__Host-{COOKIE}"]
    planted = TestClient(visitor.app, base_url="https://testserver", follow_redirects=False, cookies={COOKIE: token})
    assert planted.get("/").status_code == 303


def test_an_answer_of_before_the_log_in_takes_no_cookie_away(app: AppContext, ada: TestClient) -> None:
    before = browser_with(ada)
    ada.post("/logout")
    assert "set-cookie" not in before.get("/").headers


def test_a_backup_holds_no_session(app: AppContext, ada: TestClient, tmp_path: Path) -> None:
    """Restored later, it would bring back those that were ended since."""
    backup.back_up(app.settings, tmp_path / "backup")
    copy = open_store(f"sqlite:///{tmp_path / 'backup' / 'hub.sqlite'}")
    with copy.read() as session:
        assert session.query(DashboardSession).all() == []
    copy.close()
    assert ada.get("/").status_code == 200


@pytest.mark.parametrize("left", ["", "ab"])
def test_a_key_that_a_crash_left_short_is_made_anew(app: AppContext, left: str) -> None:
    path = app.settings.state.folder / "dashboard.key"
    path.write_text(left)
    assert len(session_key(app.settings.state.folder)) == 64
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["a\0b", "x" * 128, "\u202eada", "ada\n"])
def test_a_text_that_is_no_name_is_a_wrong_password_and_no_statement(client: TestClient, name: str) -> None:
    assert client.post("/login", data={"name": name, "password": PASSWORD}).status_code == 401


def test_a_password_that_is_too_long_is_not_sent_back(client: TestClient) -> None:
    secret = "correct horse battery staple " * 40
    reply = client.post("/login", data={"name": "ada", "password": secret})
    assert reply.status_code == 422
    assert "Not as the form asks for it: password." in words_of(reply.text)
    assert secret[:20] not in reply.text
    assert {name: reply.headers[name] for name in HEADERS} == HEADERS


# --- forms ---


def test_the_token_of_one_form_serves_no_other(running: AppContext, ada: TestClient) -> None:
    stolen = form_of(ada, "/invite")["form_token"]
    fields = {**form_of(ada, "/sites/east/suspend"), "form_token": stolen}
    assert ada.post("/sites/east/suspend", data=fields).status_code == 403
    of_west = form_of(ada, "/sites/north/suspend")
    assert ada.post("/sites/east/suspend", data=of_west).status_code == 403
    assert standing(running, "east") is SiteStanding.APPROVED


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {"Origin": "http://testserver.evil.test"},
        {"Origin": "http://testserver:81"},
        {"Origin": "https://evil.test", "X-Forwarded-Host": "evil.test"},
    ],
)
def test_a_form_of_another_origin_changes_nothing_even_with_its_token(
    running: AppContext, ada: TestClient, headers: dict[str, str]
) -> None:
    fields = form_of(ada, "/sites/east/suspend")
    assert ada.post("/sites/east/suspend", data=fields, headers=headers).status_code == 403
    assert standing(running, "east") is SiteStanding.APPROVED


def test_no_page_can_be_framed_or_held_by_another_window(running: AppContext, ada: TestClient) -> None:
    for path in ("/", "/sites/east/revoke", "/no-such-page", "/static/style.css", "/login"):
        headers = ada.get(path).headers
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/sites/east/revoke", "abort"])
def test_what_cannot_be_taken_back_asks_for_the_password_of_the_person(
    running: AppContext, ada: TestClient, path: str
) -> None:
    path = f"{run_path(running)}/abort" if path == "abort" else path
    typed = "pilot" if path.endswith("abort") else "east"
    codes = [act(ada, path, typed=typed, password="left at the desk")[0] for _ in range(6)]
    assert codes == [403] * 5 + [429]
    assert standing(running, "east") is SiteStanding.APPROVED
    with running.store.read() as session:
        assert run_rows.active(session) is not None
    log_in(TestClient(ada.app, follow_redirects=False))  # a thief's guesses keep nobody from logging in


@pytest.mark.parametrize("why", ["\x1b[2J", "a\0b", "\u202egnitset", "\x07"])
def test_a_reason_that_could_forge_a_line_of_the_audit_is_refused(
    running: AppContext, ada: TestClient, why: str
) -> None:
    code, page = act(ada, "/sites/east/suspend", why=why)
    assert (code, "characters that print" in page) == (409, True)
    assert standing(running, "east") is SiteStanding.APPROVED


def test_a_reason_of_several_lines_or_with_markup_is_one_line_of_text(running: AppContext, ada: TestClient) -> None:
    assert act(ada, "/sites/east/suspend", why="new\r\nscanner\u00a0<script>alert(1)</script>")[0] == 303
    page = ada.get("/sites/east").text
    assert "new scanner &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page


def test_a_reason_that_is_too_long_is_said_on_a_page(running: AppContext, ada: TestClient) -> None:
    code, page = act(ada, "/sites/east/suspend", why="x" * 201)
    assert (code, "Not as the form asks for it: why." in page) == (422, True)


@pytest.mark.parametrize("name", ["a%00b", "%E2%80%AE", "<b>", "x" * 300])
def test_a_text_that_is_no_sites_name_is_not_found_and_not_looked_up(ada: TestClient, name: str) -> None:
    for path in (f"/sites/{name}", f"/sites/{name}/revoke"):
        reply = ada.get(path)
        assert reply.status_code == 404
        assert "<b>" not in reply.text


def test_no_answer_sends_a_browser_to_the_host_that_a_request_names(ada: TestClient) -> None:
    for path in ("/sites/", "/runs/", "//evil.test/", "/sites/..%2f/"):
        assert "evil.test" not in ada.get(path, headers={"Host": "evil.test"}).headers.get("location", "")


# --- two tabs, a quick finger, a driver ---


def test_a_form_that_is_sent_twice_acts_once_and_says_how_the_site_is(running: AppContext, ada: TestClient) -> None:
    fields = form_of(ada, "/sites/east/suspend")
    assert ada.post("/sites/east/suspend", data=fields).status_code == 303
    again = ada.post("/sites/east/suspend", data=fields)
    assert again.status_code == 409
    assert "This does not fit east, which is suspended; nothing was done." in words_of(again.text)


def test_a_form_about_keys_that_were_replaced_meanwhile_is_refused(running: AppContext, ada: TestClient) -> None:
    fields = form_of(ada, "/sites/east/suspend")
    with running.store.write() as session:
        session.execute(update(Site).where(Site.name == "east").values(signing_key=b"another host's".ljust(32)))
    reply = ada.post("/sites/east/suspend", data=fields)
    assert (reply.status_code, standing(running, "east")) == (409, SiteStanding.APPROVED)
    assert "east has changed since this form was made" in words_of(reply.text)


def test_training_is_closed_in_the_round_that_was_shown_and_in_no_later_one(
    enrolled: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    path = f"{run_path(enrolled)}/close-now"
    fields = form_of(ada, path)
    with enrolled.store.write() as session:
        run, row = run_rows.current(session), session.query(Round).one()
        assert run is not None  # `enrolled` began it
        row.state, row.ended_at = RoundState.ABANDONED, clock()
        session.flush()
        lifecycle.continue_run(session, run, Cause(clock(), "driver:here", "next round"))
        second = round_rows.newest(session, run.run_id)
        assert second is not None
        for name in ("north", "south", "east"):
            round_rows.seat(session, second.id, name).state = SeatState.READY  # type: ignore[union-attr]  # seated above
    assert ada.post(path, data=fields).status_code == 409
    with pytest.raises(WrongState, match="expected round 1 in training, got round 2"):
        lifecycle.close_now(enrolled, newest(enrolled).run_id, round_number=1)
    assert newest(enrolled).deadline > clock() + timedelta(hours=1)


def test_training_is_not_closed_for_sites_that_no_cohort_takes(enrolled: AppContext, ada: TestClient) -> None:
    """A site that was suspended after it was ready counted; the driver then abandoned the round and its training."""
    with enrolled.store.write() as session:
        for seat in round_rows.seats(session, session.query(Round).one().id):
            seat.state = SeatState.READY
    assert act(ada, "/sites/east/suspend")[0] == 303
    code, page = act(ada, f"{run_path(enrolled)}/close-now")
    assert (code, "Expected 3 ready hospitals at least, got 2" in page) == (409, True)


def test_a_run_that_ended_meanwhile_is_not_paused(running: AppContext, ada: TestClient) -> None:
    path = f"{run_path(running)}/pause"
    fields = form_of(ada, path)
    with running.store.write() as session:
        run = run_rows.current(session)
        assert run is not None
        run.state = RunState.COMPLETED
    reply = ada.post(path, data=fields)
    assert (reply.status_code, "which is completed; nothing was done" in words_of(reply.text)) == (409, True)


def test_a_name_with_several_spaces_is_typed_as_it_is_seen(running: AppContext, ada: TestClient) -> None:
    with running.store.write() as session:
        run = run_rows.current(session)
        assert run is not None
        run.name = " the  pilot "
    assert act(ada, f"{run_path(running)}/abort", typed="the pilot")[0] == 303


def test_a_reload_of_the_page_with_the_token_does_not_void_the_token(app: AppContext, ada: TestClient) -> None:
    fields = {**form_of(ada, "/invite"), "name": "west"}
    first = ada.post("/invite", data=fields)
    with app.store.read() as session:
        kept = site_rows.invitation(session, "west")
    again = ada.post("/invite", data=fields)
    assert (first.status_code, again.status_code) == (200, 409)
    assert "west has a token already" in words_of(again.text)
    with app.store.read() as session:
        assert site_rows.invitation(session, "west").secret_hash == kept.secret_hash  # type: ignore[union-attr]  # above
    assert ada.post("/invite", data={**fields, "again": "true"}).status_code == 200


def test_the_outcome_of_an_act_is_said_on_its_page_and_not_eaten_by_another_tab(
    running: AppContext, ada: TestClient
) -> None:
    reply = ada.post("/sites/east/suspend", data=form_of(ada, "/sites/east/suspend"))
    assert "is suspended: no new round" not in ada.get("/sites").text
    refreshed = ada.get(reply.headers["location"], headers={REFRESH_HEADER: "1"})
    assert "is suspended: no new round" not in refreshed.text
    assert "is suspended: no new round" in ada.get(reply.headers["location"]).text
    assert "is suspended: no new round" not in ada.get(reply.headers["location"]).text


def test_a_sentence_that_another_host_of_the_domain_plants_is_not_said(running: AppContext, ada: TestClient) -> None:
    ada.cookies.set(OUTCOME_COOKIE, '["x","East is revoked. Call +1 555 0100."].forged')
    assert "555" not in ada.get("/sites/east").text


@pytest.mark.parametrize("role", [Role.VIEWER, Role.AUDITOR])
def test_a_form_of_before_a_lower_role_changes_nothing(
    running: AppContext, ada: TestClient, clock: StandingClock, role: Role
) -> None:
    fields = form_of(ada, "/sites/east/suspend")
    with running.store.write() as session:
        people.change_role(session, "ada", role, Change(clock(), "person:eve", "administrator:ada", "for the test"))
    assert ada.post("/sites/east/suspend", data=fields).status_code == 403
    assert standing(running, "east") is SiteStanding.APPROVED


@pytest.mark.parametrize(
    "end", [lambda session: session.query(Administrator).delete(), None], ids=["removed", "logout"]
)
def test_a_form_of_an_ended_session_changes_nothing(
    running: AppContext, ada: TestClient, end: Callable[..., object] | None
) -> None:
    fields, copy = form_of(ada, "/sites/east/suspend"), browser_with(ada)
    if end is None:
        ada.post("/logout")
    else:
        with running.store.write() as session:
            end(session)
    assert copy.post("/sites/east/suspend", data=fields).headers["location"] == "/login"
    assert standing(running, "east") is SiteStanding.APPROVED
