"""The tree of errors drawn at the top of each errors.py is the tree of its classes."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(source).with_suffix("").parts)
    for source, house in ((ROOT, "aggregator"), (ROOT, "site_client"), (ROOT / "proto", "federation"))
    for path in (source / house).rglob("errors.py")
)

ROOT_LINE = re.compile(r"^(\w+)$", re.MULTILINE)
BRANCH = re.compile(r"^((?:│   |    )*)[├└]── (\w+)(?:\s{2,}\S.*)?$", re.MULTILINE)


def drawn(docstring: str) -> dict[str, str | None]:
    """Each name in a drawing with the name it hangs on; the root hangs on none."""
    first_branch = BRANCH.search(docstring)
    assert first_branch is not None, "no drawing"
    root = ROOT_LINE.findall(docstring[: first_branch.start()])[-1]
    parents: dict[str, str | None] = {root: None}
    above = [root]  # the names from the root down to the line before
    for indent, name in BRANCH.findall(docstring):
        del above[len(indent) // 4 + 1 :]
        assert name not in parents, f"{name} is drawn twice"
        parents[name] = above[-1]
        above.append(name)
    return parents


def defined(module: ModuleType) -> dict[str, str | None]:
    """Each exception class of a module with its base class there."""
    classes = {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__ == module.__name__
    }
    return {
        name: next((base.__name__ for base in kind.__bases__ if base in classes.values()), None)
        for name, kind in classes.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_the_drawing_is_the_tree_of_the_classes(name: str) -> None:
    module = importlib.import_module(name)
    assert drawn(module.__doc__ or "") == defined(module)


@pytest.mark.parametrize("name", MODULES)
def test_every_error_says_what_it_means(name: str) -> None:
    module = importlib.import_module(name)
    assert [kind for kind in defined(module) if not vars(module)[kind].__dict__.get("__doc__")] == []


def test_a_drawing_is_read_with_its_levels() -> None:
    branches = (
        "├── A      one",
        "│   ├── B",
        "│   │   └── C  two",
        "│   └── D  three",
        "└── E  four",
        "    └── F  five",
    )
    text = "\n".join(("Errors.", "", "Root", *branches))
    assert drawn(text) == {"Root": None, "A": "Root", "B": "A", "C": "B", "D": "A", "E": "Root", "F": "E"}
