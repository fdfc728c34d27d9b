"""A hospital's machine: a Debian 12 tree that boots its own systemd under systemd-nspawn, on the network of this host.

Real: PID 1, the kernel's namespaces and filters, dpkg, users, the journal. Not real: the kernel is the host's.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

NEEDED = ("debootstrap", "systemd-nspawn", "nsenter", "dbus-daemon", "dpkg-deb")
# Packages of a Debian 12 server and dependencies of ours: the machine itself gets no network packages later.
PACKAGES = "systemd,systemd-sysv,dbus,libpam-systemd,python3.11,libexpat1,procps,man-db,bash-completion"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hemofed" / "bookworm"
COMMAND_S = 600.0
BOOT_S = 120.0


class CannotBoot(RuntimeError):
    """No machine here; the sentence says why."""


def missing() -> str:
    """Why no machine can be booted here; empty when nothing is known to be in the way."""
    if os.geteuid() != 0:
        return "only root can boot a machine"
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def debian(tree: Path) -> None:
    """A fresh tree; made once and kept in the cache. Errors: CannotBoot, when debootstrap finds no archive."""
    if not CACHE.exists():
        draft = CACHE.with_name(f"{CACHE.name}.{os.getpid()}")
        draft.mkdir(parents=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(draft)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(draft)
            last = (done.stdout + done.stderr).strip().splitlines()[-1]
            raise CannotBoot(f"debootstrap: {last}")
        draft.rename(CACHE)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{CACHE}/.", str(tree)], check=True)


@contextmanager
def system_bus() -> Iterator[None]:
    """systemd-nspawn wants the host's system bus; where a host has none, one runs for as long as the block does."""
    if Path("/run/dbus/system_bus_socket").is_socket() and _bus_answers():
        yield
        return
    Path("/run/dbus").mkdir(exist_ok=True)
    with subprocess.Popen(["dbus-daemon", "--system", "--nofork", "--nopidfile"]) as bus:
        try:
            _wait("a system bus", _bus_answers, 10)
            yield
        finally:
            bus.terminate()


def _bus_answers() -> bool:
    command = ["busctl", "--system", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Machine:
    """One machine in a folder `root`; its console goes to `console`. `shown`: paths inside, of folders of this host."""

    def __init__(self, root: Path, console: Path, shown: Mapping[str, Path] = MappingProxyType({})) -> None:
        self.root, self._console, self._shown = root, console, shown
        self._nspawn: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Returns once systemd has started everything that it starts at boot."""
        command = ["systemd-nspawn", "--boot", "--register=no", "--keep-unit", "--quiet", "-D", str(self.root)]
        command += [f"--bind-ro={folder}:{path}" for path, folder in self._shown.items()]
        with self._console.open("ab") as console:
            self._nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        self._await_boot()

    def run(self, *command: str, good: bool = True, timeout_s: float = COMMAND_S) -> str:
        """Runs a command as root inside; gives standard output and error. `good`: exit status 0 is demanded."""
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root", "TERM=dumb"]
        inside = ["nsenter", "-t", str(self.pid_1()), "-m", "-u", "-i", "-p", "-C", *environment, *command]
        done = subprocess.run(
            inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout_s
        )
        assert done.returncode == 0 or not good, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def fails(self, *command: str) -> str:
        """Runs a command that must not succeed; gives its output."""
        output = self.run("sh", "-c", 'if "$@"; then echo UNEXPECTED SUCCESS; fi', "sh", *command)
        assert "UNEXPECTED SUCCESS" not in output, output
        return output

    def show(self, unit: str, name: str) -> str:
        """Reads a property of a unit, as `systemctl show` gives it."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def file(self, path: str) -> Path:
        """Names a file of the machine by its path on this host."""
        return self.root / path.lstrip("/")

    def json(self, path: str) -> dict[str, Any]:
        return dict(json.loads(self.file(path).read_bytes()))

    def wait(self, event: str, condition: Callable[[], bool], timeout_s: float) -> None:
        def journal() -> str:
            return self.run("journalctl", "-n", "60", "--no-pager", "-u", "hemofed-*", good=False)

        _wait(event, condition, timeout_s, journal)

    def reboot(self) -> None:
        """Stops every service in order, then boots the machine again."""
        assert self._nspawn is not None
        self.run("systemctl", "poweroff", good=False)
        self._nspawn.wait(120)
        self.boot()

    def pull_the_plug(self) -> None:
        """Takes the power away: no process inside gets a signal that it could answer."""
        assert self._nspawn is not None
        os.kill(self.pid_1(), signal.SIGKILL)
        self._nspawn.kill()
        self._nspawn.wait()
        self._nspawn = None

    def power_off(self) -> None:
        if self._nspawn is None:
            return
        self._nspawn.terminate()  # systemd-nspawn asks PID 1 for an orderly end
        try:
            self._nspawn.wait(120)
        except subprocess.TimeoutExpired:
            self.pull_the_plug()
        self._nspawn = None

    def pid_1(self) -> int:
        """Finds the process on this host that is PID 1 inside; 0 while there is none."""
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, self._console.read_text(errors="replace")[-3000:]
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _await_boot(self) -> None:
        def up() -> bool:
            if self.pid_1() == 0:
                return False
            try:
                state = self.run("systemctl", "is-system-running", good=False, timeout_s=20).strip()
            except (ValueError, subprocess.TimeoutExpired):
                return False
            return state in ("running", "degraded")

        _wait("boot", up, BOOT_S, lambda: self._console.read_text(errors="replace")[-3000:])


def _wait(event: str, condition: Callable[[], bool], timeout_s: float, journal: Callable[[], str] = lambda: "") -> None:
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at, f"{timeout_s} s without {event}: {journal()}"
        time.sleep(0.2)
