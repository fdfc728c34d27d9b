"""Long-running child processes by name: started, watched, restarted as systemd would, and all gone at the end.

Each child leads its own process group and dies with this process (PR_SET_PDEATHSIG), so that neither Ctrl-C nor
kill -9 of the demo leaves one behind. Their output goes to one log file each.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
STOP_S = 15.0


@dataclass
class Child:
    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes]
    restarts: int = 0


class RestartedTooOften(RuntimeError):
    """A child died again and again; its log says why."""


@dataclass
class Processes:
    """The demo's children. `folder` receives NAME.log and processes.json (name -> pid)."""

    folder: Path
    environment: Mapping[str, str]
    restarts_max: int = 5
    children: dict[str, Child] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.children[name] = Child(name, command, self._spawn(name, command))
        self._write_pids()

    def restart_the_dead(self) -> list[str]:
        """Start again whatever died since the last call, as Restart=on-failure does; return their names.

        Errors: RestartedTooOften, naming the child and its log.
        """
        dead = [child for child in self.children.values() if child.process.poll() is not None]
        for child in dead:
            if child.restarts >= self.restarts_max:
                raise RestartedTooOften(f"{child.name} died {child.restarts + 1} times; read {self.log(child.name)}")
            child.restarts += 1
            _signal_group(child.process, signal.SIGKILL)  # grandchildren it may have left
            child.process = self._spawn(child.name, child.command)
        if dead:
            self._write_pids()
        return [child.name for child in dead]

    def stop_all(self) -> None:
        """SIGTERM to all, then SIGKILL to the group of whoever is left; returns when none is."""
        for child in self.children.values():
            _signal_group(child.process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):  # killed below, with its group
                child.process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(child.process, signal.SIGKILL)
            child.process.wait()
        self.children.clear()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment),
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _write_pids(self) -> None:
        path = self.folder / "processes.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({child.name: child.process.pid for child in self.children.values()}))
        temporary.replace(path)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # the whole group is already gone
        os.killpg(process.pid, number)
