"""Acts at the dashboard: confirmed, by role, with a form of the session, in the person's name."""

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from federation.token import Token

from aggregator.context import AppContext
from aggregator.dashboard import pages
from aggregator.dashboard.acting import RUN_FUNCTIONS
from aggregator.dashboard.acting import router as acting_router
from aggregator.dashboard.acts import run_acts, site_acts
from aggregator.dashboard.forms import acting, own_form
from aggregator.sites.authority import Authority, create_authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.states import RUN_TRANSITIONS, Role, RoundState, RunState, SeatState, SiteStanding
from aggregator.store import Change, people, round_rows, run_rows, site_rows
from aggregator.store.tables import Round
from tests.aggregator.conftest import Host, StandingClock
from tests.aggregator.dashboard_fixtures import PASSWORD, act, form_of, words_of
from tests.custodian import CUSTODIAN

ACTING = (Role.OPERATOR, Role.ADMIN)


@pytest.fixture
def ca(app: AppContext, clock: StandingClock) -> Authority:
    """The aggregator's CA, where `init` puts it."""
    return create_authority(app.settings.state.folder / "ca", clock, CUSTODIAN.public_key())


@pytest.fixture
def desk(app: AppContext, ca: Authority, clock: StandingClock) -> EnrolmentService:
    return EnrolmentService(app.store, ca, app.settings.enrolment, clock, app.random)


def standing(app: AppContext, name: str) -> SiteStanding:
    with app.store.read() as session:
        return site_rows.standing(site_rows.get(session, name))


def run_path(app: AppContext) -> str:
    with app.store.read() as session:
        return f"/runs/{session.query(Round).one().run_id.hex()}"


def give(app: AppContext, clock: StandingClock, role: Role) -> None:
    with app.store.write() as session:
        people.change_role(session, "ada", role, Change(clock(), "person:eve", "administrator:ada", "for the test"))


def newest_audit(app: AppContext, subject: str) -> tuple[str, str, str]:
    with app.store.read() as session:
        row = people.audit_trail(session, subject)[0]
    return row.actor, row.after, row.why


def test_every_form_that_changes_something_asks_for_role_and_session() -> None:
    def routes(router: object) -> Iterator[APIRoute]:
        for route in getattr(router, "routes", ()):
            if isinstance(route, APIRoute):
                yield route

    assert not [route.path for route in routes(pages.router) if route.methods != {"GET"}]
    changing = [route for route in routes(acting_router) if "POST" in (route.methods or ())]
    assert len(changing) == 3
    for route in changing:
        assert {acting, own_form} <= {dependency.dependency for dependency in route.dependencies}


def test_a_site_is_suspended_and_resumed_in_the_persons_name(
    running: AppContext, ca: Authority, ada: TestClient
) -> None:
    code, page = act(ada, "/sites/east/suspend", why="a new scanner")
    assert code == 303
    assert "09:00 UTC: east is suspended: no new round takes it." in page
    assert "is suspended" not in words_of(ada.get("/sites/east").text).split("Audit")[0]  # said once
    assert newest_audit(running, "site:east") == ("person:ada", "suspended", "a new scanner")
    assert act(ada, "/sites/east/resume")[0] == 303
    assert newest_audit(running, "site:east") == ("person:ada", "approved", "resumed by the coordinator")


def test_a_site_is_revoked_only_with_its_name_typed(running: AppContext, ca: Authority, ada: TestClient) -> None:
    code, page = act(ada, "/sites/east/revoke", typed="west")
    assert (code, standing(running, "east")) == (409, SiteStanding.APPROVED)
    assert "Expected the name east, typed to confirm, got another text; nothing was done." in page
    code, page = act(ada, "/sites/east/revoke", typed="east")
    assert (code, standing(running, "east")) == (303, SiteStanding.REVOKED)
    assert "roster export, hemofed-custodian sign, roster import" in page
    assert newest_audit(running, "site:east")[:2] == ("person:ada", "revoked")
    assert act(ada, "/sites/east/revoke", typed="east")[0] == 409


def test_a_token_is_shown_once_and_lets_one_host_join(app: AppContext, desk: EnrolmentService, ada: TestClient) -> None:
    code, page = act(ada, "/invite", name="west")
    assert code == 200
    text = re.search(r"\S*west\S{40,}", page)
    assert text is not None
    token = Token.parse(text[0])
    for path in ("/invite", "/sites", "/sites/west", "/audit"):
        assert text[0] not in ada.get(path).text
    assert desk.join(Host().join_request(token)).HasField("pending")
    assert newest_audit(app, "site:west")[1] == "pending"


@pytest.mark.parametrize("name", ["West!", "", "../etc"])
def test_a_name_that_is_no_sites_name_is_refused(ca: Authority, ada: TestClient, name: str) -> None:
    assert act(ada, "/invite", name=name)[0] in (409, 422)


def test_a_site_is_approved_only_after_its_words_were_compared_and_with_those_words(
    app: AppContext, desk: EnrolmentService, ada: TestClient
) -> None:
    host = Host()
    desk.join(host.join_request(desk.invite("west")))
    with app.store.read() as session:
        six_words = site_rows.get(session, "west").fingerprint
    assert six_words in words_of(ada.get("/sites/west/approve").text)
    code, page = act(ada, "/sites/west/approve")
    assert (code, standing(app, "west")) == (409, SiteStanding.PENDING)
    assert "only after its six words were compared" in page
    other = "other words than those that were on the page"
    code, page = act(ada, "/sites/west/approve", compared="true", words=other)
    assert (code, standing(app, "west")) == (409, SiteStanding.PENDING)
    code, page = act(ada, "/sites/west/approve", compared="true")
    assert (code, standing(app, "west")) == (303, SiteStanding.APPROVED)
    assert "west is approved. Then the custodian has to sign" in page
    assert newest_audit(app, "site:west") == ("person:ada", "approved", "six words compared")


def test_a_run_is_paused_resumed_closed_and_aborted(enrolled: AppContext, ada: TestClient) -> None:
    running = enrolled
    path = run_path(running)
    assert act(ada, f"{path}/pause", why="a filter was changed")[0] == 303
    assert newest_audit(running, "run:") == ("person:ada", "paused", "a filter was changed")
    assert act(ada, f"{path}/resume")[0] == 303
    code, page = act(ada, f"{path}/close-now")
    assert (code, "Expected 3 ready hospitals at least, got 0" in page) == (409, True)
    with running.store.write() as session:
        row = session.query(Round).one()
        for seat in round_rows.seats(session, row.id):
            seat.state = SeatState.READY
    assert act(ada, f"{path}/close-now")[0] == 303
    assert newest_audit(running, "round:")[:2] == ("person:ada", "training closed")
    assert act(ada, f"{path}/abort", typed="another run")[0] == 409
    code, page = act(ada, f"{path}/abort", typed="pilot")
    assert (code, "pilot is aborted; its models stay." in page) == (303, True)
    assert newest_audit(running, "run:")[:2] == ("person:ada", "aborted")
    assert act(ada, f"{path}/resume")[0] == 409


@pytest.mark.parametrize("role", list(Role))
def test_a_role_without_the_right_gets_no_button_and_403(
    running: AppContext, ca: Authority, ada: TestClient, clock: StandingClock, role: Role
) -> None:
    run = run_path(running)
    paths = ("/sites/east/suspend", f"{run}/pause", "/invite")
    forms = {path: form_of(ada, path) for path in paths}
    give(running, clock, role)
    for page, path in (("/sites/east", "/sites/east/suspend"), (run, f"{run}/pause"), ("/sites", "/invite")):
        assert (f'href="{path}"' in ada.get(page).text) == (role in ACTING)
        assert ada.get(path).status_code == (200 if role in ACTING else 403)
        done = ada.post(path, data={**forms[path], "name": "west"})
        assert (done.status_code == 403) == (role not in ACTING)
    assert (standing(running, "east") is SiteStanding.SUSPENDED) == (role in ACTING)


@pytest.mark.parametrize("form_token", [None, "", "0" * 64])
def test_a_form_without_the_sessions_token_changes_nothing(
    running: AppContext, ca: Authority, ada: TestClient, form_token: str | None
) -> None:
    fields = {} if form_token is None else {"form_token": form_token}
    assert ada.post("/sites/east/suspend", data=fields).status_code == 403
    assert standing(running, "east") is SiteStanding.APPROVED


def test_the_token_of_another_session_is_refused(running: AppContext, ca: Authority, ada: TestClient) -> None:
    fields = form_of(ada, "/sites/east/suspend")
    ada.post("/logout")
    ada.post("/login", data={"name": "ada", "password": PASSWORD})
    assert ada.post("/sites/east/suspend", data=fields).status_code == 403
    assert standing(running, "east") is SiteStanding.APPROVED


def test_a_page_never_asks_for_what_the_custodian_signs(running: AppContext, ca: Authority, ada: TestClient) -> None:
    for path in ("/roster/import", f"{run_path(running)}/start", "/sites/east/sign"):
        assert ada.get(path).status_code in (404, 409)


def test_an_act_is_refused_without_a_usable_ca(running: AppContext, ada: TestClient) -> None:
    code, page = act(ada, "/sites/east/suspend")
    assert (code, standing(running, "east")) == (409, SiteStanding.APPROVED)
    assert "That did not work" in page


def test_only_acts_that_fit_the_state_are_offered() -> None:
    offered = {
        state: {act.verb for act in site_acts(state, awaits_approval=state is SiteStanding.PENDING, invited=False)}
        for state in SiteStanding
    }
    assert offered == {
        SiteStanding.PENDING: {"approve", "revoke"},
        SiteStanding.APPROVED: {"suspend", "revoke"},
        SiteStanding.SUSPENDED: {"resume", "revoke"},
        SiteStanding.REVOKED: set(),
        SiteStanding.LEFT: set(),
    }
    after = {"pause": RunState.PAUSED, "resume": RunState.RUNNING, "abort": RunState.ABORTED}
    for state in RunState:
        verbs = {act.verb for act in run_acts(state, in_training=False)}
        assert verbs <= set(RUN_FUNCTIONS)
        assert {after[verb] for verb in verbs} <= RUN_TRANSITIONS[state]


def test_a_run_is_not_closed_from_the_page_once_masking_has_begun(running: AppContext, ada: TestClient) -> None:
    path = run_path(running)
    assert f'href="{path}/close-now"' in ada.get(path).text
    with running.store.write() as session:
        session.query(Round).one().state = RoundState.KEYS
    assert f'href="{path}/close-now"' not in ada.get(path).text
    with running.store.read() as session:
        run = run_rows.current(session)
    assert run is not None
    assert run.state is RunState.RUNNING
