"""Pages of large consortia: as many statements for a thousand sites as for a few, few bytes, and every site found."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Table, event

from aggregator import config
from aggregator.context import AppContext, open_context
from aggregator.migrations import upgrade
from aggregator.states import SiteStanding
from aggregator.store import Change, people, site_rows
from aggregator.store.tables import Base
from tests.aggregator.conftest import StandingClock
from tests.aggregator.dashboard_crowd import fill
from tests.aggregator.dashboard_fixtures import PASSWORD, words_of

BYTES_MAX = 150_000


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a crowd, made once; tests copy it."""
    folder = tmp_path_factory.mktemp("crowded")
    settings = config.AggregatorSettings(state=config.StateSettings(folder=folder))
    app = replace(open_context(settings), clock=StandingClock())
    upgrade(app.store.engine)
    fill(app, folder, sites=1000, rounds=500, cohort=500, seated_rounds=10)
    app.store.close()
    return folder / "hub.sqlite"


@pytest.fixture
def crowd(app: AppContext, crowded: Path, clock: StandingClock) -> AppContext:
    app.store.close()
    for name in ("hub.sqlite-wal", "hub.sqlite-shm"):
        (app.settings.state.folder / name).unlink(missing_ok=True)
    shutil.copy(crowded, app.settings.state.folder / "hub.sqlite")
    with app.store.write() as session:
        change = Change(clock(), "operator", "administrator:ada", "for the test")
        people.add_administrator(session, "ada", PASSWORD, os.urandom(16), change)
    return app


def run_path(browser: TestClient) -> str:
    found = re.search(r"/runs/[0-9a-f]{32}", browser.get("/").text)
    assert found is not None
    return found[0]


def paths_of(browser: TestClient) -> list[str]:
    run = run_path(browser)
    return [
        "/",
        "/sites",
        "/sites?order=reported&q=7",
        "/sites/hospital-0003",
        "/runs",
        run,
        f"{run}/rounds/7",
        "/audit",
    ]


def names_in(page: str) -> list[str]:
    return re.findall(r'<th scope="row"><a href="/sites/([\w-]+)"', page)


def statements(app: AppContext, browser: TestClient, path: str) -> int:
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1

    event.listen(app.store.engine, "before_cursor_execute", count)
    assert browser.get(path).status_code == 200
    event.remove(app.store.engine, "before_cursor_execute", count)
    return made


def test_pages_of_a_thousand_sites_and_five_hundred_rounds_are_small(crowd: AppContext, ada: TestClient) -> None:
    sizes = {path: len(ada.get(path).content) for path in paths_of(ada)}
    assert max(sizes.values()) <= BYTES_MAX, sizes
    assert sizes["/"] > 10_000  # it shows something


def test_a_page_makes_as_many_statements_for_many_sites_and_rounds_as_for_few(
    app: AppContext, ada: TestClient, tmp_path: Path, clock: StandingClock
) -> None:
    (tmp_path / "few").mkdir()
    fill(app, tmp_path / "few", sites=20, rounds=8, cohort=10)
    few = {path: statements(app, ada, path) for path in paths_of(ada)}
    assert max(few.values()) <= 35, few
    (tmp_path / "many").mkdir()
    with app.store.write() as session:
        for table in reversed(tables_of_a_run()):
            session.execute(table.delete())
    fill(app, tmp_path / "many", sites=300, rounds=60, cohort=150)
    many = {path: statements(app, ada, path) for path in paths_of(ada)}
    assert list(many.values()) == list(few.values())


def tables_of_a_run() -> list[Table]:
    kept = {"administrators", "sessions", "audit"}
    return [table for table in Base.metadata.sorted_tables if table.name not in kept]


def test_sites_are_paged_and_each_stands_on_one_page(crowd: AppContext, ada: TestClient) -> None:
    pages = [names_in(ada.get(f"/sites?page={number}").text) for number in range(1, 11)]
    assert sum(map(len, pages)) == 1000
    assert len({name for names in pages for name in names}) == 1000
    assert "Next sites" in ada.get("/sites?page=9").text
    assert "Next sites" not in ada.get("/sites?page=10").text


def test_sites_are_searched_and_sorted_by_the_server(crowd: AppContext, ada: TestClient, clock: StandingClock) -> None:
    assert names_in(ada.get("/sites?q=0042").text) == ["hospital-0042"]
    assert names_in(ada.get("/sites?q=%25").text) == []
    assert "No site has a name with &lt;b&gt; in it." in ada.get("/sites?q=%3Cb%3E").text
    silent = names_in(ada.get("/sites?order=reported").text)
    assert silent[:2] == ["hospital-0199", "hospital-0399"]
    with crowd.store.write() as session:
        site_rows.suspend(session, "hospital-0199", Change(clock(), "person:ada", "site:hospital-0199", "for the test"))
    page = ada.get("/sites?order=reported").text
    assert names_in(page)[0] == "hospital-0399"  # those that no round takes stand at the end in every order
    assert SiteStanding.SUSPENDED in ada.get("/sites?page=10&order=reported").text
    assert ada.get("/sites?order=nonsense").status_code == 422


def test_seats_of_a_round_are_paged_searched_and_sorted(crowd: AppContext, ada: TestClient) -> None:
    path = f"{run_path(ada)}/rounds/499"
    assert len(names_in(ada.get(path).text)) == 100
    assert names_in(ada.get(f"{path}?q=0999").text) == ["hospital-0999"]
    page = words_of(ada.get(f"{path}?order=sent&page=10").text)
    assert "takes no part too few studies" in page
    assert "Page 10 of 1000 sites" in page
    assert ada.get(f"{run_path(ada)}/rounds/501").status_code == 404


def test_a_round_of_many_names_their_number_and_one_of_few_their_names(crowd: AppContext, ada: TestClient) -> None:
    text = words_of(ada.get(run_path(ada)).text)
    assert "500 sites" in text
    assert "waiting for 500 sites" in text


def test_a_chart_of_many_rounds_ends_with_the_newest(crowd: AppContext, ada: TestClient) -> None:
    page = ada.get(run_path(ada)).text
    assert page.count("<circle") <= 24 * 8
    assert "after round 498 (500 sites)</title>" in page
