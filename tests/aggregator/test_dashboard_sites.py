"""The pages of sites: one for all, one for each, and what a role may read there."""

import pytest
from fastapi.testclient import TestClient

from aggregator.context import AppContext
from aggregator.dashboard import pages
from aggregator.sites.enrolment import EnrolmentService
from aggregator.states import Role
from aggregator.store import Change, people, record, site_rows
from tests.aggregator.conftest import Host, StandingClock
from tests.aggregator.dashboard_fixtures import words_of


def test_a_sites_page_says_how_it_is_and_links_its_rounds(running: AppContext, ada: TestClient) -> None:
    shown = words_of(ada.get("/sites/south").text)
    assert "Silent for 2 h; last report 2 h ago" in shown
    assert "not yet: roster export , the custodian signs, roster import" in shown
    assert "1 has not answered yet" in shown
    assert '<a href="/sites/south">' in ada.get("/").text
    assert ada.get("/sites/west").status_code == 404


def test_a_viewer_sees_no_audit_rows_of_a_site_and_others_only_its_own(
    running: AppContext, ada: TestClient, clock: StandingClock
) -> None:
    with running.store.write() as session:
        site_rows.suspend(session, "east", Change(clock(), "person:eve", "site:east", "a new scanner"))
    with running.store.write() as session:
        record(session, Change(clock(), "person:eve", "site:east-2", "another scanner"), None, "invited")
    shown = words_of(ada.get("/sites/east").text)
    assert "a new scanner" in shown
    assert "another scanner" not in shown
    with running.store.write() as session:
        people.change_role(session, "ada", Role.VIEWER, Change(clock(), "person:eve", "administrator:ada", "test"))
    assert "a new scanner" not in words_of(ada.get("/sites/east").text)


@pytest.mark.parametrize("again", [False, True])
def test_a_site_that_awaits_approval_is_named_on_each_page_of_sites(
    running: AppContext, ada: TestClient, enrolment: EnrolmentService, again: bool
) -> None:
    desk = EnrolmentService(running.store, enrolment.authority, enrolment.settings, enrolment.clock, enrolment.random)
    token = desk.invite("north" if again else "west", replaces="north" if again else None)
    if not again:
        assert "west the token works until 2026-11-24" in words_of(ada.get("/sites").text)
        assert "invited" in words_of(ada.get("/sites/west").text)
    desk.join(Host().join_request(token))
    name = "north" if again else "west"
    for path in ("/", "/sites"):
        assert f"{name} awaits your approval: compare its six words by telephone." in words_of(ada.get(path).text)
    awaiting = "New keys of this site await" if again else "This site awaits"
    assert f"{awaiting} your approval" in words_of(ada.get(f"/sites/{name}").text)


def test_sites_are_paged(running: AppContext, ada: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Next sites" not in ada.get("/sites").text
    monkeypatch.setattr(pages, "SITES_A_PAGE", 2)
    first = ada.get("/sites").text
    assert '<a href="/sites/north">' in first
    assert '<a href="/sites/south">' not in first
    assert "Page 1 of 3 sites." in words_of(first)
    second = ada.get("/sites?page=2").text
    assert '<a href="/sites/south">' in second
    assert "Next sites" not in second
    assert ada.get("/sites?page=0").status_code == 422
