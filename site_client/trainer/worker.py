"""The training child process: one scan or one job, then it ends. Only it decodes DICOM and imports torch.

It tells the service what it does in JSON lines on standard output, stops at the next micro-batch with a checkpoint on
SIGTERM, stands still there on SIGUSR1 until SIGCONT, and dies with its parent, so that a killed service leaves nobody
training. With `training.processes` it starts others like itself, which help it train and say nothing.
"""

import argparse
import ctypes
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Final

from site_client.config import load
from site_client.logging_setup import log_to_stderr
from site_client.spool import TrainerSide
from site_client.trainer.suspend import PauseSignal
from site_client.trainer.worker_messages import WorkerMessage, as_line

STOPPED: Final = 3  # exit status: asked to stop, checkpoint written
_NICE_LAST: Final = 19  # behind the service too, which on a busy machine must get its turn to pause this process
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """python -m site_client.trainer.worker --config FILE --parent PID (--scan | --run HEX --round N [--rank N])."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--run")
    parser.add_argument("--round", type=int)
    parser.add_argument("--rank", type=int, default=0)  # 1 and up: helps the worker that is its parent
    arguments = parser.parse_args()
    _die_with(arguments.parent)
    log_to_stderr(tracebacks=False)  # this process decodes DICOM
    status = _work(arguments)
    if arguments.rank:  # whose end the worker watches: gloo's threads have been seen to abort an ordinary exit
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _work(arguments: argparse.Namespace) -> int:
    asked: list[int] = []
    bell = PauseSignal()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _frame: asked.append(signum))
    os.nice(_NICE_LAST)  # before any thread is made: each inherits it
    from site_client.trainer import job as jobs  # torch: seconds, and only now that a stop can be heard
    from site_client.trainer.rank_processes import connected, helpers
    from site_client.training.loop import Stopped
    from site_client.training.ranks import Ranks

    def tell(note: WorkerMessage) -> None:
        print(as_line(note), flush=True)

    settings = load(arguments.config)
    if arguments.scan:
        tell(WorkerMessage(studies=jobs.scan(settings)))
        return 0
    spool = TrainerSide(settings.folders.spool)
    wanted = [job for job in spool.jobs() if (job.run_id.hex(), job.round) == (arguments.run, arguments.round)]
    if not wanted:  # withdrawn in the meantime
        return 0
    jobs.one_thread_at_a_time()

    def stopping() -> bool:
        bell.answer()
        return bool(asked)

    try:
        if arguments.rank:
            ranks = Ranks(arguments.rank, settings.training.processes)
            with connected(settings, wanted[0], ranks, arguments.parent):
                jobs.help_out(settings, wanted[0], ranks, stopping)
        else:
            gather = partial(helpers, settings, arguments.config, wanted[0], STOPPED)
            jobs.carry_out(settings, wanted[0], spool, tell, stopping, gather)
    except Stopped:
        return STOPPED
    return 0


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above took effect
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
