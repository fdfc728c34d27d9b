"""The house rules, held against the source: who may import whom, and what the tree's top looks like.

A short walk over the syntax trees; every finding names file and line. The same walk is run on small offending trees,
so that a rule that stopped biting would be noticed.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "aggregator", "site_client", "proto", "deploy", "tests", "docs"}

# Where a file lies -> the roots it must never import. The longest matching folder is not special: all matches apply.
FORBIDDEN: dict[str, set[str]] = {
    "aggregator": {"torch", "monai", "pydicom", "site_client", "deploy"},
    "site_client": {"aggregator", "fastapi", "uvicorn", "deploy"},
    "site_client/agent": {"torch", "monai", "pydicom", "sqlalchemy", "scipy", "sklearn"},
    "site_client/trainer": {"grpc", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/training": {"grpc", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/doctor/network": {"torch", "monai", "pydicom", "sqlalchemy", "scipy", "sklearn"},
    "site_client/doctor/data": {"grpc", "torch", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/ingest": {"grpc", "torch", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/model": {"grpc", "pydicom"},
    "site_client/phantom": {"grpc", "torch", "monai"},
    "proto/federation": {"aggregator", "site_client", "deploy", "torch", "pydicom", "grpc", "sqlalchemy", "fastapi"},
}
# Files whose folder's rule has an exception, each with its reason.
ALLOWED: dict[str, set[str]] = {
    "proto/federation/v1": {"grpc"},  # generated stubs
}
# Prefixes of module names that nobody below may import: room -> what it must not reach inside hemofed.
CLOSED: dict[str, set[str]] = {
    "site_client/agent": {"site_client.ingest", "site_client.model", "site_client.training", "site_client.trainer"},
    "site_client/ingest": {"site_client.agent", "site_client.model", "site_client.training", "site_client.trainer"},
    "site_client/model": {"site_client.agent", "site_client.training", "site_client.trainer"},
    "site_client/training": {"site_client.agent", "site_client.trainer"},
    "site_client/trainer": {"site_client.agent"},
    "site_client/doctor/network": {
        "site_client.ingest",
        "site_client.model",
        "site_client.training",
        "site_client.trainer",
    },
    "site_client/doctor/data": {"site_client.agent"},
    "site_client/phantom": {"site_client.agent", "site_client.training", "site_client.trainer", "site_client.model"},
    "proto/federation/secagg": {
        f"federation.{name}" for name in ("v1", "plan", "errors", "wire", "manifest", "encoding", "chain", "roster")
    },
    "aggregator/store": {
        "aggregator.rounds.submissions",
        "aggregator.rounds.driver",
        "aggregator.rpc",
        "aggregator.dashboard",
    },
}
ONLY_IMPORTED_BY: dict[str, set[str]] = {  # a module -> the only files that may import it
    "grpc:site_client": {"site_client/agent/link.py"},
    "grpc:aggregator": {"aggregator/rpc.py", "aggregator/serve.py"},
}
DOORS = {"aggregator.cli", "aggregator.commands", "aggregator.rpc", "aggregator.dashboard", "site_client.cli"}
MAY_IMPORT_DOORS = {"aggregator/serve.py", "aggregator/cli.py", "site_client/cli.py"}  # they put the program together


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported anywhere in a file, lazy imports included."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, f"relative import of {node.module or '.'}"


def violations(root: Path) -> list[str]:
    found: list[str] = []
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if not file.startswith(("aggregator/", "site_client/", "proto/", "deploy/")) or "_pb2" in file:
            continue
        found.extend(f"{file}:{line}: {why}" for line, name in imports(path) for why in _refusals(file, name))
    if (root / "proto" / "__init__.py").exists():
        found.append("proto/__init__.py:1: must not exist; `import proto` belongs to another library")
    return found


def _refusals(file: str, name: str) -> Iterator[str]:
    top = name.split(".")[0]
    allowed = set().union(*(roots for folder, roots in ALLOWED.items() if file.startswith(folder + "/")), set())
    for folder, roots in FORBIDDEN.items():
        if file.startswith(folder + "/") and top in roots - allowed:
            yield f"{folder} must not import {top}"
    for folder, prefixes in CLOSED.items():
        if file.startswith(folder + "/") and any(_within(name, prefix) for prefix in prefixes):
            yield f"{folder} must not reach {name}"
    for key, files in ONLY_IMPORTED_BY.items():
        module, side = key.split(":")
        if top == module and file.startswith(side + "/") and file not in files:
            yield f"only {', '.join(sorted(files))} may import {module}"
    own_door = any(_within(file.removesuffix(".py").replace("/", "."), door) for door in DOORS)
    if file not in MAY_IMPORT_DOORS and not own_door and any(_within(name, door) for door in DOORS):
        yield f"{name} is a door; nothing imports a door"


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def test_the_source_keeps_the_house_rules() -> None:
    assert violations(ROOT) == []


def test_the_top_of_the_tree_is_exactly_what_the_plan_of_the_house_says() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {line.split("/")[0] for line in listed.splitlines()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


@pytest.mark.parametrize(
    ("file", "source", "finding"),
    [
        (
            "aggregator/rounds/submissions.py",
            "import torch",
            "aggregator/rounds/submissions.py:1: aggregator must not import torch",
        ),
        ("aggregator/x.py", "def f():\n    from site_client import cli", "aggregator/x.py:2: "),
        ("site_client/trainer/worker.py", "import grpc.aio", "site_client/trainer must not import grpc"),
        ("site_client/agent/rounds/participant.py", "from torch import nn", "site_client/agent must not import torch"),
        ("site_client/agent/rounds/participant.py", "import grpc", "only site_client/agent/link.py may import grpc"),
        ("site_client/agent/x.py", "from site_client.model import registry", "must not reach site_client.model"),
        ("proto/federation/secagg/masks.py", "from federation import plan", "must not reach federation.plan"),
        ("aggregator/rounds/submissions.py", "from aggregator.rpc import serve", "is a door"),
        ("proto/__init__.py", "", "proto/__init__.py:1: must not exist"),
    ],
)
def test_an_offending_file_is_named(tmp_path: Path, file: str, source: str, finding: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert any(finding in line for line in violations(tmp_path)), violations(tmp_path)


BLOCKED_IMPORT = """
import importlib, pkgutil, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2].split(","):
            raise ImportError(f"{name} must not be imported on this side")
sys.meta_path.insert(0, Blocked())
for name in sys.argv[1].split(","):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), name + "."):
        if not module.name.endswith((".__main__", ".migrations.env")):  # these act when they are imported
            importlib.import_module(module.name)
"""


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        ("aggregator", "torch,monai,pydicom,site_client"),
        (
            "site_client.agent,site_client.spool,site_client.config,site_client.cli,site_client.doctor.network",
            "torch,monai,pydicom,sqlalchemy",
        ),
        (
            "site_client.trainer,site_client.training,site_client.ingest,site_client.model,site_client.phantom,"
            "site_client.doctor.data",
            "grpc,fastapi",
        ),
    ],
    ids=["aggregator", "agent", "trainer"],
)
def test_each_side_imports_whole_with_the_other_sides_libraries_absent(modules: str, blocked: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT, modules, blocked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
