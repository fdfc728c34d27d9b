"""`hemofed-site run`: agent and trainer as two child processes, for a machine without systemd.

Neither is restarted: when one ends, the other is stopped, and the exit status says that something ended. SIGTERM and
SIGINT stop both.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import structlog

_log = structlog.get_logger()
_LOOK_S = 0.2
_STOP_S = 90.0  # the trainer may be writing a checkpoint


def run_pair(config: Path) -> int:
    """Runs both until one ends or a signal comes; 0 only when it was a signal and both ended well."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _frame: asked.append(signum))
    children = {name: _start(name, config) for name in ("agent", "trainer")}
    while not asked and all(child.poll() is None for child in children.values()):
        time.sleep(_LOOK_S)
    for name, child in children.items():
        if child.poll() is not None:
            _log.error("process_ended", process=name, status=child.returncode)
    _stop(children)
    return 0 if asked and all(child.returncode == 0 for child in children.values()) else 1


def _start(name: str, config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "site_client.cli", name, "--config", str(config)])


def _stop(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for child in children.values():
        if child.poll() is None:
            child.terminate()
    ends_at = time.monotonic() + _STOP_S
    for name, child in children.items():
        try:
            child.wait(max(0.1, ends_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("process_killed", process=name, after_s=_STOP_S)
            child.kill()
            child.wait()
