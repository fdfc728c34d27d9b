"""`doctor` and `config check`: each thing that is wrong is said in a sentence, and nothing is changed."""

import fcntl
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest

from aggregator.config import load_settings
from aggregator.context import AppContext, open_context
from aggregator.health.installation import Finding, Installation
from aggregator.serve import AggregatorServer
from aggregator.sites.authority import Authority
from aggregator.store import Change, people, record, site_rows
from tests.aggregator.conftest import Host
from tests.aggregator.test_cli_aggregator import Console, approved, console, fresh
from tests.ports import free_port

__all__ = ["console", "fresh"]  # fixtures


def settings_with(console: Console, listen: str) -> None:
    console.config.write_text(f'[state]\nfolder = "{console.folder / "state"}"\n[listen]\n{listen}')


@pytest.fixture
def sound(console: Console) -> Console:
    """An installation with a member and addresses of its own, the service stopped."""
    keys = ("sites", "enrolment", "dashboard", "health")
    addresses = "".join(f'{key} = "127.0.0.1:{free_port()}"\n' for key in keys)
    settings_with(console, addresses + 'host_names = ["aggregator.example"]\n')
    approved(console, Host())
    console.sign_roster()
    return console


@contextmanager
def opened(console: Console) -> Iterator[AppContext]:
    app = open_context(load_settings(console.config))
    yield app
    app.store.close()


def findings(app: AppContext, name: str) -> list[tuple[str, str]]:
    return [(of.level.value, of.words) for of in Installation(app).findings() if of.name == name]


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "-" not in path.suffix}


def test_a_sound_installation_has_no_fault_and_is_not_changed(sound: Console) -> None:
    before = files_of(sound.folder / "state")
    result = sound("doctor")
    assert result.exit_code == 0, result.output
    assert "fault" not in result.stdout
    levels = {row["name"]: row["level"] for row in sound.json("doctor")}
    assert {name: level for name, level in levels.items() if level != "ok"} == {
        "settings": "warning",  # of this machine only
        "service": "warning",  # does not run
    } | ({"clock": "warning"} if levels["clock"] == "warning" else {})
    assert files_of(sound.folder / "state") == before


def test_a_fault_ends_with_status_1_and_names_its_remedy(sound: Console) -> None:
    (sound.folder / "state" / "ca" / "ca.key").chmod(0o644)
    (sound.folder / "state" / "ca" / "custodian.key").touch(0o600)
    result = sound("doctor")
    assert result.exit_code == 1
    assert "ca.key is open to other users of this machine; chmod -R go=" in result.stdout
    assert "custodian.key lies on this machine; hand it over with `hemofed-custodian take-over" in result.stdout


def test_a_damaged_database_is_a_fault(sound: Console) -> None:
    file = sound.folder / "state" / "hub.sqlite"
    with opened(sound) as app:
        app.store.checkpoint()
    data = bytearray(file.read_bytes())
    data[8192 : 3 * 8192] = bytes(2 * 8192)
    file.write_bytes(data)
    with opened(sound) as app:
        [(level, words)] = [
            (of.level.value, of.words) for of in _until(Installation(app), "database") if of.name == "database"
        ]
    assert level == "fault"
    assert "expected an intact database" in words


def _until(installation: Installation, name: str) -> Iterator[Finding]:
    """The findings up to one; those after it would read the damaged rows."""
    for finding in installation.findings():
        yield finding
        if finding.name == name:
            return


def test_an_audit_row_that_was_changed_is_a_fault(sound: Console) -> None:
    with opened(sound) as app:
        assert findings(app, "audit")[0][0] == "ok"
        with app.store.write() as session:
            session.connection().exec_driver_sql("UPDATE audit SET actor = 'person:eve' WHERE id = 1")
        [(level, words)] = findings(app, "audit")
    assert level == "fault"
    assert "expected audit row 1 to follow" in words


def test_certificates_that_end_and_those_of_hospitals_are_named(sound: Console) -> None:
    with opened(sound) as app:
        later = replace(app, clock=lambda: app.clock() + timedelta(days=28))
        [(level, words)] = findings(later, "sites")
        assert (level, words.partition(" on ")[0]) == ("warning", "st-mary's certificate ends")
        later = replace(app, clock=lambda: app.clock() + timedelta(days=3300))
        [(level, words)] = findings(later, "ca.pem")
        assert level == "fault"
        assert words.endswith("every hospital has to join again before that day: plan it now")


def test_a_clock_that_was_set_back_is_a_fault(sound: Console) -> None:
    with opened(sound) as app:
        with app.store.write() as session:
            record(session, Change(app.clock() + timedelta(hours=1), "operator", "site:st-mary", "late"), None, "seen")
        [(level, words)] = findings(app, "clock")
        assert people.audit_trail(session, limit=1)
    assert level == "fault"
    assert "it was set back" in words


def test_an_address_in_use_is_a_fault_unless_the_service_has_it(sound: Console) -> None:
    with opened(sound) as app:
        host, _, port = app.settings.listen.sites.rpartition(":")
        with socket.create_server((host, int(port))):
            [(level, words)] = findings(app, "listen.sites")
            assert level == "fault"
            assert "stop what uses port" in words
    with opened(sound) as app:
        served = AggregatorServer(app, Authority(app.settings.state.folder / "ca", app.clock))
        with (app.settings.state.folder / "serve.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            served.start()
            try:
                rows = {row["name"]: row for row in sound.json("doctor")}
            finally:
                served.stop()
    assert rows["service"]["level"] == "ok"
    assert [rows[f"listen.{key}"]["level"] for key in ("sites", "enrolment", "dashboard", "health")] == ["ok"] * 4


def test_a_roster_that_ends_or_awaits_a_signature_is_said(sound: Console) -> None:
    approved(sound, Host(), "charite")
    with opened(sound) as app:
        [(level, words)] = findings(app, "roster")
        assert (level, "adds charite" in words) == ("warning", True)
        with app.store.read() as session:
            assert site_rows.newest_epoch(session) == 1


# --- config ---


def test_a_check_names_what_is_set_and_what_may_not_be_meant(fresh: Console) -> None:
    settings_with(fresh, 'dashboard = "0.0.0.0:8080"\n')
    result = fresh("config", "check")
    assert result.exit_code == 0
    assert "is valid; it sets listen.dashboard, state.folder" in result.stdout
    assert "hospitals elsewhere refuse the certificate; name what they dial" in result.stdout
    assert (
        "dashboard = '0.0.0.0:8080' is plain HTTP beyond this machine; put a proxy with HTTPS in front" in result.stdout
    )


def test_a_check_refuses_what_serve_would_refuse(fresh: Console) -> None:
    settings_with(fresh, 'sitse = "0.0.0.0:1"\n')
    assert "did you mean 'sites'?" in fresh.refused("config", "check")


def test_all_settings_are_shown_and_no_password(fresh: Console) -> None:
    fresh.config.write_text('[state]\ndatabase = "sqlite:////tmp/x?password=1"\n')
    assert '"threads": 8' in fresh("config", "show").stdout
    if find_spec("psycopg") is not None:
        fresh.config.write_text('[state]\ndatabase = "postgresql+psycopg://me:geheim@db/hemofed"\n')
        assert "geheim" not in fresh("config", "show").stdout


@pytest.mark.skipif(find_spec("psycopg") is not None, reason="the driver is installed")
@pytest.mark.parametrize("command", [("config", "check"), ("init",), ("site", "list"), ("serve",)])
def test_a_missing_driver_of_postgresql_is_one_sentence(console: Console, command: tuple[str, ...]) -> None:
    console.config.write_text(
        f'[state]\nfolder = "{console.folder / "state"}"\ndatabase = "postgresql+psycopg://me:geheim@db/hemofed"\n'
    )
    if command == ("init",):
        (console.folder / "state" / "ca" / "ca.key").unlink()
        command = console.init
    refusal = console.refused(*command)
    assert "needs the Python package psycopg, which is not installed; pip install 'hemofed[postgres]'" in refusal
    assert "geheim" not in refusal
    assert refusal.count("\n") == 1


def test_a_database_that_is_no_url_is_one_sentence(fresh: Console) -> None:
    fresh.config.write_text('[state]\ndatabase = "geheim"\n')
    refusal = fresh.refused("config", "check")
    assert "expected a URL such as" in refusal
    assert "geheim" not in refusal
