"""The wheel installs three packages and no other name: `deploy` and `tests` belong to a checkout."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    # The build backend itself, without the isolation that would download it again.
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_its_top_level_names_are_the_two_programs_and_the_contract(wheel: zipfile.ZipFile) -> None:
    names = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"aggregator", "site_client", "federation"}


@pytest.mark.parametrize("name", ["aggregator", "site_client", "proto/federation"])
def test_every_file_of_the_three_packages_is_in_it(wheel: zipfile.ZipFile, name: str) -> None:
    listed = subprocess.run(["git", "ls-files", name], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {file.removeprefix("proto/") for file in listed.splitlines() if (ROOT / file).exists()}
    assert files
    assert files - set(wheel.namelist()) == set()
