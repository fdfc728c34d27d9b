"""The package on a real system: from dpkg -i to dpkg --purge on a Debian that systemd boots, with rounds in between.

One machine goes through all of it; the tests follow its life, and each needs those before it.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.demonstration.federation import Federation
from tests.ports import free_port
from tests.site_client.receiver.conftest import Receiver, image
from tests.system.hospital import STATUS, UNITS, Hospital, options
from tests.system.machine import CannotBoot, Machine, debian, missing, system_bus

ROOT = Path(__file__).resolve().parents[2]
TRAINER, AGENT = UNITS
IDENTITY, LEDGER = "/var/lib/hemofed/agent/identity", "/var/lib/hemofed/agent/ledger.jsonl"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(missing()), reason=missing() or "a machine can be booted"),
]


@dataclass(frozen=True)
class Packages:
    """Two versions of it."""

    older: Path
    newer: Path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return Packages(
        _build(tmp_path_factory.mktemp("older"), "0.1.0"), _build(tmp_path_factory.mktemp("newer"), "0.1.1")
    )


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("hospital")
    machine = Machine(folder / "root", folder / "console.log")
    try:
        debian(machine.root)
    except CannotBoot as reason:
        pytest.skip(str(reason))
    federation = Federation(options(folder / "federation", free_port(in_a_row=3)))
    with system_bus():
        try:
            machine.boot()
            yield Hospital(machine, federation)
        finally:
            federation.processes.stop_all()
            machine.power_off()


def test_the_same_commit_gives_the_same_bytes(packages: Packages, tmp_path: Path) -> None:
    again = _build(tmp_path, "0.1.0")
    assert again.read_bytes() == packages.older.read_bytes()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    bill = json.loads((tmp_path / "hemofed_0.1.0.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert {"torch", "grpcio", "cryptography"} <= {one["name"] for one in bill["components"]}


def test_installing_makes_users_and_folders_and_starts_nothing(hospital: Hospital, packages: Packages) -> None:
    machine = hospital.machine
    _install(machine, packages.older)
    assert "0.1.0" in machine.run("hemofed-site", "--version")
    for unit in UNITS:
        assert (machine.show(unit, "ActiveState"), machine.show(unit, "UnitFileState")) == ("inactive", "enabled")
    modes = machine.run(
        "stat", "-c", "%a %U %G", "/etc/hemofed/site.toml", "/srv/hemofed/export", "/var/lib/hemofed/agent"
    )
    assert modes.split("\n")[:3] == ["640 root hemofed", "750 root hemofed-export", "700 hemofed-agent hemofed"]
    assert "hemofed-site" in machine.run(
        "bash", "-c", ". /usr/share/bash-completion/completions/hemofed-site; complete -p"
    )
    assert "coordinator" in machine.run("man", "hemofed-site")


def test_the_trainer_waits_for_an_edited_site_toml_and_does_not_retry_a_mistake_in_it(
    hospital: Hospital,
) -> None:
    machine, settings = hospital.machine, hospital.machine.file("/etc/hemofed/site.toml")
    shipped = settings.read_text()
    machine.run("systemctl", "start", TRAINER)
    assert "not configured yet: edit" in hospital.status_text(TRAINER)
    settings.write_text(shipped.replace("name =", "nmae ="))
    machine.fails("systemctl", "restart", TRAINER)
    time.sleep(2 * int(machine.show(TRAINER, "RestartUSec").removesuffix("s")))
    assert (machine.show(TRAINER, "ActiveState"), machine.show(TRAINER, "NRestarts")) == ("failed", "0")
    assert "nmae is unknown" in machine.run("journalctl", "--no-pager", "-u", TRAINER)
    settings.write_text(shipped)
    machine.run("systemctl", "reset-failed", TRAINER)


def test_a_round_is_trained_under_the_units(hospital: Hospital) -> None:
    machine = hospital.machine
    hospital.prepare()
    hospital.fill_export()
    hospital.configure()
    assert "enrolled" in hospital.join()
    machine.run("systemctl", "restart", *UNITS)
    hospital.federation.start_run()
    machine.wait("a plan", lambda: "awaiting approval" in hospital.status_text(AGENT), 120)
    machine.run("hemofed-site", "plan", "approve", machine.run("hemofed-site", "plan", "show").split()[0])
    hospital.await_training()
    assert re.match(r"training, round \d+, \d+ %", hospital.status_text(TRAINER))
    hospital.complete_a_round()
    assert "unbroken" in machine.run("hemofed-site", "ledger", "verify")


def test_the_journal_names_each_step_of_a_round_once_not_at_every_poll(hospital: Hospital) -> None:
    lines = hospital.machine.run("journalctl", "--no-pager", "-o", "cat", "-u", AGENT).splitlines()
    asked = [json.loads(line)["asked"] for line in lines if '"step done"' in line]
    assert "train" in asked
    assert all(one != other for one, other in itertools.pairwise(asked))


def test_prove_shows_everything_on_a_host_that_has_joined_and_trains(hospital: Hospital) -> None:
    machine = hospital.machine
    said = machine.run("hemofed-site", "prove", "--report", "/var/tmp/proof.html", timeout_s=1800)
    assert "6 shown, 0 broken, 0 could not be shown" in said
    entries = re.search(r"(\d+) entries; (\d+) messages", said)
    assert entries is not None
    assert int(entries[2]) > 0
    assert re.search(r"a round trained on \d+ synthetic studies", said)
    assert re.search(r"^ +0 hits$", said, re.MULTILINE)
    assert "6 shown, 0 broken" in machine.file("/var/tmp/proof.html").read_text()
    assert "hemofed-prove" not in machine.run("systemctl", "list-units", "--all", "--no-legend", "hemofed-*")
    hospital.await_active()  # the twins took nobody's place


def test_the_trainer_has_no_network_and_the_agent_no_images(hospital: Hospital) -> None:
    machine = hospital.machine
    trainer, agent = machine.show(TRAINER, "MainPID"), machine.show(AGENT, "MainPID")
    interfaces = machine.run("nsenter", "-t", trainer, "-n", "cat", "/proc/net/dev")
    assert re.findall(r"^ *(\w+):", interfaces, re.MULTILINE) == ["lo"]
    for process in (trainer, agent):
        status = machine.run("cat", f"/proc/{process}/status")
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
    export = "/srv/hemofed/export"
    assert "dicom" in machine.run(
        "nsenter", "-t", trainer, "-m", "runuser", "-u", "hemofed-trainer", "--", "ls", export
    )
    assert "denied" in machine.fails("nsenter", "-t", agent, "-m", "runuser", "-u", "hemofed-agent", "--", "ls", export)
    assert "denied" in machine.fails("runuser", "-u", "hemofed-agent", "--", "ls", export)
    refused = machine.fails(
        "nsenter", "-t", trainer, "-m", "runuser", "-u", "hemofed-trainer", "--", "touch", f"{export}/x"
    )
    assert "Read-only file system" in refused
    assert "denied" in machine.fails("runuser", "-u", "hemofed-trainer", "--", "ls", IDENTITY)


def test_a_receiver_that_is_enabled_fills_the_trainer_s_export_and_sees_nothing_else(
    hospital: Hospital, tmp_path: Path
) -> None:
    machine, unit = hospital.machine, "hemofed-receiver.service"
    assert (machine.show(unit, "ActiveState"), machine.show(unit, "UnitFileState")) == ("inactive", "disabled")
    settings = machine.file("/etc/hemofed/receiver.toml")
    settings.write_text('disk_free_min_gib = 0.0\n[storage]\nsenders = { NORTH = ["127.0.0.1"] }\n')
    drop_in = machine.file("/etc/systemd/system/hemofed-receiver.service.d/peers.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nIPAddressAllow=127.0.0.1/32\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", unit)
    try:
        receiver = Receiver(tmp_path, port=11_112)
        assert receiver.send(image()) == [0]
        received = "/srv/hemofed/export/received"
        (stored,) = machine.run("find", received, "-name", "*.dcm").split()
        state = machine.run("stat", "-c", "%a %U %G", stored).strip()
        assert state == "640 hemofed-receiver hemofed-export"
        machine.run("runuser", "-u", "hemofed-trainer", "--", "test", "-r", stored)
        assert "denied" in machine.fails("runuser", "-u", "hemofed-trainer", "--", "touch", stored)
        assert "denied" in machine.fails("runuser", "-u", "hemofed-agent", "--", "ls", received)
        inside = ("nsenter", "-t", machine.show(unit, "MainPID"), "-m", "ls", "-A")
        assert machine.run(*inside, "/srv/hemofed/export").split() == ["received"]
        assert machine.run(*inside, "/var/lib/hemofed").split() == ["trainer"]
        machine.wait("its words", lambda: "1 objects received" in hospital.status_text(unit), 10)
    finally:
        machine.run("systemctl", "stop", unit)
        settings.write_text((ROOT / "deploy" / "receiver.toml").read_text())


def test_what_somebody_types_pauses_and_systemctl_says_so(hospital: Hospital) -> None:
    machine = hospital.machine
    machine.run("hemofed-site", "pause")
    machine.wait("a pause", lambda: hospital.status_text(TRAINER).startswith("paused"), 30)
    machine.wait("the agent's word", lambda: "paused: OPERATOR" in hospital.status_text(AGENT), 30)
    machine.run("hemofed-site", "resume")
    machine.wait("its end", lambda: not hospital.status_text(TRAINER).startswith("paused"), 30)


@pytest.mark.skipif(shutil.which("stress-ng") is None, reason="stress-ng is not installed")
def test_somebody_who_wants_every_core_finds_training_standing_still(hospital: Hospital) -> None:
    """How soon, on a machine without two more hospitals and an aggregator, stands in docs/HOSPITAL.md."""
    machine, settings = hospital.machine, hospital.machine.file("/etc/hemofed/site.toml")
    lively = settings.read_text()
    settings.write_text(lively.replace("foreign_cpu_max = 1.0", "foreign_cpu_max = 0.5"))
    machine.run("systemctl", "restart", TRAINER)
    hospital.await_training()
    children = f"/proc/{machine.show(TRAINER, 'MainPID')}/task/{machine.show(TRAINER, 'MainPID')}/children"
    (worker,) = machine.run("cat", children).split()
    with subprocess.Popen(["stress-ng", "--cpu", str(os.cpu_count()), "--quiet", "--temp-path", "/tmp"]) as others:
        began = time.monotonic()
        try:
            machine.wait("a stop", lambda: machine.run("cat", f"/proc/{worker}/stat").split()[2] == "T", 30)
            print(f"training stood still after {time.monotonic() - began:.2f} s")
            machine.wait("its reason", lambda: "FOREIGN_CPU" in machine.json(STATUS)["reasons"], 10)
            assert hospital.status_text(TRAINER).startswith("paused")
            used = machine.run("cat", f"/proc/{worker}/schedstat")
            time.sleep(3)
            assert machine.run("cat", f"/proc/{worker}/schedstat") == used
            machine.wait("the agent's word", lambda: "paused" in hospital.status_text(AGENT), 30)
        finally:
            others.terminate()
    machine.wait("its end", lambda: not hospital.status_text(TRAINER).startswith("paused"), 60)
    settings.write_text(lively)
    machine.run("systemctl", "restart", TRAINER)
    hospital.complete_a_round()


def test_stopped_killed_and_restarted_it_completes_the_round(hospital: Hospital) -> None:
    machine = hospital.machine
    hospital.await_training()
    machine.run("systemctl", "stop", TRAINER)
    assert machine.show(TRAINER, "Result") == "success"
    machine.run("systemctl", "start", TRAINER)
    before = [int(machine.show(unit, "NRestarts")) for unit in UNITS]
    machine.run("systemctl", "kill", "-s", "KILL", *UNITS)
    killed = [number + 1 for number in before]
    machine.wait("their return", lambda: [int(machine.show(unit, "NRestarts")) for unit in UNITS] == killed, 60)
    hospital.await_active()
    machine.run("systemctl", "restart", *UNITS)
    hospital.complete_a_round()


def test_a_trainer_that_hangs_is_restarted_by_the_watchdog(hospital: Hospital) -> None:
    machine = hospital.machine
    before = machine.show(TRAINER, "MainPID")
    machine.run("kill", "-STOP", before)
    machine.wait("the watchdog", lambda: machine.show(TRAINER, "MainPID") not in (before, "0"), 240)
    assert "watchdog" in machine.run("journalctl", "--no-pager", "-u", TRAINER).lower()
    machine.wait("a trainer", lambda: machine.show(TRAINER, "ActiveState") == "active", 60)


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_a_reboot_in_the_middle_of_a_round_loses_nothing(hospital: Hospital, how: str) -> None:
    machine = hospital.machine
    hospital.await_training()
    if how == "reboot":
        machine.reboot()
    else:
        machine.pull_the_plug()
        machine.boot()
    hospital.await_active()
    hospital.complete_a_round()
    assert "unbroken" in machine.run("hemofed-site", "ledger", "verify")


def test_an_upgrade_keeps_state_and_can_be_taken_back(hospital: Hospital, packages: Packages) -> None:
    machine = hospital.machine
    keys, entries = _keys(machine), len(machine.file(LEDGER).read_bytes().splitlines())
    settings = machine.file("/etc/hemofed/site.toml").read_text()
    _install(machine, packages.newer)
    assert "0.1.1" in machine.run("hemofed-site", "--version")
    _holds(hospital, keys, entries, settings)
    hospital.complete_a_round()
    machine.run("hemofed-rollback")
    assert "0.1.0" in machine.run("hemofed-site", "--version")
    _holds(hospital, keys, entries, settings)
    hospital.complete_a_round()


def test_a_farewell_is_heard_by_the_coordinator_and_the_agent_does_not_come_back(hospital: Hospital) -> None:
    machine = hospital.machine
    assert "stop it first" in machine.fails("hemofed-site", "leave", "--yes")
    machine.run("systemctl", "stop", *UNITS)
    machine.run("cp", "-a", f"{IDENTITY}/tls.pem", "/var/tmp/tls.pem")
    assert "has left" in machine.run("hemofed-site", "leave", "--yes")
    listed = json.loads(hospital.federation.aggregator_command("site", "list", "--json"))
    assert [row["standing"] for row in listed if row["site"] == hospital.name] == ["left"]
    machine.fails("systemctl", "start", AGENT)
    assert "ask for an invitation" in machine.run("journalctl", "--no-pager", "-o", "cat", "-u", AGENT)


def test_removal_keeps_state_and_purge_leaves_nothing_but_locked_accounts(hospital: Hospital) -> None:
    machine = hospital.machine
    machine.run("dpkg", "--remove", "hemofed-site")
    assert machine.file(IDENTITY).exists()
    assert not machine.file("/opt/hemofed").exists()
    machine.run("mv", "/var/tmp/tls.pem", IDENTITY)  # as on a host that has not said farewell
    assert "this site had not left the consortium" in machine.run("dpkg", "--purge", "hemofed-site")
    left = machine.run("find", "/", "-xdev", "-not", "-path", "/proc/*", "-iname", "*hemofed*").split()
    assert sorted(path for path in left if not path.startswith(("/srv/hemofed", "/var/tmp"))) == []
    assert machine.file("/srv/hemofed/export/dicom").exists()  # the images are the hospital's
    # The export has their numbers, so they stay, and cannot be used.
    assert "hemofed-export" in machine.run("getent", "group")
    assert machine.run("getent", "shadow", "hemofed-trainer").split(":")[1].startswith("!")


def _build(out: Path, version: str) -> Path:
    command: list[str | Path] = [
        ROOT / "deploy" / "deb" / "build.sh",
        "site",
        "--out",
        out,
        "--version",
        version,
        "--compression",
        "none",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def _install(machine: Machine, package: Path) -> None:
    inside = machine.file(f"/var/tmp/{package.name}")
    inside.unlink(missing_ok=True)
    subprocess.run(["cp", "--reflink=auto", str(package), str(inside)], check=True)
    machine.run("dpkg", "-i", f"/var/tmp/{package.name}", timeout_s=1200)


def _keys(machine: Machine) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in machine.file(IDENTITY).glob("*.key")}


def _holds(hospital: Hospital, keys: dict[str, bytes], entries: int, settings: str) -> None:
    machine = hospital.machine
    assert keys == _keys(machine)
    assert len(machine.file(LEDGER).read_bytes().splitlines()) >= entries
    assert machine.file("/etc/hemofed/site.toml").read_text() == settings
    hospital.await_active()
    assert "unbroken" in machine.run("hemofed-site", "ledger", "verify")
