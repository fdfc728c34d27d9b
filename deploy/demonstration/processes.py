"""Long-running child processes by name: started, watched, restarted as systemd would do, and all ended at the end.

Each child leads its own process group and dies with this process (PR_SET_PDEATHSIG). So neither Ctrl-C nor kill -9 of
the demo leaves one behind. The output of each goes to a log file of its own.
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
# Loaded here: after a fork only functions that are loaded already are safe to call.
_LIBC = ctypes.CDLL(None, use_errno=True)
STOP_S = 15.0


@dataclass
class Child:
    """One child, and how often it was restarted."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes]
    restarts: int = 0


class RestartedTooOften(RuntimeError):
    """A child died again and again; its log tells the cause."""


@dataclass
class Processes:
    """The demo's children. `folder` receives NAME.log and processes.json (name -> process id)."""

    folder: Path
    environment: Mapping[str, str]
    restarts_max: int = 5
    children: dict[str, Child] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Starts a child under this name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.children[name] = Child(name, command, self._spawn(name, command))
        self._write_process_ids()

    def restart_the_dead(self) -> list[str]:
        """Restarts every child that died since the last call, as systemd's Restart=on-failure does.

        Returns:
            Their names.

        Raises:
            RestartedTooOften: A child died once more than `restarts_max` times.
        """
        dead = [child for child in self.children.values() if child.process.poll() is not None]
        for child in dead:
            if child.restarts >= self.restarts_max:
                raise RestartedTooOften(f"{child.name} died {child.restarts + 1} times; read {self.log(child.name)}")
            child.restarts += 1
            _signal_group(child.process, signal.SIGKILL)  # grandchildren that it may have left
            child.process = self._spawn(child.name, child.command)
        if dead:
            self._write_process_ids()
        return [child.name for child in dead]

    def stop_all(self) -> None:
        """Ends all children: SIGTERM, then SIGKILL to the groups of those that are left. Returns when none is left."""
        for child in self.children.values():
            _signal_group(child.process, signal.SIGTERM)
        # One deadline for all: they end side by side.
        deadline = time.monotonic() + STOP_S
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):  # killed below, with its group
                child.process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(child.process, signal.SIGKILL)
            child.process.wait()
        self.children.clear()

    def log(self, name: str) -> Path:
        """Names the log file of a child."""
        return self.folder / f"{name}.log"

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment),
                # Ctrl-C in the terminal reaches the demo alone, which ends the children in order.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _write_process_ids(self) -> None:
        path = self.folder / "processes.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({child.name: child.process.pid for child in self.children.values()}))
        temporary.replace(path)  # a reader never sees half of the file


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # the whole group has ended already
        os.killpg(process.pid, number)
