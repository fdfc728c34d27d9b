"""The coordinator's unit on a Debian that systemd boots: it serves behind its walls, is watched, and stops in time."""

import re
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.aggregator.test_stop import STOPS_WITHIN_S
from tests.custodian import CUSTODIAN
from tests.ports import free_port
from tests.system.machine import CannotBoot, Machine, debian, missing, system_bus
from tests.system.test_aggregator_package import build

UNIT, STATE = "hemofed-aggregator.service", "/var/lib/hemofed-aggregator"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=missing() or "a machine can be booted"),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The package is installed and initialised; a custodian's key of version 0.1.0 lies beside the CA."""
    folder = tmp_path_factory.mktemp("coordinator")
    machine = Machine(folder / "root", folder / "console.log")
    try:
        debian(machine.root)
    except CannotBoot as reason:
        pytest.skip(str(reason))
    package = build(folder / "package")
    with system_bus():
        try:
            machine.boot()
            machine.file("/root/package.deb").write_bytes(package.read_bytes())
            machine.run("dpkg", "-i", "/root/package.deb")
            public = CUSTODIAN.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            machine.file("/usr/share/custodian.pub").write_bytes(public)
            port = free_port(in_a_row=3)
            settings = machine.file("/etc/hemofed/aggregator.toml")
            text = settings.read_text().replace("0.0.0.0:8443", f"127.0.0.1:{port}")
            text = text.replace("0.0.0.0:8444", f"127.0.0.1:{port + 1}").replace(
                "127.0.0.1:8080", f"127.0.0.1:{port + 2}"
            )
            settings.write_text(text)
            command = ["hemofed-aggregator", "init", "--custodian", "/usr/share/custodian.pub"]
            machine.run("runuser", "-u", "hemofed-aggregator", "--", *command)
            machine.run("install", "-m", "600", "-o", "hemofed-aggregator", "/dev/null", f"{STATE}/ca/custodian.key")
            yield machine
        finally:
            machine.power_off()


def test_it_is_started_when_it_listens_and_systemctl_shows_its_line(machine: Machine) -> None:
    machine.run("systemctl", "start", UNIT)
    assert machine.show(UNIT, "ActiveState") == "active"
    machine.wait("a status", lambda: machine.show(UNIT, "StatusText") == "0 hospitals, no run", 20)
    assert machine.show(UNIT, "NRestarts") == "0"


def test_it_sees_neither_a_custodian_s_key_nor_another_place_to_write(machine: Machine) -> None:
    process = machine.show(UNIT, "MainPID")
    status = machine.run("cat", f"/proc/{process}/status")
    for line in (r"NoNewPrivs:\t1", r"Seccomp:\t2", r"CapBnd:\t0+"):
        assert re.search(rf"^{line}$", status, re.MULTILINE)
    inside = ("nsenter", "-t", process, "-m", "runuser", "-u", "hemofed-aggregator", "--")
    assert "denied" in machine.fails(*inside, "cat", f"{STATE}/ca/custodian.key")
    assert "denied" in machine.fails(*inside, "ls", "/root")
    assert "Read-only" in machine.fails(*inside, "touch", "/etc/hemofed/x")
    machine.run(*inside, "test", "-r", f"{STATE}/ca/ca.key")
    limits = machine.run("cat", f"/proc/{process}/limits")
    assert re.search(r"^Max open files +16384 +16384", limits, re.MULTILINE)


def test_a_service_that_hangs_is_restarted_by_the_watchdog(machine: Machine) -> None:
    before = machine.show(UNIT, "MainPID")
    machine.run("kill", "-STOP", before)
    machine.wait("the watchdog", lambda: machine.show(UNIT, "MainPID") not in (before, "0"), 180)
    machine.wait("its return", lambda: machine.show(UNIT, "ActiveState") == "active", 60)


def test_it_stops_in_order_and_in_time(machine: Machine) -> None:
    began = time.monotonic()
    machine.run("systemctl", "stop", UNIT)
    assert time.monotonic() - began < STOPS_WITHIN_S
    assert (machine.show(UNIT, "Result"), machine.show(UNIT, "ExecMainStatus")) == ("success", "0")
