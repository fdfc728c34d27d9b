"""The wheel installs three packages and no other name: `deploy` and `tests` belong to a checkout."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.custodian import PASSPHRASE

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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_lines_of_the_page_install_the_wheel_with_pip_and_begin_a_consortium(tmp_path: Path) -> None:
    """The block "With pip" of OPERATIONS.md up to `serve`, in folders of the test."""
    page = (ROOT / "docs" / "OPERATIONS.md").read_text()
    block = page.split("### With pip\n")[1].split("```sh\n")[1].split("```")[0]
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    settings = f"{tmp_path}/aggregator.toml"
    places = {
        "/opt/hemofed-pip": f"{tmp_path}/venv",
        "dist": f"{tmp_path}/dist",
        "/etc/hemofed/aggregator.toml": settings,
        "hemofed-custodian init": f"hemofed-custodian --folder {tmp_path}/custodian init "
        f"--passphrase-file {tmp_path}/passphrase",
        "hemofed-aggregator": f"hemofed-aggregator --config {settings}",
        "custodian.pub": f"{tmp_path}/custodian/custodian.pub",
        "admin add": "admin add --password-stdin",
    }
    said = ""
    for line in block.splitlines():
        command = line.partition("  #")[0].strip()
        if command.endswith(" serve"):
            break
        # One pass: what was put in is not looked through again.
        command = re.sub("|".join(map(re.escape, places)), lambda match: places[match[0]], command)
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, input=PASSPHRASE + "\n", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        said += done.stdout
        if "install -D" in command:
            Path(settings).write_text(f'[state]\nfolder = "{tmp_path}/state"\n')
    assert "CA fingerprint" in said
    assert (tmp_path / "state" / "ca" / "ca.key").exists()
