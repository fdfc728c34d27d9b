"""Takes the pictures of docs/dashboard in Debian's Chromium: python tests/dashboard_pictures.py

Wide and dark, on a phone and on paper. Look at each before you commit it.
"""

import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, ViewportSize, sync_playwright

from tests.aggregator.dashboard_scene import PASSWORD, scene

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "dashboard"
CHROMIUM = "/usr/bin/chromium"
WIDE, PHONE = ViewportSize(width=1280, height=900), ViewportSize(width=390, height=844)


def log_in(page: Page, address: str, name: str = "ada") -> None:
    """Log in and wait for the first screen."""
    page.goto(f"{address}/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{address}/")


def main() -> None:
    """Take every picture."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, scene(Path(folder)) as (_, address), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def take(name: str, path: str, *, whole: bool = False, print_style: bool = False, **options: Any) -> None:
            page = browser.new_page(**options)
            log_in(page, address)
            page.goto(f"{address}{path}")
            if print_style:
                page.emulate_media(media="print")
            page.screenshot(path=PICTURES / f"{name}.png", full_page=whole)
            page.close()

        page = browser.new_page(viewport=WIDE)
        log_in(page, address)
        run = page.locator("h1 a").get_attribute("href") or ""
        page.close()
        take("now", "/", viewport=WIDE)
        take("now-dark", "/", viewport=WIDE, color_scheme="dark")
        take("now-phone", "/", viewport=PHONE)
        take("now-print", "/", viewport={"width": 794, "height": 1123}, print_style=True)
        take("sites", "/sites", viewport=WIDE)
        take("site", "/sites/chemnitz", viewport=WIDE)
        take("approve", "/sites/muenster/approve", viewport=WIDE)
        take("abort-phone", f"{run}/abort", viewport=PHONE)
        take("run", run, viewport=WIDE, whole=True)
        take("round", f"{run}/rounds/3", viewport=WIDE)
        take("audit", "/audit", viewport=WIDE)
        browser.close()


if __name__ == "__main__":
    main()
