"""The pages name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
HOUSES = "aggregator|site_client|proto|deploy|tests|docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_and_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(rf"(?<![\w/.])((?:{HOUSES})/[\w./*-]*[\w*-])", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    # Tables of tests leave out the first folder.
    roots = (ROOT, ROOT / "tests")
    assert [path for path in paths if not any(any(root.glob(path)) for root in roots)] == []
    assert [link for link in links if not (page.parent / link).exists()] == []
