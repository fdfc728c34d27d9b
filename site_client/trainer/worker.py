"""The worker: a child process of the service that does one scan or one job and ends.

It is the only process that imports torch. DICOM is decoded by processes of its own (`ingest/files`). It reports in JSON
lines on standard output. SIGTERM ends it at the next micro-batch, after a checkpoint; SIGUSR1 suspends it there until
SIGCONT. It dies with its parent, so that a killed service leaves no training behind. With `training.processes` it
starts rank processes, which run this same file and send no messages.
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

STOPPED: Final = 3  # exit status: the worker was asked to stop and has written a checkpoint
_NICE_LAST: Final = 19  # lower than the service, which on a busy machine must get its turn to suspend this process
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def main() -> None:
    """Parses the command line and exits with the status of the work.

    python -m site_client.trainer.worker --config FILE --parent PID (--scan | --run HEX --round N [--rank N] [--sealed])
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--run")
    parser.add_argument("--round", type=int)
    parser.add_argument("--rank", type=int, default=0)  # 1 and up: a rank process, whose parent is the worker
    parser.add_argument("--sealed", action="store_true")  # the content key comes on standard input, in hexadecimal
    arguments = parser.parse_args()
    _die_with(arguments.parent)
    log_to_stderr(tracebacks=False)  # a traceback could quote what a file said
    status = _work(arguments)
    if arguments.rank:
        # Its exit status decides about the worker's, and gloo's threads have been seen to abort an ordinary exit.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _work(arguments: argparse.Namespace) -> int:
    stop_requests: list[int] = []
    pause = PauseSignal()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _frame: stop_requests.append(signum))
    os.nice(_NICE_LAST)  # before any thread exists: each inherits it
    # After the handlers: importing torch takes seconds, in which the service may already ask for a stop.
    from site_client.trainer import rank_processes
    from site_client.trainer.job import JobInProgress, limit_interop_threads, scan
    from site_client.training.loop import Stopped
    from site_client.training.ranks import Ranks

    def send(message: WorkerMessage) -> None:
        print(as_line(message), flush=True)

    def stopping() -> bool:
        pause.obey()
        return bool(stop_requests)

    content_key = bytes.fromhex(sys.stdin.read()) if arguments.sealed else None
    settings = load(arguments.config)
    if arguments.scan:
        send(WorkerMessage(studies=scan(settings, stopping)))
        return 0
    spool = TrainerSide(settings.folders.spool)
    jobs = [job for job in spool.jobs() if (job.run_id.hex(), job.round) == (arguments.run, arguments.round)]
    if not jobs:  # the agent withdrew the job after the service had started this worker
        return 0
    job = jobs[0]
    limit_interop_threads()
    ranks = Ranks(arguments.rank, settings.training.processes)
    try:
        if arguments.rank:
            with rank_processes.connected(settings, job, ranks, arguments.parent):
                JobInProgress(settings, job, stopping, ranks=ranks, content_key=content_key).train_share()
        else:
            others = partial(rank_processes.started, settings, arguments.config, job, STOPPED, content_key)
            JobInProgress(settings, job, stopping, send, ranks, content_key).carry_out(spool, others)
    except Stopped:
        return STOPPED
    return 0


def _die_with(parent_id: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that died before the line above sends no signal; this process then has another parent.
    if os.getppid() != parent_id:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
