"""Each row of docs/SECURITY.md about an attack, and of docs/RELIABILITY.md about a fault, names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_SECURITY = (ROOT / "docs" / "SECURITY.md").read_text()
_ATTACKS = _SECURITY[_SECURITY.index("## Attacks, and what stops each") : _SECURITY.index("## What is not promised")]
_FAULTS = (ROOT / "docs" / "RELIABILITY.md").read_text()
ROWS = [
    line
    for line in (_ATTACKS + _FAULTS).splitlines()
    if line.startswith("| ") and not line.startswith(("| attack", "| promise", "| fault"))
]
_SOURCES = "".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
NAMES = set(re.findall(r"^ *def (\w+)\(", _SOURCES, re.M))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_every_attack_and_fault_names_tests_that_exist(row: str) -> None:
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
