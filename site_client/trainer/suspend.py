"""Stopping a worker where it is, and letting it go on. Its memory stays; its bits do not change.

First it is asked (SIGUSR1): it stops itself between two micro-batches, holding nothing. One that has not done so after
ASK_S is stopped by the kernel (SIGSTOP), with whatever it has in hand. SIGCONT ends both. A worker that is to be ended
is told so first (SIGTERM) and then let go on, so that it can write its checkpoint. Processes that help a worker train
stand still and go on with it.
"""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

ASK_S: Final = 0.25
_LOOK_S: Final = 0.01


def suspend(process: "subprocess.Popen[Any]") -> float:
    """Stops a worker; gives the seconds until it stood still. An ended one stands still."""
    began = time.monotonic()
    if process.poll() is not None or is_suspended(process):
        return 0.0
    process.send_signal(signal.SIGUSR1)  # not to its helpers: what they have in hand ends when it waits, or by SIGSTOP
    while not is_suspended(process) and time.monotonic() - began < ASK_S:
        time.sleep(_LOOK_S)
    if not is_suspended(process):
        _tell(process, signal.SIGSTOP)
        while not is_suspended(process):  # the kernel needs no consent
            time.sleep(_LOOK_S)
    return time.monotonic() - began


def resume(process: "subprocess.Popen[Any]") -> None:
    """Lets a worker go on, and makes it forget that it was asked to stop. Harmless when it was not."""
    _tell(process, signal.SIGCONT)


def is_suspended(process: "subprocess.Popen[Any]") -> bool:
    """Whether all of it stands still or has ended."""
    return all(_is_still(number) for number in family(process))


def family(process: "subprocess.Popen[Any]") -> list[int]:
    """The process ids of a worker and of those that help it train: its children (proc(5), task/tid/children)."""
    try:
        helpers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:  # ended
        helpers = []
    return [process.pid, *map(int, helpers)]


def _tell(process: "subprocess.Popen[Any]", number: signal.Signals) -> None:
    if process.poll() is not None:  # its number may be somebody else's by now
        return
    for one in family(process):
        with suppress(ProcessLookupError):
            os.kill(one, number)


def _is_still(number: int) -> bool:
    """State T (stopped), Z or X in /proc/<pid>/stat, or no such process."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "TtZX"


class PauseSignal:
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
