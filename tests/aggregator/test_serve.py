"""`hemofed-aggregator serve` as a process: it drains on SIGTERM, comes back as it was, and says what is in its way."""

import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner

from aggregator.cli import main as cli_main
from aggregator.store.blobs import Blobs

STARTED_S = 30.0


class Service:
    """One state folder; `serve` is started and stopped as a supervisor would."""

    def __init__(self, folder: Path) -> None:
        self.dashboard_port = _free_port()
        self.config, self.log = folder / "aggregator.toml", folder / "serve.log"
        self.config.write_text(
            '[listen]\nsites = "127.0.0.1:0"\nenrolment = "127.0.0.1:0"\n'
            f'dashboard = "127.0.0.1:{self.dashboard_port}"\n'
            f'[state]\nfolder = "{folder / "state"}"\n'
        )
        assert CliRunner().invoke(cli_main, ["--config", str(self.config), "init"]).exit_code == 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-c",
            "from aggregator.cli import main; main()",
            "--config",
            str(self.config),
            "serve",
        ]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        deadline = time.monotonic() + STARTED_S
        while not self.answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.dashboard_port}/login", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGKILL)


def test_a_kill_is_followed_by_a_start_and_sigterm_ends_it_in_order(service: Service) -> None:
    service.start()
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    service.start()
    assert service.end(signal.SIGTERM) == 0
    told = service.log.read_text()
    assert told.count("aggregator listening") == 2
    assert "aggregator stopping" in told
    assert told.index("driver stopped") < told.index("aggregator stopped")
    assert "Traceback" not in told


@pytest.mark.parametrize("key", ["sites", "enrolment", "dashboard"])
def test_a_taken_port_is_one_sentence_that_names_it(service: Service, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        lines = service.config.read_text().splitlines()
        edited = [f'{key} = "{taken}"' if line.startswith(f"{key} =") else line for line in lines]
        service.config.write_text("\n".join(edited))
        done = CliRunner().invoke(cli_main, ["--config", str(service.config), "serve"])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert f"cannot listen at {taken} ([listen] {key}): Address already in use; stop what uses port" in done.stderr


def test_a_locked_database_delays_a_page_and_breaks_nothing(service: Service) -> None:
    """WAL: a writer that holds the lock keeps no reader waiting."""
    service.start()
    other = sqlite3.connect(service.config.parent / "state" / "hub.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert service.answers()
    other.execute("ROLLBACK")
    other.close()
    assert service.end(signal.SIGTERM) == 0


def test_an_upload_cut_off_by_a_full_disk_goes_on_where_it_stopped(tmp_path: Path) -> None:
    blobs, data = Blobs(tmp_path / "blobs", 1 << 20), os.urandom(3000)
    digest = sha256(data).digest()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write beyond fails, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            blobs.put(digest, len(data), 0, data)
        with pytest.raises(OSError, match="File too large"):
            blobs.add(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    held = blobs.offer(digest, len(data))
    assert (held.held_bytes, held.complete) == (1000, False)
    assert blobs.put(digest, len(data), held.held_bytes, data[held.held_bytes :]).complete
    with blobs.open(digest) as stored:
        assert stored.read() == data
    assert list((tmp_path / "blobs" / "partial").iterdir()) == []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
