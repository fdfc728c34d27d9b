"""docs/SECURITY.md names a test for every row of its tables of attacks, and each of them exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "SECURITY.md").read_text()
_ATTACKS = PAGE[PAGE.index("## Attacks, and what stops each") : PAGE.index("## What is not promised")]
ROWS = [
    line for line in _ATTACKS.splitlines() if line.startswith("| ") and not line.startswith(("| attack", "| promise"))
]
_SOURCES = "".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
NAMES = set(re.findall(r"^ *def (\w+)\(", _SOURCES, re.M))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_every_attack_names_tests_that_exist(row: str) -> None:
    cell = row.rstrip("| ").rsplit("|", 1)[1]
    cited = re.findall(r"`([\w./*]+)`(?:(?: \([^)]*\))?: ((?:…[\w]+…?(?:, )?)+))?", cell)
    assert cited, "no test is named"
    for name, patterns in cited:
        if "/" not in name and not name.endswith(".py"):
            assert name in NAMES, f"there is no {name}"
            continue
        files = list((ROOT / "tests").glob(name))
        assert files, f"there is no tests/{name}"
        text = "".join(file.read_text() for file in files)
        for pattern in re.findall(r"\w+", patterns):
            tests = [found for found in re.findall(r"def (test_\w+|\w+)\(", text) if pattern in found]
            assert tests, f"no test in {name} has a name with {pattern}"
