"""What prove shows, and that it shows nothing it has not seen."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from site_client.config import FoldersSettings, SiteSettings
from site_client.prove import attempts, confined
from site_client.prove.attempts import Attempt
from site_client.prove.command import show_ledger
from site_client.prove.finding import ProofFinding, ProofOutcome
from site_client.prove.report import exit_status, render_html, render_text
from site_client.prove.round_check import RoundCheck, check_round
from site_client.prove.search import findings, spellings
from site_client.typed_json import decode


def _may_unshare() -> bool:
    if shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def site(tmp_path: Path) -> tuple[SiteSettings, Path]:
    for name in ("export", "state/agent/identity", "state/trainer", "cache"):
        (tmp_path / name).mkdir(parents=True)
    config = tmp_path / "site.toml"
    config.write_text(
        'name = "mercy"\n[folders]\nstate = "state"\nspool = "spool"\ncache = "cache"\nexport = "export"\n'
    )
    return SiteSettings(
        "mercy", folders=FoldersSettings(tmp_path / "state", tmp_path / "spool", tmp_path / "export")
    ), config


def test_without_any_confinement_every_forbidden_attempt_succeeds_and_the_claim_is_broken(
    site: tuple[SiteSettings, Path],
) -> None:
    settings, _ = site
    settings = replace(settings, folders=replace(settings.folders, cache=settings.folders.state))
    tried = {one.what: one for one in attempts.of_agent(settings)}
    assert tried["read the export"].answer is None
    assert not tried["read the export"].as_it_must
    assert tried["make memory that can be written and run"].answer is None
    finding = confined.assess_attempts("no patient", list(tried.values()))
    assert finding.outcome is ProofOutcome.BROKEN
    assert "NO  read the export: done, and it must be refused" in finding.evidence
    assert not list(settings.folders.export.iterdir())  # what was tried there is gone again


@pytest.mark.skipif(not _may_unshare(), reason="needs root and unshare(1)")
def test_in_an_empty_network_namespace_the_kernel_refuses_the_way_out(site: tuple[SiteSettings, Path]) -> None:
    command = [sys.executable, "-m", "site_client.prove.attempts", "trainer", str(site[1])]
    done = subprocess.run(["unshare", "-n", *command], capture_output=True, text=True, check=True)
    tried = {one.what: one for one in (decode(Attempt, line) for line in done.stdout.splitlines())}
    assert tried["open a socket of the Internet (AF_INET)"].answer == "ENETUNREACH"
    assert tried["read the export"].answer is None


@pytest.mark.skipif(not _may_unshare(), reason="needs root and unshare(1)")
def test_a_read_only_export_and_hidden_keys_are_refused(site: tuple[SiteSettings, Path]) -> None:
    export, keys = site[0].folders.export, site[0].folders.agent / "identity"
    script = f"mount --bind {export} {export} && mount -o remount,ro,bind {export} && rmdir {keys} && exec "
    script += f"{sys.executable} -m site_client.prove.attempts trainer {site[1]}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=True)
    tried = {one.what: one for one in (decode(Attempt, line) for line in done.stdout.splitlines())}
    assert tried["write into the export"].answer == "EROFS"
    assert tried["read the agent's keys"].answer == "ENOENT"


def test_no_answer_shows_nothing_and_a_probe_that_can_do_nothing_is_no_proof() -> None:
    assert confined.assess_attempts("a wall", []).outcome is ProofOutcome.NOT_SHOWN
    refused, control = Attempt("socket", True, "EAFNOSUPPORT"), Attempt("read its own", False, "EACCES")
    assert confined.assess_attempts("a wall", [refused]).outcome is ProofOutcome.SHOWN
    assert confined.assess_attempts("a wall", [refused, control]).outcome is ProofOutcome.BROKEN


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd runs here: the system test shows the walls")
def test_where_systemd_does_not_run_the_walls_are_not_shown(site: tuple[SiteSettings, Path]) -> None:
    found = [*confined.show_walls(site[1]), *confined.show_running(site[0])]
    assert [one.outcome for one in found] == [ProofOutcome.NOT_SHOWN] * 4
    assert {one.evidence for one in found} == {("systemd does not run on this machine",)}


def test_this_very_process_is_seen_as_it_is(site: tuple[SiteSettings, Path]) -> None:
    finding = confined.check_process("the agent is confined", "agent", os.getpid(), site[0])
    assert finding.outcome is ProofOutcome.BROKEN  # a test runs without a filter, and sees the export
    assert "NO  another folder in the place of the export: the export is hidden" in finding.evidence


def test_a_ledger_is_shown_only_when_there_is_one(site: tuple[SiteSettings, Path]) -> None:
    assert show_ledger(site[0]).outcome is ProofOutcome.NOT_SHOWN


def test_the_page_loads_nothing_and_escapes_what_is_not_ours() -> None:
    from datetime import UTC, datetime

    found = [
        ProofFinding("a", ProofOutcome.SHOWN, ("yes",)),
        ProofFinding("b", ProofOutcome.BROKEN, ("<script>alert(1)</script>",)),
        ProofFinding("c", ProofOutcome.NOT_SHOWN),
    ]
    page = render_html(found, "mercy", datetime(2026, 11, 24, tzinfo=UTC))
    assert "<script" not in page
    assert not any(word in page for word in ("http:", "https:", "src=", "url("))
    assert "1 shown, 1 broken, 1 could not be shown" in page
    assert "BROKEN     b" in render_text(found)
    assert [exit_status(found), exit_status(found[:1]), exit_status([found[0], found[2]])] == [2, 0, 3]


# The canaries.


@pytest.mark.parametrize("value", ["KANARI42", "KANARIÄÖÜ7^ANNA", "1.2.826.0.1.3680043.8.498.77"])
def test_a_canary_is_found_in_every_spelling(value: str, tmp_path: Path) -> None:
    import base64
    import hashlib
    from urllib.parse import quote

    raw = value.encode()
    forms = [
        raw,
        value.encode("latin-1"),
        value.encode("utf-16-le"),
        raw.hex().encode(),
        quote(value, safe="").encode(),
    ]
    forms += [base64.b64encode(b"p" * lead + raw + b"suffix") for lead in range(3)]
    forms += [hashlib.new(name, raw).hexdigest().encode() for name in ("md5", "sha1", "sha256")]
    wanted = spellings([value])
    for number, form in enumerate(forms):
        (tmp_path / str(number)).write_bytes(b"before " + form + b" after")
        assert findings(wanted, [tmp_path / str(number)]), form
    (tmp_path / "clean").write_bytes(b"nothing of the kind")
    assert findings(wanted, [tmp_path / "clean"]) == []
    (tmp_path / f"x{value}").touch()
    assert findings(wanted, [tmp_path / f"x{value}"])  # a file's name counts, too


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[RoundCheck, Path]:
    folder = tmp_path_factory.mktemp("round-check")
    return check_round(folder), folder


@pytest.mark.slow
def test_a_round_on_an_export_of_canaries_leaves_no_canary(checked: tuple[RoundCheck, Path]) -> None:
    done, folder = checked
    assert done.hits == ()
    assert done.canaries > 400
    assert done.studies >= 2
    for name in ("state/agent/ledger.jsonl", "state/agent/payloads", "state/trainer/catalog.sqlite", "logs/worker.txt"):
        assert (folder / name).exists(), name  # it was looked at


@pytest.mark.slow
def test_the_search_of_the_round_check_would_have_found_one(checked: tuple[RoundCheck, Path]) -> None:
    _, folder = checked
    name = next(path.name for path in (folder / "export").rglob("Kanari_Datei*"))
    with (folder / "logs" / "worker.txt").open("a") as log:
        log.write(f"cannot read {name}\n")
    assert findings(spellings([name]), [folder / "logs"]) == [f"{name} in {folder / 'logs' / 'worker.txt'}"]


def test_sockets_of_a_probe_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    attempts._close(socket.socket(socket.AF_UNIX))
    assert len(os.listdir("/proc/self/fd")) == before
