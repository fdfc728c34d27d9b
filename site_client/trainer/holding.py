"""Stopping a worker where it is, and letting it go on. Its memory stays; its bits do not change.

First it is asked (SIGUSR1): it stops itself between two micro-batches, holding nothing. One that has not done so after
ASK_S is stopped by the kernel (SIGSTOP), with whatever it has in hand. SIGCONT ends both. A worker that is to be ended
is told so first (SIGTERM) and then let go on, so that it can write its checkpoint.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final

ASK_S: Final = 0.25
_LOOK_S: Final = 0.01


def hold(process: "subprocess.Popen[Any]") -> float:
    """Stops a worker; gives the seconds until it stood still. An ended one stands still."""
    began = time.monotonic()
    if process.poll() is not None or is_held(process):
        return 0.0
    process.send_signal(signal.SIGUSR1)
    while not is_held(process) and time.monotonic() - began < ASK_S:
        time.sleep(_LOOK_S)
    if not is_held(process):
        process.send_signal(signal.SIGSTOP)
        while not is_held(process):  # the kernel needs no consent
            time.sleep(_LOOK_S)
    return time.monotonic() - began


def let_go(process: "subprocess.Popen[Any]") -> None:
    """Lets a worker go on, and makes it forget that it was asked to stop. Harmless when it was not."""
    process.send_signal(signal.SIGCONT)


def is_held(process: "subprocess.Popen[Any]") -> bool:
    """Whether it stands still or has ended: state T (stopped), Z or X in /proc/<pid>/stat, or no such process."""
    try:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "TtZX"


class PauseBell:
    """The worker's side: `answer` at every micro-batch stops this very process if it was asked to."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGUSR1, lambda *_: self._set(True))
        signal.signal(signal.SIGCONT, lambda *_: self._set(False))

    def answer(self) -> None:
        if self._asked:
            os.kill(os.getpid(), signal.SIGSTOP)  # until SIGCONT

    def _set(self, asked: bool) -> None:
        self._asked = asked
