"""What the package is made of, without building it: versions, scripts, manual, and who may read what."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from site_client.cli import main

ROOT = Path(__file__).parents[2]
DEB = ROOT / "deploy" / "deb"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _locked() -> dict[str, str]:
    lines = re.findall(
        r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", (DEB / "requirements.lock").read_text(), re.MULTILINE
    )
    return dict(lines)


def test_the_lock_has_the_versions_of_the_constraints_and_a_hash_in_every_line() -> None:
    constraints = dict(
        re.findall(r"^([A-Za-z].*)==(\S+)$", (ROOT / "deploy" / "constraints.txt").read_text(), re.MULTILINE)
    )
    wanted = {_plain(name): version for name, version in constraints.items()}
    locked = _locked()
    lines = [line for line in (DEB / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert len(lines) == len(locked)
    assert {name: wanted.get(name, version) for name, version in locked.items()} == locked


def test_the_lock_has_everything_a_site_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [
        Requirement(line)
        for line in [*project["dependencies"], *extras["agent"], *extras["receiver"], *extras["trainer"]]
    ]
    assert {_plain(one.name) for one in needed} <= set(_locked())


@pytest.mark.parametrize("script", ["preinst", "postinst", "prerm", "postrm", "rollback.sh", "switch.sh"])
def test_a_script_run_by_root_can_be_parsed(script: str) -> None:
    subprocess.run(["sh", "-n", DEB / script], check=True)


def test_every_file_that_the_build_takes_from_the_repository_is_there() -> None:
    script = (DEB / "build.sh").read_text()
    wanted = re.findall(r'"\$root/((?:docs|deploy|LICENSE)[\w./-]*)"', script)
    wanted += [f"deploy/deb/{name}" for name in re.findall(r'"\$here/([\w.-]+)"', script)]
    assert len(wanted) > 8
    assert [name for name in wanted if not (ROOT / name).exists()] == []


def test_the_manual_names_every_command() -> None:
    page = (DEB / "hemofed-site.1").read_text()
    not_for_hospitals = {"phantom", "init-weights", "run"}
    assert {name for name in main.lazy_commands if not re.search(rf"\b{name}\b", page)} <= not_for_hospitals


def test_the_agent_is_not_in_the_group_that_reads_the_export() -> None:
    members = re.findall(r"^m (\S+) hemofed-export$", (DEB / "sysusers.conf").read_text(), re.MULTILINE)
    assert members == ["hemofed-trainer"]
    assert re.search(
        r"^d /srv/hemofed/export +0750 root +hemofed-export$", (DEB / "tmpfiles.conf").read_text(), re.MULTILINE
    )
