"""The pages Models, Privacy, Health and People: what they show, and to whom."""

import os

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from aggregator.context import AppContext
from aggregator.dashboard.app import create_app
from aggregator.dashboard.model_views import STANDINGS
from aggregator.states import ModelStanding, Role, RoundState
from aggregator.store import Change, alert_rows, people, run_rows
from aggregator.store.session_rows import Visitor
from aggregator.store.tables import DashboardSession, ModelVersion, RaisedAlert, Round
from tests.aggregator.conftest import StandingClock
from tests.aggregator.dashboard_fixtures import PASSWORD, form_of, words_of

NEW = "another horse battery"


def give(app: AppContext, clock: StandingClock, role: Role, name: str = "ada") -> None:
    with app.store.write() as session:
        change = Change(clock(), "person:eve", f"administrator:{name}", "for the test")
        if people.find(session, name) is None:
            people.add_administrator(session, name, PASSWORD, os.urandom(16), change, role)
        else:
            people.change_role(session, name, role, change)


def logged_in(app: AppContext, name: str = "ada", password: str = PASSWORD) -> TestClient:
    browser = TestClient(create_app(app), follow_redirects=False)
    assert browser.post("/login", data={"name": name, "password": password}).status_code == 303
    return browser


def path_to_end(browser: TestClient, name: str) -> str:
    page = browser.get("/people").text
    before = page[: page.index(f"End the session of {name}")]
    return before[before.rindex('action="') + 8 :].split('"')[0]


@pytest.mark.parametrize("path", ["/models", "/privacy", "/health", "/people"])
def test_each_page_is_linked_answers_without_a_run_and_sends_strangers_away(
    app: AppContext, ada: TestClient, path: str
) -> None:
    assert f'href="{path}"' in ada.get("/").text
    assert ada.get(path).status_code == 200
    assert TestClient(ada.app, follow_redirects=False).get(path).headers["location"] == "/login"


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("path", ["/models", "/privacy", "/health", "/people"])
def test_every_role_reads_them(
    running: AppContext, ada: TestClient, clock: StandingClock, path: str, role: Role
) -> None:
    give(running, clock, role)
    assert ada.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/models?run=00", "/privacy?run=nonsense"])
def test_an_unknown_run_is_not_found(ada: TestClient, path: str) -> None:
    assert ada.get(path).status_code == 404


# --- models ---


def test_models_show_their_lineage_standing_and_figures(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with running.store.write() as session:
        row = session.query(Round).one()
        row.state, row.ended_at, row.members, row.next_model = RoundState.PUBLISHED, clock(), 3, b"n" * 32
        second = Round(run_id=row.run_id, number=2, attempt=1, state=RoundState.PUBLISHED, base_model=b"n" * 32)
        second.roster_epoch, second.members, second.ended_at = 1, 3, clock()
        second.began_at = second.phase_since = second.deadline = clock()
        session.add(second)
        session.execute(update(ModelVersion).values(standing=ModelStanding.ACCEPTED.name))
        for number, digest, state in ((1, b"n" * 32, ModelStanding.REFUSED), (2, b"o" * 32, ModelStanding.CANDIDATE)):
            session.add(
                ModelVersion(
                    run_id=row.run_id,
                    round_number=number,
                    digest=digest,
                    blob=digest,
                    size_bytes=2_000_000,
                    created_at=clock(),
                    standing=state,
                )
            )
    text = words_of(ada.get("/models").text)
    assert "after round 2 candidate, not judged yet next round begins from it after round 1" in text
    assert "after round 1 refused initial" in text
    assert "initial accepted – 0.812" in text
    assert text.index("after round 2") < text.index("after round 1 refused")


def test_every_standing_has_words() -> None:
    assert set(STANDINGS) >= {standing.value for standing in ModelStanding}


def test_models_of_many_rounds_are_paged(running: AppContext, ada: TestClient, clock: StandingClock) -> None:
    with running.store.write() as session:
        run = run_rows.current(session)
        assert run is not None  # `running` began it
        for number in range(1, 151):
            model = {"digest": os.urandom(32), "blob": os.urandom(32), "size_bytes": 1, "created_at": clock()}
            session.add(ModelVersion(run_id=run.run_id, round_number=number, standing=None, **model))
    first = ada.get("/models").text
    assert first.count("after round") >= 100
    older = ada.get(f"/models?run={run.run_id.hex()}&before=51").text
    assert "initial" in words_of(older)
    assert "Older models" in first
    assert "Older models" not in older


# --- privacy ---


def test_privacy_says_what_the_plan_promises_and_what_stays_hidden(running: AppContext, ada: TestClient) -> None:
    text = words_of(ada.get("/privacy").text)
    assert "This plan has no [privacy]: the sum is not noised" in text
    assert "any one site's update, weight, loss, number of studies or scores" in text
    assert "over at least 3 sites" in text


# --- health ---


def test_health_shows_checks_alerts_with_their_step_and_who_is_told(running: AppContext, clock: StandingClock) -> None:
    def checks() -> list[tuple[str, str]]:
        return [("driver", ""), ("disk", "expected 1024 MiB free, got 3 MiB; make room")]

    with running.store.write() as session:
        alert = {"kind": "site_silent", "subject": "north", "sentence": "north has been silent for 2 d."}
        alert_rows.add(session, [RaisedAlert(key="site_silent:north", since=clock(), told_at=None, **alert)])
    browser = TestClient(create_app(running, checks), follow_redirects=False)
    browser.post("/login", data={"name": "ada", "password": PASSWORD})
    text = words_of(browser.get("/health").text)
    assert "driver ok disk fault expected 1024 MiB free, got 3 MiB; make room" in text
    assert "north has been silent for 2 d." in text
    assert "Call the hospital" in text
    assert "No person is told" in text


# --- people ---


def test_an_administrator_sees_all_sessions_and_others_only_their_own(
    app: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    give(app, clock, Role.OPERATOR, "bob")
    bob = logged_in(app, "bob")
    assert "bob" in words_of(ada.get("/people").text)
    assert "Who may log in" in ada.get("/people").text
    mine = words_of(bob.get("/people").text)
    assert "ada" not in mine
    assert "Who may log in" not in mine


def test_a_session_is_ended_for_good_by_its_person_and_it_is_audited(app: AppContext, ada: TestClient) -> None:
    stolen = logged_in(app)
    path = path_to_end(ada, "ada")
    page = ada.get("/people").text
    token = page.split(path)[1].split('name="form_token" value="')[1].split('"')[0]
    assert ada.post(path, data={"form_token": token}).status_code == 303
    assert stolen.get("/").headers["location"] == "/login"
    assert ada.get("/").status_code == 200
    with app.store.read() as session:
        row = people.audit_trail(session)[0]
    assert (row.actor, row.subject, row.after) == ("person:ada", "administrator:ada", "session ended")
    assert ada.post(path, data={"form_token": token}).status_code == 404


def test_no_person_but_an_administrator_ends_the_session_of_another(
    app: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    give(app, clock, Role.OPERATOR, "bob")
    bob = logged_in(app, "bob")
    path = path_to_end(ada, "bob")
    give(app, clock, Role.OPERATOR)
    token = token_for(ada, path)
    assert ada.post(path, data={"form_token": token}).status_code == 404
    assert bob.get("/").status_code == 200


def token_for(browser: TestClient, path: str) -> str:
    """The token that a form of this browser's session to `path` would have."""
    state = browser.app.state  # type: ignore[attr-defined]  # FastAPI's
    with state.context.store.read() as session:
        row = session.query(DashboardSession).filter_by(name="ada").one()
    token: str = state.forms.of(Visitor(row.token_hash, "ada", Role.OPERATOR), path)
    return token


def test_a_changed_password_ends_all_other_sessions_and_keeps_this_one(app: AppContext, ada: TestClient) -> None:
    other, before = logged_in(app), ada.cookies["hemofed_session"]
    fields = {**form_of(ada, "/people"), "password": PASSWORD, "chosen": NEW, "repeated": NEW}
    fields["form_token"] = token_of_password(ada)
    assert ada.post("/people/password", data=fields).headers["location"] == "/people"
    assert ada.get("/").status_code == 200
    assert ada.cookies["hemofed_session"] != before
    assert other.get("/").status_code == 303
    logged_in(app, password=NEW)


@pytest.mark.parametrize(
    ("changed", "code", "says"),
    [
        ({"password": "a guess of mine"}, 403, "Expected your password"),
        ({"repeated": "another text entirely"}, 409, "Expected the new password twice"),
        ({"chosen": "short", "repeated": "short"}, 409, "at least 12 characters"),
        ({"form_token": "0" * 64}, 403, "This form is of another session"),
    ],
)
def test_a_password_is_not_changed_by_a_wrong_form(
    app: AppContext, ada: TestClient, changed: dict[str, str], code: int, says: str
) -> None:
    fields = {"password": PASSWORD, "chosen": NEW, "repeated": NEW, "form_token": token_of_password(ada)}
    reply = ada.post("/people/password", data=fields | changed)
    assert (reply.status_code, says in words_of(reply.text)) == (code, True)
    logged_in(app)


def token_of_password(browser: TestClient) -> str:
    form = browser.get("/people").text.split('action="/people/password"')[1]
    return form.split('name="form_token" value="')[1].split('"')[0]
