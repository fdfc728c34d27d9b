"""The pages name files that exist; docstrings have subjects, and one spelling for a shape."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
HOUSES = "aggregator|site_client|proto|deploy|tests|docs"
SOURCES = [
    path
    for house in ("aggregator", "site_client", "proto/federation", "deploy")
    for path in sorted((ROOT / house).rglob("*.py"))
    if "_pb2" not in path.name
]
# "What a member signs." has no subject, and makes the reader look for one.
QUESTION = re.compile(r"(What|Which|Where|When|Why|How)\b")
ACTOR = re.compile(r"\b(whoever|somebody|nobody|anybody|everybody)\b", re.IGNORECASE)
# f32[B,T,6], and never f32 [B,T,6]: one search finds every array of a shape.
LOOSE_SHAPE = re.compile(r"\b(u?int(8|16|32|64)|f(16|32|64)|float(16|32|64)|bool|intp) \[\w")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_and_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(rf"(?<![\w/.])((?:{HOUSES})/[\w./*-]*[\w*-])", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    # Tables of tests leave out the first folder.
    roots = (ROOT, ROOT / "tests")
    assert [path for path in paths if not any(any(root.glob(path)) for root in roots)] == []
    assert [link for link in links if not (page.parent / link).exists()] == []


def docstrings(path: Path) -> list[tuple[str, str]]:
    """The place and the text of every docstring of a module."""
    nodes = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    texts = [(getattr(node, "lineno", 1), ast.get_docstring(node)) for node in nodes]
    return [(f"{path.relative_to(ROOT)}:{line}", text) for line, text in texts if text]


def test_no_docstring_begins_with_a_question_word() -> None:
    assert [place for path in SOURCES for place, text in docstrings(path) if QUESTION.match(text)] == []


def test_a_docstring_names_its_actor() -> None:
    assert [place for path in SOURCES for place, text in docstrings(path) if ACTOR.search(text)] == []


def test_a_docstring_writes_a_shape_directly_behind_its_dtype() -> None:
    assert [place for path in SOURCES for place, text in docstrings(path) if LOOSE_SHAPE.search(text)] == []
