"""The probes that ask daemons, over a real D-Bus: logind, UPower and NetworkManager as python-dbusmock plays them."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from site_client.bus import Bus, BusError
from site_client.metered import is_metered
from site_client.trainer.idle import daemons
from site_client.trainer.idle.readings import NEVER_S, Reading, Unknown

PYTHON = Path("/usr/bin/python3")  # Debian's: python3-dbusmock is a package of the system


def _missing() -> str:
    if shutil.which("dbus-daemon") is None:
        return "dbus-daemon not installed"
    command = [str(PYTHON), "-c", "import dbusmock"]
    if not PYTHON.exists() or subprocess.run(command, capture_output=True, check=False).returncode:
        return "python3-dbusmock not installed"
    return ""


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing() or "-")
MOCK = "org.freedesktop.DBus.Mock"
LOGIN, POWER, NETWORK = "org.freedesktop.login1", "org.freedesktop.UPower", "org.freedesktop.NetworkManager"
PATHS = {name: f"/{name.replace('.', '/')}" for name in (LOGIN, POWER, NETWORK)}


@dataclass
class Machine:
    """A private system bus, and daemons on it."""

    bus: Bus
    start: Callable[[str, str], None]

    def mock(self, service: str, method: str, *arguments: tuple[str, object]) -> object:
        return self.bus.call(service, PATHS[service], MOCK, method, *arguments)

    def set(self, service: str, path: str, interface: str, name: str, value: tuple[str, object]) -> None:
        self.bus.call(service, path, MOCK, "UpdateProperties", ("s", interface), ("a{sv}", {name: value}))

    def session(self, name: str, **properties: tuple[str, object]) -> None:
        added = (("s", name), ("s", "seat0"), ("u", 1000), ("s", "somebody"), ("b", True))
        # AddSession answers with the path of the session, an object path.
        reply = cast(tuple[str], self.mock(LOGIN, "AddSession", *added))
        for key, value in properties.items():
            self.set(LOGIN, reply[0], f"{LOGIN}.Session", key, value)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    address = f"unix:path={tmp_path / 'bus'}"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    running = [subprocess.Popen(["dbus-daemon", "--session", "--nofork", f"--address={address}", "--nopidfile"])]
    _await(lambda: (tmp_path / "bus").exists())
    with closing(Bus()) as bus:

        def start(service: str, template: str) -> None:
            command = [str(PYTHON), "-m", "dbusmock", "--system", "--template", template]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            _await(lambda: _answers(bus, service))

        yield Machine(bus, start)
    for process in reversed(running):
        process.terminate()
        process.wait(10)


def _answers(bus: Bus, service: str) -> bool:
    try:
        bus.call(service, PATHS[service], "org.freedesktop.DBus.Peer", "Ping")
    except BusError:
        return False
    return True


def _await(true: Callable[[], bool]) -> None:
    for _ in range(400):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("a daemon did not come up within 20 s")


def idle_times(bus: Bus, now_us: int) -> tuple[Reading[float], Reading[float]]:
    found = daemons.sessions(bus, now_us, Path("/nowhere"))
    return daemons.idle_s(found, remote=False), daemons.idle_s(found, remote=True)


def test_on_a_bus_without_these_daemons_everything_is_unknown(machine: Machine) -> None:
    assert isinstance(daemons.sessions(machine.bus, 0), Unknown)
    assert isinstance(daemons.power_supply(machine.bus)[1], Unknown)
    assert is_metered(machine.bus) is None


def test_no_bus_at_all_is_unknown_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'nowhere'}")
    with closing(Bus()) as bus:
        assert isinstance(daemons.sessions(bus, 0), Unknown)
        assert is_metered(bus) is None


def test_logind_tells_who_is_there_and_for_how_long_nobody_touched_anything(machine: Machine) -> None:
    machine.start(LOGIN, "logind")
    assert idle_times(machine.bus, 0) == (NEVER_S, NEVER_S)
    machine.session("c1", IdleHint=("b", True), IdleSinceHintMonotonic=("t", 10_000_000))
    assert idle_times(machine.bus, 70_000_000) == (60.0, NEVER_S)
    machine.session("c2", Remote=("b", True), IdleHint=("b", False))
    assert idle_times(machine.bus, 70_000_000) == (60.0, 0.0)
    machine.session("c3", IdleHint=("b", False), Class=("s", "greeter"))
    assert idle_times(machine.bus, 70_000_000) == (60.0, 0.0)  # the login screen is nobody
    machine.session("c4", IdleHint=("b", False), State=("s", "closing"))
    assert idle_times(machine.bus, 70_000_000) == (60.0, 0.0)  # nor is who has gone


def test_upower_tells_battery_and_emergency_supply_apart(machine: Machine) -> None:
    machine.start(POWER, "upower")
    assert daemons.power_supply(machine.bus) == (False, False)
    machine.set(POWER, PATHS[POWER], POWER, "OnBattery", ("b", True))
    assert daemons.power_supply(machine.bus) == (True, False)
    ups = {"Type": ("u", 3), "State": ("u", 2)}
    device: list[tuple[str, object]] = [
        ("s", f"{PATHS[POWER]}/devices/ups"),
        ("s", f"{POWER}.Device"),
        ("a{sv}", ups),
        ("a(ssss)", []),
    ]
    machine.mock(POWER, "AddObject", *device)
    listed = ("s", f'ret = [dbus.ObjectPath("{PATHS[POWER]}/devices/ups")]')
    machine.mock(POWER, "AddMethod", ("s", POWER), ("s", "EnumerateDevices"), ("s", ""), ("s", "ao"), listed)
    assert daemons.power_supply(machine.bus) == (False, True)


@pytest.mark.parametrize(("answer", "metered"), [(0, None), (1, True), (2, False), (3, True), (4, False)])
def test_networkmanager_s_five_answers(machine: Machine, answer: int, metered: bool | None) -> None:
    machine.start(NETWORK, "networkmanager")
    machine.mock(NETWORK, "AddProperty", ("s", NETWORK), ("s", "Metered"), ("v", ("u", answer)))
    assert is_metered(machine.bus) is metered
