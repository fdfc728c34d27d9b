"""docs/DATA_MODEL.md against the code: every transition, every table, every column, and none that is not there."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import pytest

from aggregator.states import ROUND_TRANSITIONS, RUN_TRANSITIONS, SEAT_TRANSITIONS, SITE_TRANSITIONS
from aggregator.store.tables import Base

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "DATA_MODEL.md").read_text()


@pytest.mark.parametrize(
    ("heading", "transitions"),
    [
        ("A site", SITE_TRANSITIONS),
        ("A run", RUN_TRANSITIONS),
        ("A round", ROUND_TRANSITIONS),
        ("A seat", SEAT_TRANSITIONS),
    ],
)
def test_a_diagram_draws_exactly_the_transitions_of_the_code(
    heading: str, transitions: Mapping[StrEnum, frozenset[StrEnum]]
) -> None:
    diagram = PAGE.split(f"## {heading}\n")[1].split("```")[1]
    drawn = set(re.findall(r"(\w+) --> (\w+)", diagram))
    assert drawn == {(before.value, after.value) for before, nexts in transitions.items() for after in nexts}
    final = set(re.findall(r"(\w+) --> \[\*\]", diagram))
    assert final == {state.value for state, nexts in transitions.items() if not nexts}


def test_the_page_lists_exactly_the_tables_of_the_code() -> None:
    assert set(re.findall(r"^### (\w+)$", PAGE, re.M)) == set(Base.metadata.tables)


@pytest.mark.parametrize("name", sorted(Base.metadata.tables))
def test_a_table_lists_exactly_its_columns(name: str) -> None:
    section = PAGE.split(f"### {name}\n")[1].split("\n### ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == [
        column.name for column in Base.metadata.tables[name].columns
    ]
