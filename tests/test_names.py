"""One name, one meaning: class names, import names and names of tests, held against the whole source."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOUSES = {"aggregator": ROOT, "site_client": ROOT, "federation": ROOT / "proto", "deploy": ROOT}
NAME_LENGTH_MAX = 89


@cache
def sources(house: str) -> dict[str, ast.Module]:
    """Every module of a house, generated stubs included, by its dotted name."""
    folder = HOUSES[house]
    modules = {}
    for path in sorted((folder / house).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return modules


@cache
def classes() -> dict[str, list[str]]:
    """The modules that define each public class, by its name."""
    modules_of = defaultdict(list)
    for house in HOUSES:
        for module, tree in sources(house).items():
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    modules_of[node.name].append(module)
    return modules_of


def explained() -> set[str]:
    """The names in the last table of docs/GLOSSARY.md, which says why two classes share each."""
    table = (ROOT / "docs" / "GLOSSARY.md").read_text().split("## One name, two classes\n")[1]
    return {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def test_two_public_classes_share_a_name_only_where_the_glossary_says_why() -> None:
    shared = {name: modules for name, modules in classes().items() if len(modules) > 1}
    assert shared.keys() - explained() == set(), shared


def test_the_glossary_explains_no_class_name_that_stands_once() -> None:
    assert {name for name in explained() if len(classes()[name]) < 2} == set()


def test_two_modules_of_one_package_are_never_imported_under_one_name() -> None:
    modules = {module for house in HOUSES for module in sources(house)}
    for house in HOUSES:
        meaning: dict[str, set[str]] = defaultdict(set)
        for tree in sources(house).values():
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module:
                    for alias in node.names:
                        if (name := f"{node.module}.{alias.name}") in modules:
                            meaning[alias.asname or alias.name].add(name)
        assert {name: found for name, found in meaning.items() if len(found) > 1} == {}


def test_the_name_of_a_test_is_a_sentence_of_fewer_than_90_characters() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {len(node.name)} characters"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > NAME_LENGTH_MAX
    ]
    assert too_long == []


def test_each_package_configures_its_log_in_one_place() -> None:
    places = {
        module
        for house in HOUSES
        for module, tree in sources(house).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "structlog.configure"
    }
    assert places == {"aggregator.logging_setup", "site_client.logging_setup"}
