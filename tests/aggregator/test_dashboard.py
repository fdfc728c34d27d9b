"""The dashboard's pages over real rows: works / not logged in / wrong method, and what it must say and never say."""

import os
import re
from datetime import datetime

import pytest
from fastapi.testclient import TestClient
from federation.vocabulary import SiteState, StateReason

from aggregator.context import AppContext
from aggregator.dashboard import model_views, wording
from aggregator.dashboard.app import create_app
from aggregator.dashboard.charts import Curve, Point, line_chart
from aggregator.dashboard.visibility import visibility
from aggregator.runs import lifecycle
from aggregator.runs.metrics import NOTHING
from aggregator.sites.authority import Authority
from aggregator.states import FaultKind, ModelStanding, Role, RoundState, RunState, SeatState
from aggregator.store import Cause, Change, audit_chain, fault_rows, people, round_rows, site_rows
from aggregator.store.tables import Audit, ModelMetrics, Round, SiteReport
from aggregator.units import duration, size
from tests.aggregator.conftest import StandingClock
from tests.aggregator.dashboard_fixtures import PASSWORD, report_of, words_of
from tests.custodian import sign_pending

OF_VERSION_0_1_0 = "scrypt$16$8$1$c3Nzc3Nzc3Nzc3Nzc3Nzcw==$K0G10HgI+rZIAIM6reMjYidHwD5Zm9Zz6IObHoQQE60="  # of PASSWORD


@pytest.mark.parametrize("path", ["/", "/runs", "/runs/00", "/audit"])
def test_every_page_sends_a_stranger_to_the_log_in(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert (reply.status_code, reply.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("path", ["/", "/runs", "/audit"])
def test_pages_answer_before_anything_has_happened(ada: TestClient, path: str) -> None:
    assert ada.get(path).status_code == 200


def test_pages_only_read(ada: TestClient) -> None:
    assert ada.post("/").status_code == 405
    assert ada.delete("/runs").status_code == 405


def test_a_wrong_password_and_an_unknown_name_get_the_same_answer(client: TestClient) -> None:
    wrong = client.post("/login", data={"name": "ada", "password": "not this one"})
    unknown = client.post("/login", data={"name": "nobody", "password": PASSWORD})
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.text.split("As of")[0] == unknown.text.split("As of")[0]


def test_a_name_under_attack_waits_and_is_let_in_afterwards(client: TestClient, clock: StandingClock) -> None:
    for _ in range(5):
        assert client.post("/login", data={"name": "ada", "password": "guess"}).status_code == 401
    assert client.post("/login", data={"name": "ada", "password": PASSWORD}).status_code == 429
    clock.advance(seconds=301)
    assert client.post("/login", data={"name": "ada", "password": PASSWORD}).status_code == 303


def test_logging_out_ends_the_session(ada: TestClient) -> None:
    assert ada.get("/").status_code == 200
    ada.post("/logout")
    assert ada.get("/").status_code == 303


def test_log_ins_failed_ones_and_log_outs_are_audited_and_no_typed_name(
    app: AppContext, client: TestClient, ada: TestClient
) -> None:
    client.post("/login", data={"name": "ada", "password": "wrong horse battery"})
    client.post("/login", data={"name": "my secret password", "password": "x"})
    ada.post("/logout")
    with app.store.read() as session:
        rows = people.audit_trail(session)
        audit_chain.verify(session)
    assert [(row.actor, row.subject, row.after) for row in rows[:4]] == [
        ("person:ada", "administrator:ada", "logged out"),
        ("dashboard", "dashboard", "log-in failed"),
        ("dashboard", "administrator:ada", "log-in failed"),
        ("person:ada", "administrator:ada", "logged in"),
    ]
    assert "my secret password" not in str([(row.subject, row.why) for row in rows])


def test_an_old_hash_is_replaced_at_the_log_in_and_other_sessions_end(app: AppContext, ada: TestClient) -> None:
    with app.store.write() as session:
        person = people.find(session, "ada")
        assert person is not None
        person.password_hash = OF_VERSION_0_1_0
    assert ada.get("/").status_code == 303
    assert ada.post("/login", data={"name": "ada", "password": PASSWORD}).headers["location"] == "/"
    assert ada.get("/").status_code == 200
    with app.store.read() as session:
        person = people.find(session, "ada")
    assert person is not None
    assert person.password_hash.startswith("$argon2id$")


@pytest.mark.parametrize("role", list(Role))
def test_a_viewer_reads_no_audit_and_a_change_of_role_counts_at_once(
    app: AppContext, ada: TestClient, clock: StandingClock, role: Role
) -> None:
    with app.store.write() as session:
        people.change_role(session, "ada", role, Change(clock(), "person:eve", "administrator:ada", "for the test"))
    allowed = role is not Role.VIEWER
    assert ada.get("/audit").status_code == (200 if allowed else 403)
    assert ada.get("/faults/1/evidence").status_code == (404 if allowed else 403)
    assert ('href="/audit"' in ada.get("/").text) == allowed
    assert ada.get("/runs").status_code == 200


def test_the_audit_page_shows_the_head_of_the_chain(app: AppContext, ada: TestClient) -> None:
    with app.store.read() as session:
        head = audit_chain.verify(session)
    text = ada.get("/audit").text
    assert f"Head of the chain after row {head.entries}: <code>{head.digest.hex()}</code>" in text


def test_a_restart_logs_nobody_out(app: AppContext, ada: TestClient) -> None:
    restarted = TestClient(create_app(app), cookies=dict(ada.cookies), follow_redirects=False)
    assert restarted.get("/").status_code == 200
    assert (app.settings.state.folder / "dashboard.key").stat().st_mode & 0o777 == 0o600


def test_a_forged_session_is_none(client: TestClient) -> None:
    client.cookies.set("hemofed_session", "eyJuYW1lIjogImFkYSJ9.forged.signature")
    assert client.get("/").status_code == 303


def test_a_cookie_copied_before_logging_out_is_worth_nothing_afterwards(app: AppContext, ada: TestClient) -> None:
    copied = TestClient(ada.app, cookies=dict(ada.cookies), follow_redirects=False)
    assert copied.get("/").status_code == 200
    ada.post("/logout")
    assert copied.get("/").status_code == 303


def test_removing_an_administrator_ends_their_sessions(app: AppContext, ada: TestClient, clock: StandingClock) -> None:
    change = Change(clock(), "operator", "administrator:ada", "for the test")
    with app.store.write() as session:
        people.remove_administrator(session, "ada", change)
    assert ada.get("/").status_code == 303
    with app.store.write() as session:  # somebody else of that name
        people.add_administrator(session, "ada", "another password", os.urandom(16), change)
    assert ada.get("/").status_code == 303


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.test"}])
def test_another_sites_form_is_refused(ada: TestClient, headers: dict[str, str]) -> None:
    for path in ("/logout", "/login"):
        assert ada.post(path, headers=headers, data={"name": "ada", "password": PASSWORD}).status_code == 403
    assert ada.get("/").status_code == 200


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://testserver"}])
def test_our_own_form_is_accepted(ada: TestClient, headers: dict[str, str]) -> None:
    assert ada.post("/logout", headers=headers).status_code == 303


@pytest.mark.parametrize(("address", "is_secure"), [("http://testserver", False), ("https://testserver", True)])
def test_the_cookie_is_for_this_site_only_and_over_https_never_in_clear(
    app: AppContext, address: str, is_secure: bool
) -> None:
    visitor = TestClient(create_app(app), base_url=address, follow_redirects=False)
    reply = visitor.post("/login", data={"name": "ada", "password": PASSWORD})
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert ("; secure" in cookie) == ("strict-transport-security" in reply.headers) == is_secure


def test_a_chart_never_draws_a_value_outside_its_axis() -> None:
    chart = line_chart("AUC", "x", [Curve("any", (Point(0, 0.13, 3), Point(1, 0.9, 3)))], low=0.4, high=1.0)
    heights = [float(y) for y in re.findall(r'cy="([0-9.]+)"', chart)]
    ticks = re.findall(r'class="tick end"[^>]*>([0-9.]+)<', chart)
    assert heights[0] > heights[1]
    assert float(ticks[0]) <= 0.13
    assert float(ticks[-1]) == 1.0


def test_answers_forbid_foreign_content_and_caching(ada: TestClient) -> None:
    headers = ada.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert "https://" not in ada.get("/").text


def test_the_overview_shows_rounds_sites_and_curves(running: AppContext, ada: TestClient) -> None:
    text = words_of(ada.get("/").text)
    assert "training at the sites" in text
    assert "waiting for east, north, south" in text
    assert re.search(r"in 3 d|in 2 d 23 h", text)  # the deadline
    assert "0.812" in text
    assert "0.346" in text
    assert "AUC of the global model" in text


def test_a_site_that_fell_silent_is_said_to_be_unknown(running: AppContext, ada: TestClient) -> None:
    row = _row_of(ada.get("/").text, "south")
    assert "unknown; last report" in row
    assert "2 h ago" in row
    assert "paused: workstation in use" in row
    assert "unknown" not in _row_of(ada.get("/").text, "north")


def test_a_site_that_left_is_said_so_and_not_to_be_late(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with running.store.write() as session:
        site_rows.leave(
            session, "south", site_rows.APPROVED, Change(clock(), "site:south", "site:south", "left for good")
        )
    row = _row_of(ada.get("/").text, "south")
    assert "left" in row
    assert "unknown" not in row


def test_a_suspended_site_is_shown_apart_from_those_that_take_part(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    assert "No round takes these" not in ada.get("/").text
    with running.store.write() as session:
        site_rows.suspend(session, "east", Change(clock(), "person:ada", "site:east", "for the test"))
    text = ada.get("/").text
    places = [text.index(f'<th scope="row"><a href="/sites/{name}">') for name in ("north", "south", "east")]
    apart = text.index("No round takes these")
    assert places[0] < places[1] < apart < places[2]
    assert "suspended" in _row_of(text, "east")


def test_a_site_that_never_reported_is_said_so(running: AppContext, ada: TestClient) -> None:
    assert "never seen" in _row_of(ada.get("/").text, "east")


def test_a_label_with_too_few_cases_has_no_curve(running: AppContext, ada: TestClient) -> None:
    chart = re.search(r'aria-label="AUC: ([^"]*)"', ada.get("/").text)
    assert chart is not None
    assert chart[1] == "any 0.812 after round 0 (3 sites)"


def test_every_label_shows_its_calibration_beside_the_cohort_it_was_measured_on(
    running: AppContext, ada: TestClient
) -> None:
    text = ada.get("/").text
    assert _row_of(text, "any").split() == ["any", "20", "80", "0.812", "0.400", "0.100"]
    assert "epidural none: fewer than 10 positive or negative slices" in _row_of(text, "epidural")
    assert "judged by 3 sites together" in words_of(text)


def test_a_cohort_below_the_minimum_shows_no_figures_and_says_why(running: AppContext, ada: TestClient) -> None:
    with running.store.write() as session:
        row = session.query(ModelMetrics).one()
        row.cohort_size, row.report, row.train_loss = 2, NOTHING.to_json(), None
    text = words_of(ada.get("/").text)
    assert "2 sites in the sum, below the plan's minimum of 3" in text
    assert "0.812" not in text


def test_a_paused_workstation_is_shown_as_healthy(running: AppContext, ada: TestClient, clock: StandingClock) -> None:
    with running.store.write() as session:
        session.query(SiteReport).filter_by(site="south").one().seen_at = clock()
    page = ada.get("/").text
    assert "unknown" not in _row_of(page, "south")
    assert '<span class="tag calm">paused: workstation in use</span>' in page


def test_a_paused_run_does_not_make_sites_look_dead(running: AppContext, ada: TestClient, clock: StandingClock) -> None:
    """Sites are told to poll every five minutes then, and that is how old a healthy report may be."""
    with running.store.read() as session:
        run_id = session.query(Round).one().run_id
    lifecycle.pause(running, run_id)
    clock.advance(minutes=6)
    assert "unknown" not in _row_of(ada.get("/").text, "north")


S = RoundState


@pytest.mark.parametrize(
    ("reached", "members", "said", "unsaid"),
    [
        ({S.TRAINING}, None, "none is decoded yet", "public keys"),
        ({S.TRAINING, S.KEYS, S.ABANDONED}, None, "none was decoded", "under their masks"),
        ({S.TRAINING, S.KEYS, S.SHARES, S.UPLOAD, S.ABANDONED}, None, "under their masks", "sum of updates"),
        ({S.AGGREGATING, S.ABANDONED}, None, "enough shares to unmask the sum", "none was decoded"),
        ({S.AGGREGATING, S.PUBLISHED}, 4, "over 4 sites together", "none was decoded"),
    ],
)
def test_what_was_visible_follows_the_phases_a_round_went_through(
    reached: set[RoundState], members: int | None, said: str, unsaid: str
) -> None:
    told = " ".join(visibility(reached, members).seen)
    assert said in told
    assert unsaid not in told


def test_every_round_says_what_the_aggregator_could_see(running: AppContext, ada: TestClient) -> None:
    with running.store.read() as session:
        run_id = session.query(Round).one().run_id
    text = words_of(ada.get(f"/runs/{run_id.hex()}/rounds/1").text)
    assert "Visible to the aggregator" in text
    assert "no sum: none is decoded yet" in text
    assert "any one site's update, weight, loss, number of studies or scores" in text


def test_a_published_round_names_how_many_sites_its_sum_is_over(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with running.store.write() as session:
        row = session.query(Round).one()
        row.state, row.members, row.ended_at = RoundState.PUBLISHED, 3, clock()
        for seat in round_rows.seats(session, row.id):
            seat.state = SeatState.REVEALED
    path = f"/runs/{row.run_id.hex()}"
    assert "score histograms over 3 sites together" in words_of(ada.get(f"{path}/rounds/1").text)
    assert "3: east, north, south" in words_of(ada.get(path).text)


def test_a_fault_is_shown_with_its_time_out_and_its_evidence_in_the_run_and_in_the_audit(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    proof = os.urandom(200)
    with running.store.write() as session:
        row = session.query(Round).one()
        cause = Cause(clock(), "driver:here", "dealt shares of no secret; so many were put together")
        for _ in range(2):  # a step that is carried out twice
            fault_rows.add(session, row, "south", FaultKind.BAD_DEALING, cause, proof)
        fault_rows.add(session, row, "north", FaultKind.SILENT, cause.because("was ready, and did not answer"))
    text = ada.get(f"/runs/{row.run_id.hex()}").text
    faults = words_of(text[text.index("<h2>Faults") :])
    assert "south 1 dealt shares of no secret" in faults
    assert "up to round 9" in faults
    assert "north 1 ready, then silent was ready, and did not answer nothing" in faults
    (link,) = set(re.findall(r"/faults/\d+/evidence", text))
    assert ada.get(link).content == proof
    assert "fault: bad dealing" in ada.get("/audit").text
    for nowhere in ("/faults/2/evidence", "/faults/0/evidence", f"/faults/{2**63}/evidence"):
        assert ada.get(nowhere).status_code == 404


def test_an_aborted_run_shows_its_reason(running: AppContext, ada: TestClient) -> None:
    with running.store.read() as session:
        run_id = session.query(Round).one().run_id
    lifecycle.abort(running, run_id, why="the plan had the wrong clip norm")
    assert RunState.ABORTED.value in ada.get("/runs").text
    assert "the plan had the wrong clip norm" in ada.get("/").text
    assert "the plan had the wrong clip norm" in ada.get("/audit").text


def test_a_run_of_many_rounds_is_paged_and_its_newest_judgement_is_found_on_every_page(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with running.store.write() as session:
        first = session.query(Round).one()
        first.state, first.ended_at = RoundState.PUBLISHED, clock()
        kept = {"run_id": first.run_id, "attempt": 1, "state": RoundState.ABANDONED, "base_model": first.base_model}
        times = {"began_at": clock(), "phase_since": clock(), "deadline": clock(), "ended_at": clock()}
        session.add_all(Round(number=number, roster_epoch=0, **kept, **times) for number in range(2, 61))
        path = f"/runs/{first.run_id.hex()}"

    def numbers(page: str) -> list[int]:
        return [int(number) for number in re.findall(r'/rounds/(\d+)"', page)]

    overview, newest = ada.get("/").text, ada.get(path).text
    assert "The newest 10 of 60." in overview
    assert numbers(newest) == list(range(60, 35, -1))
    older = re.search(r'href="[^"]*(\?before=\d+)">Older', newest)
    assert older is not None
    second = ada.get(path + older[1]).text
    assert numbers(second) == list(range(35, 10, -1))
    assert "Newest rounds" in second
    assert numbers(ada.get(f"{path}?before=11").text) == list(range(10, 0, -1))
    for page in (overview, newest, second):
        assert _row_of(page, "any").split() == ["any", "20", "80", "0.812", "0.400", "0.100"]
    assert "60 of 3" in words_of(ada.get("/runs").text)


@pytest.mark.parametrize("hex_id", ["00" * 16, "nonsense"])
def test_an_unknown_run_is_not_found(ada: TestClient, hex_id: str) -> None:
    assert ada.get(f"/runs/{hex_id}").status_code == 404
    assert ada.get(f"/runs/{hex_id}/rounds/1").status_code == 404


def test_the_audit_pages_go_back_to_the_first_row(app: AppContext, ada: TestClient, clock: StandingClock) -> None:
    with app.store.write() as session:
        for number in range(150):
            session.add(_audit_row(clock(), number))
    first = ada.get("/audit").text
    older = re.search(r"/audit\?before=(\d+)", first)
    assert older is not None
    assert "administrator:ada" in ada.get(older[0]).text
    assert ada.get("/audit?before=0").status_code == 422


def _audit_row(at: datetime, number: int) -> Audit:
    return Audit(at=at, actor="operator", subject=f"site:{number}", before=None, after="invited", why="t")


def test_every_state_and_reason_has_its_words() -> None:
    assert set(wording.SITE_STATES) == set(wording.SITE_TONES) == set(SiteState)
    assert set(wording.REASONS) == set(StateReason)
    assert set(wording.ROUND_STATES) == set(RoundState)
    assert set(wording.SEAT_STATES) == set(SeatState)
    assert set(wording.FAULTS) == set(FaultKind)
    assert {str(standing) for standing in ModelStanding} <= set(model_views.STANDINGS)


@pytest.mark.parametrize("state", SiteState)
def test_every_state_and_reason_a_site_reports_is_on_the_page_in_words(
    running: AppContext, ada: TestClient, clock: StandingClock, state: SiteState
) -> None:
    with running.store.write() as session:
        session.merge(report_of("north", clock(), state, ",".join(StateReason), 40))
    row = _row_of(ada.get("/").text, "north")
    assert wording.SITE_STATES[state] in row
    assert all(words in row for words in wording.REASONS.values())
    assert not any(name in row for name in (*SiteState, *StateReason))


def test_a_state_of_a_newer_version_is_shown_by_its_name(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    """A report may be older than a rollback of the aggregator."""
    with running.store.write() as session:
        session.merge(report_of("north", clock(), "SITE_DREAMING", "FULL_MOON", 0))
    assert "SITE_DREAMING: FULL_MOON" in _row_of(ada.get("/").text, "north")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (3700, "1 h 1 min"), (90_000, "1 d 1 h"), (-5, "0 s")]
)
def test_durations_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (1000, "1.0 kB"), (13_400_000, "13.4 MB")])
def test_sizes_are_in_si_units(count: int, text: str) -> None:
    assert size(count) == text


def test_a_chart_escapes_names_and_draws_constant_values() -> None:
    chart = line_chart("AUC", "x", [Curve("<b>", (Point(0, 0.5, 3), Point(1, 0.5, 4))), Curve("empty", ())])
    assert "<b>" not in chart
    assert "&lt;b&gt; 0.500 after round 0 (3 sites), 0.500 after round 1 (4 sites)" in chart
    assert chart.count("<polyline") == 1


def test_a_chart_without_points_says_so() -> None:
    assert "no figures yet" in line_chart("AUC", "x", [])


def _row_of(html: str, site: str) -> str:
    rows = re.findall(r"<tr>.*?</tr>", html, re.S)
    return next(words_of(row) for row in rows if re.search(rf'<th scope="row">(<a [^>]*>)?{site}\b', row))


def test_the_overview_says_that_a_roster_awaits_its_signature_and_nothing_afterwards(
    ada: TestClient, running: AppContext, authority: Authority, clock: StandingClock
) -> None:
    awaited = (
        "A roster awaits the custodian&#39;s signature; it adds east, north, south. See <code>roster export</code>."
    )
    assert awaited in ada.get("/").text
    sign_pending(running.store, authority, clock())
    assert 'class="notice' not in ada.get("/").text
    clock.advance(days=151)
    ada.post("/login", data={"name": "ada", "password": PASSWORD})
    assert "The roster ends on 2027-05-22, in 29 days." in ada.get("/").text
