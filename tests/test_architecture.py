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

# A room imports rooms on lower floors of its house, and nothing on its own floor or above. A room is a folder, or a
# file that stands outside all folders. docs/ARCHITECTURE.md shows the same floors; a test compares.
FLOORS: dict[str, list[str]] = {
    "aggregator": [
        "cli.py custodian",
        "commands",
        "serve.py",
        "rpc dashboard health",
        "alerts",
        "rounds",
        "runs",
        "sites",
        "context.py",
        "migrations web_server.py",
        "store",
        "config.py",
        "toml_file.py network.py signing_requests.py",
        "states.py secret_file.py units.py sev_snp.py",
        "errors.py memory.py logging_setup.py",
    ],
    "site_client": [
        "cli.py",
        "commands",
        "prove benchmark packing foreground.py",
        "doctor inference",
        "status.py calibration agent/service.py agent/commands",
        "trainer agent/rounds agent/link.py agent/connection.py",
        "training agent/identity receiver bedside",
        "model phantom agent/egress agent/privacy",
        "ingest/catalog agent/status_file.py agent/backoff.py agent/chained_file.py agent/evidence.py",
        "ingest/series ingest/labels",
        "ingest/files",
        "ingest",
        "spool.py metered.py disk_watch.py receiver/settings.py received_files.py",
        "records.py config.py check_result.py",
        "windows.py files.py bus.py typed_json.py logging_setup.py toml_settings.py",
        "untrusted_files.py",
        "errors.py",
    ],
    "proto/federation": [
        "chain.py certificate.py forecast.py",
        "encoding",
        "plan.py",
        "moving.py privacy.py gate.py release.py",
        "architectures.py sealed_model.py",
        "manifest.py roster.py rollback.py token.py sealing.py",
        "signing.py wire.py hpke.py masking_messages.py fingerprint.py chunk_sizes.py",
        "vocabulary.py limits.py bandwidth.py description.py bounds.py accounting.py",
        "secagg errors.py labels.py pieces.py notify.py two_sums.py v1",
    ],
    "deploy": ["simulation demonstration deb"],
}
# Where a file lies -> the libraries it must never import. All folders that hold it apply.
FORBIDDEN: dict[str, set[str]] = {
    "aggregator": {"torch", "monai", "pydicom", "site_client", "deploy"},
    "site_client": {"aggregator", "fastapi", "uvicorn", "deploy"},
    "site_client/agent": {"torch", "monai", "pydicom", "sqlalchemy", "scipy", "sklearn"},
    "site_client/trainer": {"grpc", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/training": {"grpc", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/doctor/network": {"torch", "monai", "pydicom", "sqlalchemy", "scipy", "sklearn"},
    "site_client/doctor/data": {"grpc", "torch", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/doctor/compute": {"grpc", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/ingest": {"grpc", "torch", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/model": {"grpc", "pydicom"},
    "site_client/packing": {"grpc", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/bedside": {"grpc", "torch", "monai", "requests", "httpx", "urllib", "socket", "http"},
    "site_client/receiver": {"grpc", "torch", "monai", "sqlalchemy", "scipy", "sklearn", "gdcm", "numpy"},
    "site_client/phantom": {"grpc", "torch", "monai"},
    "proto/federation": {"aggregator", "site_client", "deploy", "torch", "pydicom", "grpc", "sqlalchemy", "fastapi"},
}
ALLOWED: dict[str, set[str]] = {"proto/federation/v1": {"grpc"}}  # generated stubs
# The wall between the two halves of a site: room -> what it must not reach inside hemofed, on whatever floor.
CLOSED: dict[str, set[str]] = {
    "site_client/agent": {"ingest", "model", "training", "calibration", "trainer", "phantom", "receiver"},
    "site_client/ingest": {"agent", "receiver"},
    "site_client/model": {"agent", "receiver"},
    "site_client/training": {"agent", "receiver"},
    "site_client/calibration": {"agent", "receiver"},
    "site_client/trainer": {"agent", "receiver"},
    "site_client/phantom": {"agent", "receiver"},
    "site_client/receiver": {"agent", "ingest", "model", "training", "calibration", "trainer", "phantom", "spool.py"},
    "site_client/packing": {"agent", "trainer", "receiver"},
    "site_client/bedside": {"agent", "training", "calibration", "trainer", "phantom", "receiver"},
    "site_client/doctor/network": {"ingest", "model", "training", "calibration", "trainer", "phantom"},
    "site_client/doctor/data": {"agent"},
    "site_client/doctor/compute": {"agent"},
    "site_client/agent/egress": {"agent/link.py", "agent/identity", "agent/rounds", "agent/commands"},
}
ONLY_IMPORTED_BY: dict[str, set[str]] = {  # a library -> the only rooms of that side that may import it
    "grpc:site_client": {"site_client/agent/link.py"},
    "grpc:aggregator": {"aggregator/rpc"},
    "pynetdicom:site_client": {"site_client/receiver"},
}


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
        found.extend(f"{file}:{line}: {why}" for line, name in imports(path) for why in _refusals(root, file, name))
    if (root / "proto" / "__init__.py").exists():
        found.append("proto/__init__.py:1: must not exist; `import proto` belongs to another library")
    return found


def _refusals(root: Path, file: str, name: str) -> Iterator[str]:
    top = name.split(".")[0]
    allowed = set().union(*(roots for folder, roots in ALLOWED.items() if _in(file, folder)), set())
    for folder, roots in FORBIDDEN.items():
        if _in(file, folder) and top in roots - allowed:
            yield f"{folder} must not import {top}"
    for key, rooms in ONLY_IMPORTED_BY.items():
        module, side = key.split(":")
        if top == module and _in(file, side) and not any(_in(file, room) for room in rooms):
            yield f"only {', '.join(sorted(rooms))} may import {module}"
    target = _file_of(root, name)
    if target is None:
        return
    for folder, others in CLOSED.items():
        if _in(file, folder) and any(_in(target, f"site_client/{other}") for other in others):
            yield f"{folder} must not reach {name}"
    here, there = _room(file), _room(target)
    if here is None or there is None:
        yield f"{file if here is None else target} stands in no room of FLOORS"
    elif here != there and _house(here) == _house(there) and _ROOMS[there] <= _ROOMS[here]:
        yield f"{here} must not import {there}, which stands on its own floor or above"


def _house(room: str) -> str:
    return next(house for house in FLOORS if _in(room, house))


def _in(file: str, room: str) -> bool:
    return file == room or file.startswith(room + "/")


def _file_of(root: Path, name: str) -> str | None:
    """The file or folder of this tree that a dotted name is, or is in; None for other people's modules."""
    parts = name.split(".")
    if parts[0] == "federation":
        parts = ["proto", *parts]
    if parts[0] not in ("aggregator", "site_client", "deploy", "proto"):
        return None
    while parts:
        path = root.joinpath(*parts)
        if path.with_suffix(".py").exists():
            return path.with_suffix(".py").relative_to(root).as_posix()
        if path.is_dir():
            return path.relative_to(root).as_posix() + "/__init__.py"
        parts.pop()
    return None


def _room(file: str) -> str | None:
    """The room that holds a file, the longest that does."""
    return max((room for room in _ROOMS if _in(file, room)), key=len, default=None)


_ROOMS = {
    f"{house}/{room}": number
    for house, floors in FLOORS.items()
    for number, floor in enumerate(floors)
    for room in floor.split()
}  # its floor, 0 being the top


def test_the_source_keeps_the_house_rules() -> None:
    assert violations(ROOT) == []


def test_only_reader_processes_parse_and_decode_what_strangers_wrote() -> None:
    """Of what ingest imports, these lead to a parser or a decoder of an image's bytes."""
    modules = ("pixels", "header_pass", "parse", "reader_process", "archives", "sources", "single_frames", "multiframe")
    doors = tuple(f"ingest.files.{module}" for module in modules)
    # Of images that they made themselves, and of the receiver's own report of commitment.
    writers = {
        "site_client/phantom/dicom.py",
        "site_client/prove/canaries.py",
        "site_client/receiver/commitments.py",
    }
    found = []
    for path in sorted((ROOT / "site_client").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for line, name in imports(path):
            parses = name.removeprefix("site_client.").startswith(doors) or name.startswith(("pydicom", "gdcm"))
            parses = parses and not name.startswith("pydicom.uid")  # names of syntaxes, which read nothing
            if parses and not file.startswith("site_client/ingest/files/") and file not in writers:
                found.append(f"{file}:{line}: imports {name}; ask `ingest/files/readers` instead")
    assert found == []
    inside = {
        path.name
        for path in (ROOT / "site_client/ingest/files").glob("*.py")
        for _, name in imports(path)
        if name.startswith(("site_client.ingest.files.pixels", "site_client.ingest.files.header_pass"))
    }
    assert inside == {"reader_process.py"}


def test_every_file_has_a_room_and_every_room_has_files() -> None:
    files = [
        file
        for file in subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
        if file.startswith(("aggregator/", "site_client/", "proto/federation/", "deploy/"))
        and not file.endswith(("__init__.py", "__main__.py"))
    ]
    assert [file for file in files if _room(file) is None] == []
    assert set(_ROOMS) - {_room(file) for file in files} == set()


def test_the_page_about_the_house_shows_these_floors() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    for house, floors in FLOORS.items():
        shown = page.split(f"```floors {house}\n")[1].split("```")[0]
        assert [line.split() for line in shown.splitlines()] == [floor.split() for floor in floors]


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
        ("proto/federation/secagg/masks.py", "from federation import plan", "must not import proto/federation/plan.py"),
        (
            "aggregator/rounds/submissions.py",
            "from aggregator.rpc import rounds",
            "must not import aggregator/rpc, which",
        ),
        (
            "site_client/agent/egress/guard.py",
            "from site_client.agent.rounds import x",
            "must not reach site_client.ag",
        ),
        ("aggregator/new.py", "from aggregator.rpc import rounds", "aggregator/new.py stands in no room"),
        ("proto/__init__.py", "", "proto/__init__.py:1: must not exist"),
    ],
)
def test_an_offending_file_is_named(tmp_path: Path, file: str, source: str, finding: str) -> None:
    for folder in ("aggregator/rpc", "site_client/model", "site_client/agent/rounds", "proto/federation"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "proto" / "federation" / "plan.py").touch()
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
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
            "torch,monai,pydicom,pynetdicom,sqlalchemy",
        ),
        (
            "site_client.trainer,site_client.training,site_client.ingest,site_client.model,site_client.phantom,"
            "site_client.doctor.data,site_client.packing",
            "grpc,fastapi,pynetdicom",
        ),
        (
            "site_client.bedside,site_client.ingest,site_client.model.inputs",
            "torch,monai,grpc,fastapi,pynetdicom,sklearn",
        ),
        ("site_client.receiver,site_client.cli", "torch,monai,grpc,sqlalchemy,scipy,sklearn,gdcm,fastapi"),
    ],
    ids=["aggregator", "agent", "trainer", "predict", "receiver"],
)
def test_each_side_imports_whole_with_the_other_sides_libraries_absent(modules: str, blocked: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT, modules, blocked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
