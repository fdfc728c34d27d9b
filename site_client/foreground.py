"""`hemofed-site run`: agent and trainer as two child processes, for a machine without systemd.

Neither is restarted: when one ends, the other is stopped, and the exit status is 1. SIGTERM and SIGINT stop both.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import structlog

_log = structlog.get_logger()
_LOOK_S: Final = 0.2
_STOP_S: Final = 90.0  # the trainer may be writing a checkpoint


def run_pair(config: Path) -> int:
    """Run both until one ends or a signal comes.

    Returns:
        0 when a signal came and both ended with 0; otherwise 1.
    """
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        # Only noted: the loop below stops the children in order.
        signal.signal(number, lambda signum, _frame: signals.append(signum))
    command = [sys.executable, "-m", "site_client.cli"]
    children = {name: subprocess.Popen([*command, name, "--config", str(config)]) for name in ("agent", "trainer")}
    while not signals and all(child.poll() is None for child in children.values()):
        time.sleep(_LOOK_S)
    for name, child in children.items():
        if child.poll() is not None:
            _log.error("process ended", process=name, status=child.returncode)
    _stop(children)
    return 0 if signals and all(child.returncode == 0 for child in children.values()) else 1


def _stop(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for child in children.values():
        if child.poll() is None:
            child.terminate()
    ends_at = time.monotonic() + _STOP_S
    for name, child in children.items():
        try:
            child.wait(max(0.1, ends_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("process killed", process=name, after_s=_STOP_S)
            # The trainer's last checkpoint stands, and the agent's files are written before anything is sent.
            child.kill()
            child.wait()
