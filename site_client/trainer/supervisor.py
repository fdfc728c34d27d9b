"""The supervisor of the worker: it starts, suspends, resumes and ends it, and declines a job that keeps failing.

At most one worker exists at a time. Whatever kills a worker, the service lives on and starts another one, which goes on
from the last checkpoint.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
from federation.hpke import SealingKey
from federation.vocabulary import Outcome, StateReason

from site_client.spool import Job, TrainerSide, Update
from site_client.trainer.idle.decide import Mode
from site_client.trainer.suspend import family, is_suspended, resume, suspend
from site_client.trainer.worker import STOPPED
from site_client.trainer.worker_messages import TrainingSpeed, WorkerMessage, from_line, hand_over

_log = structlog.get_logger()
TRIES: Final = 3
STOP_S: Final = 80.0  # a worker that decodes a large series reacts between two studies only
_POLL_S: Final = 0.25


class Worker:
    """A worker process, its last message, and the speed of its training."""

    def __init__(self, config: Path, job: Job | None, message: WorkerMessage, content_key: bytes | None = None) -> None:
        """Starts the process.

        Args:
            config: site.toml, which the worker reads itself.
            job: What it shall do; None: a scan.
            message: Stands for its last message until it sends one.
            content_key: Of a sealed job.
        """
        self.job, self.message, self.speed = job, message, TrainingSpeed()
        task = ["--scan"] if job is None else ["--run", job.run_id.hex(), "--round", str(job.round)]
        command = [sys.executable, "-m", "site_client.trainer.worker", "--config", str(config.absolute())]
        command += ["--parent", str(os.getpid()), *task]
        if content_key is not None:
            command.append("--sealed")
        # A process group of its own: Ctrl-C in a terminal reaches the service alone, which then stops the worker.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )
        # Through a pipe: neither a file nor the process list ever holds the key.
        hand_over(self.process, content_key)
        threading.Thread(target=self._read_messages, daemon=True).start()

    def _read_messages(self) -> None:
        # Popen was given a pipe for standard output.
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self.message = from_line(line)
            except ValueError:  # a library's own output; unread, it would fill the pipe and block the worker
                continue
            self.speed.observe(self.message, time.monotonic())


class Supervisor:
    """Supervises at most one worker."""

    def __init__(self, config: Path, spool: TrainerSide, key: SealingKey, alive: Callable[[], None]) -> None:
        """Supervises no worker yet.

        Args:
            config: site.toml.
            key: Content keys of sealed jobs come encrypted to it.
            spool: Says which jobs are delivered, and takes the outcome of a job that keeps failing.
            alive: Called while a worker takes its time to end, so that systemd does not take the service for hung.
        """
        self.worker: Worker | None = None
        self.scanned = False  # a first scan has ended since the start, whatever came of it
        self.studies = 0  # ready for training, as of the last scan
        self._config, self._spool, self._key, self._alive = config, spool, key, alive
        self._failures: dict[tuple[bytes, int], int] = {}

    @property
    def job(self) -> Job | None:
        """The job in progress; None during a scan and without a worker."""
        return None if self.worker is None else self.worker.job

    @property
    def process_ids(self) -> list[int]:
        """This process, its worker and all processes below it: hemofed's own use of the machine."""
        return [os.getpid(), *([] if self.worker is None else family(self.worker.process))]

    def next_job(self, jobs: Sequence[Job]) -> Job | None:
        """Finds the first job that has no outcome yet, and no missing key: the agent will bring it."""
        waiting = (job for job in jobs if not self._spool.delivered(job.run_id, job.round))
        return next((job for job in waiting if not job.is_sealed or self._content_key(job) is not None), None)

    def _content_key(self, job: Job) -> bytes | None:
        return self._spool.content_key(job, self._key)

    def start_next(self, jobs: Sequence[Job]) -> None:
        """Starts a worker if none is at work: for the scan after the service's start, then for the next job."""
        if self.worker is not None:
            return
        job = self.next_job(jobs) if self.scanned else None
        if self.scanned and job is None:
            return
        content_key = self._content_key(job) if job is not None and job.is_sealed else None
        self.worker = Worker(self._config, job, WorkerMessage(studies=self.studies), content_key)
        _log.info("worker started", task="scan" if job is None else "round", round=None if job is None else job.round)

    def obey(self, mode: Mode, previous: Mode, sampled_at_s: float) -> None:
        """Makes the worker do what the idle gate decided.

        Args:
            mode: Decided in this turn.
            previous: Decided in the turn before.
            sampled_at_s: When the gate began to sample the machine, on the monotonic clock; for the log only.
        """
        if self.worker is None:
            return
        if mode is Mode.HOLD:
            if suspend(self.worker.process) > 0:
                _log.info("worker suspended", after_ms=round(1000 * (time.monotonic() - sampled_at_s)))
        elif mode is Mode.RELEASE:
            _log.info("worker released")
            self.stop()
        elif previous is not Mode.RUN or is_suspended(self.worker.process):
            resume(self.worker.process)

    def collect(self, jobs: Sequence[Job]) -> None:
        """Notices that the worker has ended, or ends it when its job is no longer on offer."""
        worker = self.worker
        if worker is None:
            return
        if worker.job is None:  # only a scan counts what is ready: a job counts what it has prepared so far
            self.studies = worker.message.studies or self.studies
        status = worker.process.poll()
        if status is not None:
            self.worker = None
            _log.info("worker ended", status=status)
            if worker.job is None:
                # Also after a failed scan: the next job scans again and fails with its reason.
                self.scanned = True
            elif status not in (0, STOPPED):
                self._count_failure(worker.job)
        elif worker.job is not None and not any(
            (job.run_id, job.round) == (worker.job.run_id, worker.job.round) for job in jobs
        ):
            _log.info("job cancelled", round=worker.job.round)
            self.stop()

    def _count_failure(self, job: Job) -> None:
        """Declines a job after TRIES failures: a broken model or plan would fail for ever."""
        key = (job.run_id, job.round)
        self._failures[key] = self._failures.get(key, 0) + 1
        if self._failures[key] >= TRIES and not self._spool.delivered(*key):
            _log.error("job declined", reason=StateReason.TRAINING_FAILED, tries=TRIES)
            outcome = Update(
                job.run_id,
                job.round,
                job.base_model_digest,
                Outcome.DECLINED,
                StateReason.TRAINING_FAILED,
                0,
                0.0,
                0,
                False,
            )
            self._spool.deliver(outcome)

    def stop(self) -> None:
        """Ends the worker: SIGTERM lets it write a checkpoint; after STOP_S seconds it is killed.

        A killed worker loses its work since the last checkpoint.
        """
        if self.worker is None:
            return
        job, process, self.worker = self.worker.job, self.worker.process, None
        if job is None:  # a scan has no checkpoint: the catalog's transactions keep what it read
            process.kill()
        # SIGTERM before SIGCONT: a suspended worker that was only resumed would first train another micro-batch.
        process.terminate()
        resume(process)
        ends_at = time.monotonic() + STOP_S
        while time.monotonic() < ends_at:
            self._alive()
            try:
                process.wait(_POLL_S)
                return
            except subprocess.TimeoutExpired:
                continue
        _log.error("worker killed", after_s=STOP_S)
        process.kill()
        process.wait()
