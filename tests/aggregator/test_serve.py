"""`hemofed-aggregator serve` as a process: it drains on SIGTERM, comes back as it was, and says what is in its way."""

import ast
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aggregator.cli import main as cli_main
from aggregator.states import RoundState, RunState
from aggregator.store import open_store
from aggregator.store.blobs import Blobs
from aggregator.store.tables import Round, Run
from tests.custodian import CUSTODIAN
from tests.ports import free_port

STARTED_S = 30.0


class Service:
    """One state folder; `serve` is started and stopped as a supervisor would."""

    def __init__(self, folder: Path) -> None:
        self.dashboard_port = free_port()
        self.config, self.log = folder / "aggregator.toml", folder / "serve.log"
        self.config.write_text(
            '[listen]\nsites = "127.0.0.1:0"\nenrolment = "127.0.0.1:0"\n'
            f'dashboard = "127.0.0.1:{self.dashboard_port}"\n'
            f'[state]\nfolder = "{folder / "state"}"\n'
        )
        custodian = folder / "custodian.pub"
        custodian.write_bytes(CUSTODIAN.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        command = ["--config", str(self.config), "init", "--custodian", str(custodian)]
        assert CliRunner().invoke(cli_main, command).exit_code == 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, descriptors: int | None = None) -> None:
        program = "from aggregator.cli import main; main()"
        command = [sys.executable, "-c", program, "--config", str(self.config), "serve"]
        if descriptors is not None:
            command = ["prlimit", f"--nofile={descriptors}:{descriptors}", *command]
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

    def events(self) -> list[dict[str, Any]]:
        """What it has logged so far; a line that is still being written is left out."""
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

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
    events = [line["event"] for line in service.events()]
    assert events.count("aggregator started") == 2
    assert events.index("driver stopped") < events.index("aggregator stopped")
    assert "stop requested" in events
    assert all("exception" not in line for line in service.events())


def test_a_step_that_fails_is_in_the_log_with_its_traceback_and_the_service_goes_on(service: Service) -> None:
    """A run whose signed plan is damaged: each look at its round fails, in the driver and nowhere else."""
    state, now = service.config.parent / "state", datetime.now(UTC)
    store = open_store(f"sqlite:///{state / 'hub.sqlite'}")
    run = Run(
        run_id=bytes(16), name="p", signed_plan=b"damaged", plan_digest=b"", state=RunState.RUNNING, created_at=now
    )
    row = Round(
        run_id=bytes(16),
        number=1,
        attempt=1,
        state=RoundState.TRAINING,
        base_model=b"",
        roster_epoch=0,
        began_at=now,
        phase_since=now,
        deadline=now,
    )
    with store.write() as session:
        session.add(run)
        session.flush()
        session.add(row)
    store.close()
    service.start()
    deadline = time.monotonic() + STARTED_S
    while not (failures := [line for line in service.events() if line["event"] == "round step failed"]):
        assert time.monotonic() < deadline, service.log.read_text()
        time.sleep(0.05)
    assert failures[0]["level"] == "error"
    assert failures[0]["exception"].startswith("Traceback (most recent call last):")
    assert "google.protobuf.message.DecodeError" in failures[0]["exception"]
    assert "exc_info" not in failures[0]
    assert service.answers()
    assert service.end(signal.SIGTERM) == 0


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


def test_few_descriptors_are_shared_among_the_listeners_and_said_in_the_log(service: Service) -> None:
    service.start(descriptors=1000)
    [event] = [line for line in service.events() if line["event"] == "fewer connections than configured"]
    assert [event[key] for key in ("descriptors", "connections", "enrolment_connections")] == [1000, 118, 60]
    assert service.end(signal.SIGTERM) == 0


def test_too_few_descriptors_stop_the_start_in_one_sentence(service: Service) -> None:
    with pytest.raises(AssertionError, match=r"expected at least 608 descriptors, got 500; raise the limit"):
        service.start(descriptors=500)


def test_a_locked_database_delays_a_page_and_breaks_nothing(service: Service) -> None:
    """WAL: a writer that holds the lock keeps no reader waiting."""
    service.start()
    other = sqlite3.connect(service.config.parent / "state" / "hub.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert service.answers()
    other.execute("ROLLBACK")
    other.close()
    assert service.end(signal.SIGTERM) == 0


def test_monitoring_asks_at_a_port_of_its_own_without_a_log_in(service: Service) -> None:
    port = free_port()
    health = f'health = "127.0.0.1:{port}"\n[state]'
    service.config.write_text(service.config.read_text().replace("[state]", health))
    service.start()
    for path, expected in (("/healthz", b"driver: ok\n"), ("/readyz", b"disk: ok\n"), ("/metrics", b"hemofed_sites")):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            assert expected in reply.read()
    with urllib.request.urlopen(f"http://127.0.0.1:{service.dashboard_port}/metrics", timeout=10) as reply:
        assert b"hemofed_" not in reply.read()  # the log-in page
    assert service.end(signal.SIGTERM) == 0


def test_a_second_serve_on_the_same_folder_is_refused_and_the_first_goes_on(service: Service) -> None:
    service.start()
    free = service.config.with_name("second.toml")
    free.write_text(service.config.read_text().replace(f":{service.dashboard_port}", f":{free_port()}"))
    done = CliRunner().invoke(cli_main, ["--config", str(free), "serve"])
    assert done.exit_code == 1
    assert "to be served by no other process, got one that runs; stop it first" in done.stderr
    assert done.stderr.count("\n") == 1
    assert service.answers()
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    service.start()  # a killed process holds no lock
    assert service.end(signal.SIGTERM) == 0


def test_a_database_that_an_older_copy_was_put_over_is_not_served(service: Service) -> None:
    state = service.config.parent / "state"
    service.start()
    assert service.end(signal.SIGTERM) == 0
    with sqlite3.connect(state / "hub.sqlite") as source, sqlite3.connect(state.parent / "older.sqlite") as copy:
        source.backup(copy)
    invited = CliRunner().invoke(cli_main, ["--config", str(service.config), "site", "invite", "north"])
    assert invited.exit_code == 0, invited.output
    service.start()
    assert service.end(signal.SIGTERM) == 0  # the last thing it does is to note how far it came
    for name in ("hub.sqlite-wal", "hub.sqlite-shm"):
        (state / name).unlink(missing_ok=True)
    (state.parent / "older.sqlite").replace(state / "hub.sqlite")
    done = CliRunner().invoke(cli_main, ["--config", str(service.config), "serve"])
    assert done.exit_code == 1
    assert "its end was lost or an older copy was put back; restore the whole folder from a backup" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_was_noted_survives_a_kill_that_takes_the_write_ahead_log_with_it(service: Service) -> None:
    state = service.config.parent / "state"
    invited = CliRunner().invoke(cli_main, ["--config", str(service.config), "site", "invite", "north"])
    assert invited.exit_code == 0, invited.output
    service.start()
    deadline = time.monotonic() + STARTED_S
    while not (state / "audit.mark").exists():
        assert time.monotonic() < deadline, service.log.read_text()
        time.sleep(0.05)
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    for name in ("hub.sqlite-wal", "hub.sqlite-shm"):
        (state / name).unlink(missing_ok=True)
    service.start()
    assert service.end(signal.SIGTERM) == 0


def test_a_part_that_ends_by_itself_ends_the_service_so_that_it_is_started_again(service: Service) -> None:
    """The driver finds no table of rounds. Without the end, hospitals would poll for ever and no round would move."""
    with sqlite3.connect(service.config.parent / "state" / "hub.sqlite") as connection:
        connection.execute("ALTER TABLE rounds RENAME TO away")
    connection.close()
    program = "from aggregator.cli import main; main()"
    command = [sys.executable, "-c", program, "--config", str(service.config), "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the part 'driver-0' of the service has ended" in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    [failure] = [line for line in lines if line["event"] == "part failed"]
    assert (failure["part"], "no such table: rounds" in failure["exception"]) == ("driver-0", True)
    assert {line[0] for line in done.stderr.splitlines()} == {"{", "E"}  # the log, and the one sentence after it


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


def test_the_service_runs_without_the_custodian_s_key_and_opens_no_file_of_that_name(service: Service) -> None:
    """A key that version 0.1.0 left there is a pipe here: to read it would hang the start for ever."""
    folder = service.config.parent / "state" / "ca"
    assert not (folder / "custodian.key").exists()
    os.mkfifo(folder / "custodian.key")
    service.start()
    assert service.answers()
    assert service.end(signal.SIGTERM) == 0


def test_nothing_that_serve_loads_can_read_or_use_a_custodian_s_key() -> None:
    program = (
        "import sys\nimport aggregator.serve, aggregator.commands.serve\n"
        "loaded = [name for name in sys.modules if name.startswith('aggregator')]\n"
        "assert not [name for name in loaded if '.custodian' in name], loaded\n"
        "print(*(sys.modules[name].__file__ for name in loaded), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    nodes = {path: list(ast.walk(ast.parse(Path(path).read_text()))) for path in done.stdout.splitlines()}
    imported = {node.name for walk in nodes.values() for node in walk if isinstance(node, ast.alias)}
    assert not {"sign_roster", "sign_plan", "succeed"} & imported
    # The one place that knows the file's name asks whether it is there, and tells the coordinator to hand it over.
    naming = [path for path, walk in nodes.items() if any(_is_text(node, "custodian.key") for node in walk)]
    assert [Path(path).name for path in naming] == ["roster.py"]


def _is_text(node: ast.AST, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text
