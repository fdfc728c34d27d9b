"""The trainer as a process: watches the spool, keeps one worker at work, and writes its status every second.

It neither imports torch nor opens an image: the worker does, and what kills the worker is recorded here and tried
again.

Four times a second it asks the idle gate: the worker runs, stands still, or ends after a checkpoint.
A job whose folder disappears is cancelled; one that fails three times is declined.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from federation.vocabulary import Outcome, SiteState, StateReason

from site_client.config import NOT_CONFIGURED, SiteSettings
from site_client.errors import InUse, SpoolRefused
from site_client.logging_setup import log_to_stderr
from site_client.notify import Notifier
from site_client.spool import Job, Status, TrainerSide, Update
from site_client.trainer.idle.decide import Mode
from site_client.trainer.idle.watch import Watch, local_zone
from site_client.trainer.suspend import family, is_suspended, resume, suspend
from site_client.trainer.worker import STOPPED
from site_client.trainer.worker_messages import TrainingSpeed, WorkerMessage, from_line, job_folder

_log = structlog.get_logger()
TURN_S: Final = 0.25
STATUS_S: Final = 1.0
TRIES: Final = 3
STOP_S: Final = 80.0  # a worker decoding a large series looks up between two studies


def run(settings: SiteSettings, config: Path) -> int:
    """Runs until SIGTERM or SIGINT; gives the exit status."""
    log_to_stderr(tracebacks=False)
    notifier = Notifier.of_service()
    if settings.is_example:
        _stand_by(notifier)
        return 0
    settings.folders.trainer.mkdir(parents=True, exist_ok=True)
    with (settings.folders.trainer / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse("another trainer runs on this state folder; stop it first") from None
        service = TrainerService(settings, config, lambda: datetime.now(UTC), notifier)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited: a worker that is asked too early must not die of it
        _set_when_told(service.stopping)
        service.run()
    return 0


def _stand_by(notifier: Notifier) -> None:
    """Until told to end. With the settings of the example nothing is read, not even an export that happens to be there.

    Not a failure: systemd would try again for ever.
    """
    stopping = threading.Event()
    _set_when_told(stopping)
    _log.warning("not configured", fix="edit site.toml, then restart")
    notifier.ready()
    notifier.status(f"{NOT_CONFIGURED}, then systemctl restart hemofed-trainer")
    while not stopping.wait(TURN_S):
        notifier.alive()
    notifier.stopping()


def _set_when_told(stopping: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())


@dataclass
class _Worker:
    """A worker process and the last thing it said."""

    job: Job | None  # None: it scans
    process: subprocess.Popen[str]
    note: WorkerMessage = field(default_factory=WorkerMessage)
    pace: TrainingSpeed = field(default_factory=TrainingSpeed)

    def listen(self) -> None:
        # Popen was given a pipe for standard output.
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self.note = from_line(line)
            except ValueError:  # a library's own output; unread, it would fill the pipe and block the worker
                continue
            self.pace.hear(self.note, time.monotonic())


class TrainerService:
    """The loop. One worker at a time."""

    def __init__(
        self, settings: SiteSettings, config: Path, clock: Callable[[], datetime], notifier: Notifier | None = None
    ) -> None:
        self.stopping = threading.Event()
        self._settings, self._config, self._clock = settings, config, clock
        self._notifier = notifier or Notifier()
        self._spool = TrainerSide(settings.folders.spool)
        self._watch = Watch(settings, clock, local_zone())
        self._scanned = False
        self._worker: _Worker | None = None
        self._failures: dict[tuple[bytes, int], int] = {}
        self._studies = 0
        self._written = 0.0

    def run(self) -> None:
        self._spool.clear_drafts()
        self._write_status(Status(self._clock(), SiteState.PREPARING))
        self._watch.start()
        self._notifier.ready()
        while not self.stopping.is_set():
            self._notifier.alive()
            try:
                self._turn()
            except (SpoolRefused, OSError) as error:  # one bad record or a full disk must not end the service
                _log.error("turn failed", error=type(error).__name__)
            self.stopping.wait(TURN_S)
        self._notifier.stopping()
        self._stop_worker()
        self._watch.stop()
        _log.info("trainer stopped")

    def _turn(self) -> None:
        self._gate()
        jobs = self._spool.jobs()
        self._spool.sweep()
        self._sweep_folders(jobs)
        self._look_after_worker(jobs)
        if self._worker is None and self._watch.decision.mode is Mode.RUN:
            self._begin(jobs)
        if time.monotonic() - self._written >= STATUS_S:
            self._write_status(self._status(jobs))

    def _gate(self) -> None:
        """Looks at the machine and makes the worker do what was decided."""
        looked_at = time.monotonic()
        worker, before = self._worker, self._watch.decision
        own = [os.getpid(), *([] if worker is None else family(worker.process))]
        decision = self._watch.look(own, job_at_hand=worker is not None and worker.job is not None)
        if (decision.mode, decision.reasons) != (before.mode, before.reasons):
            _log.info("gate changed", mode=decision.mode.value, reasons=list(decision.reasons))
        if worker is None:
            return
        if decision.mode is Mode.HOLD:
            if suspend(worker.process) > 0:
                _log.info("worker held", after_ms=round(1000 * (time.monotonic() - looked_at)))
        elif decision.mode is Mode.RELEASE:
            _log.info("worker released")
            self._stop_worker()
        elif before.mode is not Mode.RUN or is_suspended(worker.process):
            resume(worker.process)

    def _begin(self, jobs: list[Job]) -> None:
        if not self._scanned:
            self._start(None)
        elif (job := self._next(jobs)) is not None:
            self._start(job)

    def _next(self, jobs: list[Job]) -> Job | None:
        return next((job for job in jobs if not self._spool.delivered(job.run_id, job.round)), None)

    def _start(self, job: Job | None) -> None:
        what = ["--scan"] if job is None else ["--run", job.run_id.hex(), "--round", str(job.round)]
        command = [sys.executable, "-m", "site_client.trainer.worker", "--config", str(self._config.absolute())]
        parent = ["--parent", str(os.getpid())]
        process = subprocess.Popen([*command, *parent, *what], stdout=subprocess.PIPE, text=True, process_group=0)
        self._worker = _Worker(job, process, WorkerMessage(studies=self._studies))
        threading.Thread(target=self._worker.listen, daemon=True).start()
        _log.info("worker started", task="scan" if job is None else "round", round=None if job is None else job.round)

    def _look_after_worker(self, jobs: list[Job]) -> None:
        worker = self._worker
        if worker is None:
            return
        if worker.job is None:  # a scan counts what is ready; a job's notes count what it has prepared so far
            self._studies = worker.note.studies or self._studies
        code = worker.process.poll()
        if code is not None:
            self._worker = None
            self._ended(worker.job, code)
        elif worker.job is not None and not _holds(jobs, worker.job):
            _log.info("job cancelled", round=worker.job.round)
            self._stop_worker()

    def _ended(self, job: Job | None, code: int) -> None:
        _log.info("worker ended", status=code)
        if job is None:
            self._scanned = True
        if job is None or code in (0, STOPPED):
            return
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

    def _status(self, jobs: list[Job]) -> Status:
        worker, now = self._worker, self._clock()
        idle = Status(now, SiteState.IDLE, studies_ready=self._studies)
        paused = self._watch.decision.reasons
        if worker is None and paused and (not self._scanned or self._next(jobs) is not None):
            return replace(idle, state=SiteState.PAUSED, reasons=paused)
        if worker is None:
            return replace(idle, state=SiteState.READY) if jobs else idle
        note = worker.note
        return replace(
            idle,
            state=SiteState.PAUSED if paused else note.state,
            reasons=paused,
            run_id=None if worker.job is None else worker.job.run_id,
            round=None if worker.job is None else worker.job.round,
            progress_percent=note.percent,
            step=note.step,
            steps=note.steps,
            loss=note.loss,
            eta_s=worker.pace.seconds_left(note),
        )

    def _write_status(self, status: Status) -> None:
        self._spool.write_status(status)
        self._watch.tell()
        self._notifier.status(in_words(status, [finding.words for finding in self._watch.decision.findings]))
        self._written = time.monotonic()

    def _sweep_folders(self, jobs: list[Job]) -> None:
        """Checkpoints of jobs that are gone go too, once nobody writes there."""
        kept = {job_folder(self._settings, job).name for job in jobs}
        if self._worker is not None and self._worker.job is not None:
            kept.add(job_folder(self._settings, self._worker.job).name)
        for folder in (self._settings.folders.trainer / "jobs").glob("*"):
            if folder.name not in kept:
                shutil.rmtree(folder)

    def _stop_worker(self) -> None:
        """SIGTERM: it writes a checkpoint and ends; SIGKILL for one that does not, the last checkpoint stands."""
        if self._worker is None:
            return
        worker, process, self._worker = self._worker, self._worker.process, None
        if worker.job is None:  # a scan has no checkpoint: the catalog's transactions are enough
            process.kill()
        process.terminate()
        resume(process)
        ends_at = time.monotonic() + STOP_S
        while time.monotonic() < ends_at:
            self._notifier.alive()
            try:
                process.wait(TURN_S)
                return
            except subprocess.TimeoutExpired:
                continue
        _log.error("worker killed", after_s=STOP_S)
        process.kill()
        process.wait()


def in_words(status: Status, against: list[str]) -> str:
    """One line for `systemctl status`: what the trainer does, and what speaks against training."""
    line = status.state.removeprefix("SITE_").lower().replace("_", " ")
    if status.round is not None:
        line += f", round {status.round}, {status.progress_percent} %"
    return f"{line}: {'; '.join(against)}" if against else line


def _holds(jobs: list[Job], job: Job) -> bool:
    return any((other.run_id, other.round) == (job.run_id, job.round) for other in jobs)
