"""The dashboard in Debian's Chromium: live, held, lost; keyboard, phone, paper; no finding of axe."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sqlalchemy import update

from aggregator.context import AppContext
from aggregator.states import SeatState, SiteStanding
from aggregator.store import site_rows
from aggregator.store.tables import Seat
from tests.aggregator.dashboard_scene import scene
from tests.dashboard_pictures import CHROMIUM, PHONE, WIDE, log_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason=f"needs {CHROMIUM}"),
]


PATHS = (
    "/",
    "/sites",
    "/sites?q=z&order=reported",
    "/sites/graz",
    "/sites/muenster/approve",
    "/invite",
    "/runs",
    "RUN",
    "RUN/abort",
    "RUN/rounds/3",
    "/models",
    "/privacy",
    "/audit",
    "/health",
    "/people",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[AppContext, str]]:
    with scene(tmp_path) as started:
        yield started


@pytest.fixture
def page(browser: Browser, served: tuple[AppContext, str]) -> Iterator[Page]:
    opened = browser.new_page(viewport=WIDE)
    log_in(opened, served[1])
    yield opened
    opened.close()


def become_ready(app: AppContext, site: str) -> None:
    with app.store.write() as session:
        session.execute(update(Seat).where(Seat.site == site, Seat.state == SeatState.OFFERED).values(state="READY"))


def test_the_first_screen_follows_the_round_without_a_reload(served: tuple[AppContext, str], page: Page) -> None:
    expect(page.locator(".next")).to_contain_text("4 of 8 wanted are ready")
    become_ready(served[0], "dresden")
    expect(page.locator(".next")).to_contain_text("5 of 8 wanted are ready", timeout=15_000)
    expect(page.locator("#connection")).to_be_hidden()


def test_a_page_held_by_selected_text_says_so_and_how_old_it_is_until_it_goes_on(
    served: tuple[AppContext, str], page: Page
) -> None:
    page.locator(".next").select_text()
    become_ready(served[0], "dresden")
    banner = page.locator("#connection")
    expect(banner).to_contain_text("This page is held while text is selected: what you see is", timeout=15_000)
    expect(page.locator(".next")).to_contain_text("4 of 8")
    page.evaluate("getSelection().removeAllRanges()")
    expect(page.locator(".next")).to_contain_text("5 of 8", timeout=15_000)
    expect(banner).to_be_hidden()


def test_a_server_that_is_gone_is_said_with_the_age_of_the_page(browser, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with scene(tmp_path) as (_, address):
        page = browser.new_page(viewport=WIDE)
        log_in(page, address)
    expect(page.locator("#connection")).to_contain_text(
        "The aggregator does not answer: what you see is", timeout=30_000
    )
    page.close()


def test_a_site_is_suspended_with_the_keyboard_alone(served: tuple[AppContext, str], page: Page) -> None:
    page.goto(f"{served[1]}/sites/jena")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Suspend":
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/suspend")
    page.get_by_label("Reason").focus()
    page.keyboard.type("a new scanner")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/sites/jena")
    expect(page.locator(".outcome")).to_contain_text("jena is suspended")
    with served[0].store.read() as session:
        assert site_rows.standing(site_rows.get(session, "jena")) is SiteStanding.SUSPENDED


def test_a_viewer_sees_no_button_and_a_typed_confirmation_is_not_replaced_by_a_refresh(
    browser: Browser,
    served: tuple[AppContext, str],
    page: Page,
) -> None:
    page.goto(f"{served[1]}/sites/jena/revoke")
    page.get_by_label("Type jena to confirm").fill("jen")
    # A page that refreshes itself would fetch itself within two seconds; this one never does.
    assert page.locator("main").get_attribute("data-still") == "1"
    expect(page.get_by_label("Type jena to confirm")).to_have_value("jen")
    context = browser.new_context(viewport=WIDE)
    viewer = context.new_page()
    log_in(viewer, served[1], "vera")
    viewer.goto(f"{served[1]}/sites/jena")
    expect(viewer.get_by_text("Revoke")).to_have_count(0)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(
    served: tuple[AppContext, str], page: Page, scheme: Literal["light", "dark"]
) -> None:
    run = page.locator("h1 a").get_attribute("href")
    page.emulate_media(color_scheme=scheme)
    for path in PATHS:
        path = path.replace("RUN", str(run))
        page.goto(f"{served[1]}{path}")
        assert [found["id"] for found in Axe().run(page).response["violations"]] == [], path


def test_no_page_is_wider_than_a_phone(served: tuple[AppContext, str], page: Page) -> None:
    run = page.locator("h1 a").get_attribute("href")
    page.set_viewport_size(PHONE)
    for path in PATHS:
        path = path.replace("RUN", str(run))
        page.goto(f"{served[1]}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


def test_on_paper_no_button_and_no_form_is_printed(served: tuple[AppContext, str], page: Page) -> None:
    page.goto(f"{served[1]}{page.locator('h1 a').get_attribute('href')}")
    page.emulate_media(media="print")
    expect(page.locator(".acts")).to_be_hidden()
    page.goto(f"{served[1]}/sites")
    expect(page.locator("form.finder")).to_be_hidden()
    expect(page.get_by_role("table")).to_be_visible()
