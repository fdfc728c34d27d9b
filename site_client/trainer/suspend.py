"""Suspending a worker and resuming it. A suspended worker keeps its memory, and its bits do not change.

The service first asks with SIGUSR1. The worker then stops itself between two micro-batches, where it holds no lock and
no file. If it has not stopped after ASK_S seconds, the kernel stops it in the middle of its work (SIGSTOP). SIGCONT
ends both states. A worker that has to end gets SIGTERM first and SIGCONT after it, so that it can write its checkpoint.
Its rank processes and the processes that read the export for it are suspended and resumed together with it.
"""

import atexit
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

ASK_S: Final = 0.25
_POLL_S: Final = 0.01


def suspend(process: "subprocess.Popen[Any]") -> float:
    """Suspends a worker with all its processes.

    Returns:
        Seconds until the last of them was suspended; 0 if the worker had ended or was suspended before.
    """
    began = time.monotonic()
    if process.poll() is not None or is_suspended(process):
        return 0.0
    # Not to its other processes: they come to rest when the worker asks no more of them, or by SIGSTOP below.
    process.send_signal(signal.SIGUSR1)
    while not is_suspended(process) and time.monotonic() - began < ASK_S:
        time.sleep(_POLL_S)
    while not is_suspended(process):  # SIGSTOP cannot be caught, so this ends
        # Again and again: a process may fork while the others are told.
        _signal_family(process, signal.SIGSTOP)
        time.sleep(_POLL_S)
    return time.monotonic() - began


def resume(process: "subprocess.Popen[Any]") -> None:
    """Resumes a worker, and makes it forget a request to stop. Nothing happens to a worker that runs."""
    _signal_family(process, signal.SIGCONT)


def is_suspended(process: "subprocess.Popen[Any]") -> bool:
    """Tells whether the worker and all its processes are suspended or have ended."""
    return all(_stands_still(process_id) for process_id in family(process))


def family(process: "subprocess.Popen[Any]") -> list[int]:
    """Lists the process ids of a worker and of all processes below it: rank processes, readers of the export.

    Source: proc(5), /proc/pid/task/tid/children.
    """
    listed, waiting = [], [process.pid]
    while waiting:
        listed.append(waiting.pop())
        tasks_of_process: list[Path] = []
        with suppress(OSError):  # this process has ended, as a reader does on a damaged file
            tasks_of_process = list(Path(f"/proc/{listed[-1]}/task").glob("*/children"))
        for tasks in tasks_of_process:
            with suppress(OSError):  # this thread has ended
                waiting.extend(map(int, tasks.read_text().split()))
    return listed


def _signal_family(process: "subprocess.Popen[Any]", number: signal.Signals) -> None:
    # After the process was waited for, the kernel may give its number to a foreign process.
    if process.poll() is not None:
        return
    for process_id in family(process):
        with suppress(ProcessLookupError):
            os.kill(process_id, number)


def _stands_still(process_id: int) -> bool:
    """Reads state T or t (stopped), Z or X (ended) from /proc/pid/stat; a process without that file has ended."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "TtZX"


class PauseSignal:
    """The worker's side of suspending: it notes the request and stops itself where `obey` is called."""

    def __init__(self) -> None:
        self._requested = False
        signal.signal(signal.SIGUSR1, lambda *_: self._set(True))
        signal.signal(signal.SIGCONT, lambda *_: self._set(False))
        # Python puts default actions in the place of handlers while it ends: a late request would kill a worker whose
        # work is done. A signal that is ignored stays ignored.
        atexit.register(signal.signal, signal.SIGUSR1, signal.SIG_IGN)

    def obey(self) -> None:
        """Stops this very process until SIGCONT if the service asked for it. Called at every micro-batch."""
        if self._requested:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _set(self, requested: bool) -> None:
        self._requested = requested
