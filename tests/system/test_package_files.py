"""What the two packages are made of, without building it: versions, scripts, manual, and who may read what."""

import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from aggregator.cli import main as aggregator_main
from site_client.cli import main
from tests.system.package_tree import AGGREGATOR, DEB, SITE, Side

ROOT = Path(__file__).parents[2]
SIDES = (SITE, AGGREGATOR)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _locked(side: Side) -> dict[str, str]:
    text = (DEB / side.name / "requirements.lock").read_text()
    return dict(re.findall(r"^(\S+)==(\S+ --hash=sha256:[0-9a-f]{64})$", text, re.MULTILINE))


@pytest.mark.parametrize("side", SIDES, ids=str)
def test_the_lock_has_the_versions_of_the_constraints_and_a_hash_in_every_line(side: Side) -> None:
    constraints = dict(
        re.findall(r"^([A-Za-z].*)==(\S+)$", (ROOT / "deploy" / "constraints.txt").read_text(), re.MULTILINE)
    )
    wanted = {_plain(name): version for name, version in constraints.items()}
    locked = {name: line.split()[0] for name, line in _locked(side).items()}
    text = (DEB / side.name / "requirements.lock").read_text()
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    assert len(lines) == len(locked)
    assert {name: wanted.get(name, version) for name, version in locked.items()} == locked


def test_a_library_of_both_packages_is_the_same_wheel() -> None:
    site, aggregator = _locked(SITE), _locked(AGGREGATOR)
    both = site.keys() & aggregator.keys()
    assert {"cryptography", "grpcio", "numpy"} <= both
    assert {name: site[name] for name in both} == {name: aggregator[name] for name in both}


@pytest.mark.parametrize(
    ("side", "extras"), [(SITE, ["agent", "receiver", "trainer"]), (AGGREGATOR, ["aggregator", "postgres"])], ids=str
)
def test_the_lock_has_everything_that_its_side_needs(side: Side, extras: list[str]) -> None:
    """With what those need in turn, as far as it is installed here; and the aggregator's has no PyTorch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    waiting = [
        Requirement(line) for line in [*project["dependencies"], *(line for e in extras for line in optional[e])]
    ]
    needed: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if _plain(requirement.name) in needed:
            continue
        needed.add(_plain(requirement.name))
        try:
            further = [Requirement(line) for line in requires(requirement.name) or []]
        except PackageNotFoundError:
            continue
        asked = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
        waiting += [one for one in further if one.marker is None or any(one.marker.evaluate(e) for e in asked)]
    assert needed - set(_locked(side)) == set()
    if side == AGGREGATOR:
        assert {"torch", "monai", "pydicom", "scipy"}.isdisjoint(_locked(side))


@pytest.mark.parametrize("side", SIDES, ids=str)
def test_every_script_run_by_root_can_be_parsed_as_it_is_installed(side: Side) -> None:
    for script in [*side.scripts(), "rollback.sh"]:
        text = side.render(script, "1.0")
        assert not re.search(r"^#include |@[A-Z]+@", text, re.MULTILINE)
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("side", SIDES, ids=str)
def test_every_file_that_the_build_takes_from_the_repository_is_there(side: Side) -> None:
    script = (DEB / "build.sh").read_text() + (DEB / side.name / "contents.sh").read_text()
    wanted = re.findall(r'"\$root/((?:docs|deploy|LICENSE)[\w./-]*)"', script)
    wanted += [f"deploy/deb/{name}" for name in re.findall(r'"\$here/([\w.-]+)"', script)]
    wanted += [f"deploy/deb/{side.name}/{name}" for name in re.findall(r'"\$own/([\w.-]+)"', script)]
    wanted += [f"deploy/{name}" for name in side.fact("settings").split()]
    wanted += [f"docs/{name}" for name in side.fact("pages").split()]
    wanted += [f"deploy/systemd/{unit}" for unit in side.fact("units").split()]
    wanted += side.fact("modules").split()
    assert len(wanted) > 12
    assert [name for name in wanted if not (ROOT / name).exists()] == []


def test_each_unit_is_in_one_package() -> None:
    units = [unit for side in SIDES for unit in side.fact("units").split()]
    assert sorted(units) == sorted(path.name for path in (ROOT / "deploy" / "systemd").glob("*.service"))


@pytest.mark.parametrize("fact", ["package", "home", "doc", "rollback", "units", "accounts", "groups", "settings"])
def test_the_two_packages_share_no_path_and_no_account(fact: str) -> None:
    site, aggregator = (set(side.fact(fact).split()) for side in SIDES)
    assert site
    assert aggregator
    assert not site & aggregator


@pytest.mark.parametrize("side", SIDES, ids=str)
def test_the_package_makes_the_accounts_that_its_purge_removes(side: Side) -> None:
    users = (DEB / side.name / "sysusers.conf").read_text()
    made = set(re.findall(r"^u (\S+)", users, re.MULTILINE))
    assert made == set(side.fact("accounts").split())
    assert set(re.findall(r"^User=(\S+)", _units(side), re.MULTILINE)) == made
    assert set(re.findall(r"^Group=(\S+)", _units(side), re.MULTILINE)) <= set(side.fact("groups").split())


def _units(side: Side) -> str:
    return "".join((ROOT / "deploy" / "systemd" / unit).read_text() for unit in side.fact("units").split())


@pytest.mark.parametrize("side", SIDES, ids=str)
def test_the_manual_names_every_command(side: Side) -> None:
    page = (DEB / side.name / f"{side.fact('program')}.1").read_text()
    commands: Iterable[str] = main.lazy_commands if side == SITE else aggregator_main.commands
    not_for_hospitals = {"phantom", "init-weights", "run"} if side == SITE else set()
    assert {name for name in commands if not re.search(rf"\b{name}\b", page)} <= not_for_hospitals


def test_the_agent_is_not_in_the_group_that_reads_the_export() -> None:
    members = re.findall(r"^m (\S+) hemofed-export$", (DEB / "site" / "sysusers.conf").read_text(), re.MULTILINE)
    assert members == ["hemofed-trainer"]
    folders = (DEB / "site" / "tmpfiles.conf").read_text()
    assert re.search(r"^d /srv/hemofed/export +0750 root +hemofed-export$", folders, re.MULTILINE)
