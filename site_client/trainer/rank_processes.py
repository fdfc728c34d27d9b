"""The rank processes of one training: processes beside the worker, each on a GPU of its own.

They live while the worker trains and die with it. The worker ends when one of them fails. So the service supervises one
process, and starts it again if any of them failed.
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
from site_client.trainer.job_folders import job_folder
from site_client.trainer.worker_messages import hand_over
from site_client.training.ranks import Ranks, joined

_log = structlog.get_logger()


@contextmanager
def started(
    settings: SiteSettings, config: Path, job: Job, stopped_status: int, content_key: bytes | None = None
) -> Iterator[None]:
    """Starts ranks 1 and up of `training.processes` and connects the worker, rank 0, with them.

    Args:
        settings: Of this site.
        config: The file that `settings` came from; each rank process reads it again.
        job: The job whose training they share.
        stopped_status: Exit status of a rank process that was asked to stop; it is no failure.
        content_key: Of a sealed job.

    Yields:
        Nothing. The connection holds inside the block.
    """
    ranks = Ranks(0, settings.training.processes)
    # Before the machine's last start another worker may have had this process id: its file would mislead the ranks.
    meeting_point(settings, job, os.getpid()).unlink(missing_ok=True)
    for rank in range(1, ranks.world):
        command = [sys.executable, "-m", "site_client.trainer.worker", "--config", str(config.absolute())]
        command += ["--parent", str(os.getpid()), "--rank", str(rank)]
        command += ["--run", job.run_id.hex(), "--round", str(job.round)]
        if content_key is not None:
            command.append("--sealed")
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        hand_over(process, content_key)
        threading.Thread(target=_end_with, args=(process, (0, stopped_status)), daemon=True).start()
    with connected(settings, job, ranks, os.getpid()):
        yield


@contextmanager
def connected(settings: SiteSettings, job: Job, ranks: Ranks, worker_id: int) -> Iterator[None]:
    """Connects this process with the others of the training. `worker_id`: the process id of rank 0."""
    with joined(ranks, settings.training.device, f"file://{meeting_point(settings, job, worker_id)}"):
        yield


def meeting_point(settings: SiteSettings, job: Job, worker_id: int) -> Path:
    """Names the file through which the ranks exchange their addresses. It lies in the job's folder and goes with it."""
    return job_folder(settings, job).absolute() / f"meeting-{worker_id}"


def _end_with(process: "subprocess.Popen[str]", sound: tuple[int, ...]) -> None:
    """Ends this worker if the rank process ends with a status that is not `sound`."""
    status = process.wait()
    if status not in sound:
        _log.error("rank process failed", status=status)
        # An exception would end this thread only: the main thread waits inside a GPU operation for the dead rank.
        os._exit(1)
