"""The processes that share a worker's training, each on a GPU of its own. They live while it trains.

They die with the worker, and it with any of them that fails: the service sees one worker, and tries again.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from site_client.config import SiteSettings
from site_client.spool import Job
from site_client.trainer.worker_messages import job_folder
from site_client.training.ranks import Ranks, joined

_log = structlog.get_logger()


@contextmanager
def helpers(settings: SiteSettings, config: Path, job: Job, stopped: int) -> Iterator[None]:
    """Starts them and connects the worker with them. `stopped`: the exit status of one that was asked to stop."""
    ranks = Ranks(0, settings.training.processes)
    meeting_point(settings, job, os.getpid()).unlink(missing_ok=True)  # of a namesake before the machine's last start
    for rank in range(1, ranks.world):
        command = [sys.executable, "-m", "site_client.trainer.worker", "--config", str(config.absolute())]
        command += ["--parent", str(os.getpid()), "--rank", str(rank)]
        command += ["--run", job.run_id.hex(), "--round", str(job.round)]
        helper = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        threading.Thread(target=_end_with, args=(helper, (0, stopped)), daemon=True).start()
    with connected(settings, job, ranks, os.getpid()):
        yield


@contextmanager
def connected(settings: SiteSettings, job: Job, ranks: Ranks, worker: int) -> Iterator[None]:
    """`worker`: the process id of the leading one."""
    with joined(ranks, settings.training.device, f"file://{meeting_point(settings, job, worker)}"):
        yield


def meeting_point(settings: SiteSettings, job: Job, worker: int) -> Path:
    """A file in which they tell each other their addresses; it goes with the job's folder."""
    return job_folder(settings, job).absolute() / f"meeting-{worker}"


def _end_with(helper: "subprocess.Popen[bytes]", well: tuple[int, ...]) -> None:
    """Ends this process if a helper fails: nothing else wakes one that waits for it on a GPU."""
    status = helper.wait()
    if status not in well:
        _log.error("helper failed", status=status)
        os._exit(1)
