"""`backup` and `restore` as commands: beside a running service, onto an empty machine, and what they refuse."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aggregator.cli import main as cli_main
from tests.aggregator.test_serve import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGKILL)


def call(service: Service, *words: str) -> Result:
    return CliRunner().invoke(cli_main, ["--config", str(service.config), *words])


def test_a_backup_of_a_running_service_starts_on_an_empty_machine(service: Service, tmp_path: Path) -> None:
    state = tmp_path / "state"
    service.start()
    assert call(service, "site", "invite", "north").exit_code == 0
    made = call(service, "backup", str(tmp_path / "copy"), "--json")
    assert made.exit_code == 0, made.output
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    shutil.rmtree(state)
    restored = call(service, "restore", str(tmp_path / "copy"), "--json")
    assert restored.exit_code == 0, restored.output
    marks = [json.loads(done.stdout) for done in (made, restored)]
    assert marks[0]["audit_entries"] == marks[1]["audit_entries"] >= 1
    assert marks[0]["audit_sha256"] == marks[1]["audit_sha256"]
    assert "north" in call(service, "site", "list").stdout
    assert [path for path in (tmp_path / "copy").rglob("*") if path.stat().st_mode & 0o077] == []
    service.start()
    assert service.end(signal.SIGTERM) == 0


def test_nothing_is_written_over(service: Service, tmp_path: Path) -> None:
    assert call(service, "backup", str(tmp_path / "copy")).exit_code == 0
    again = call(service, "backup", str(tmp_path / "copy"))
    assert (again.exit_code, "to be empty or not to exist, got files in it" in again.stderr) == (1, True)
    over = call(service, "restore", str(tmp_path / "copy"))
    assert (over.exit_code, "to be empty or not to exist, got files in it" in over.stderr) == (1, True)


@pytest.mark.parametrize("missing", ["hub.sqlite", "ca", "blobs", "uploads", "audit.mark"])
def test_half_a_backup_is_not_restored(service: Service, tmp_path: Path, missing: str) -> None:
    copy, state = tmp_path / "copy", tmp_path / "state"
    assert call(service, "site", "invite", "north").exit_code == 0
    assert call(service, "backup", str(copy)).exit_code == 0
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(state)
    refused = call(service, "restore", str(copy))
    assert refused.exit_code == 1
    assert f"made by `hemofed-aggregator backup`, {missing} is missing" in refused.stderr
    assert not state.exists()


def test_a_backup_that_was_damaged_is_not_restored(service: Service, tmp_path: Path) -> None:
    copy, state = tmp_path / "copy", tmp_path / "state"
    assert call(service, "site", "invite", "north").exit_code == 0
    assert call(service, "backup", str(copy)).exit_code == 0
    with (copy / "hub.sqlite").open("r+b") as file:
        for page in range(3, (copy / "hub.sqlite").stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\x99" * 64)
    shutil.rmtree(state)
    refused = call(service, "restore", str(copy))
    assert (refused.exit_code, "expected an intact database" in refused.stderr) == (1, True)
    assert not state.exists()
