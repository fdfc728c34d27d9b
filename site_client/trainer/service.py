"""The trainer as a process: it watches the spool, supervises one worker, and writes its status every second.

It neither imports torch nor has an image decoded: the worker does both, and the service survives what kills the worker.
Four times a second it asks the idle gate, and then lets the worker run, suspends it, or ends it after a checkpoint.
A job whose folder disappears is cancelled.
"""

import fcntl
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import structlog
from federation.hpke import SealingKey
from federation.notify import Notifier
from federation.vocabulary import SiteState

from site_client.config import NOT_CONFIGURED, SiteSettings
from site_client.disk_watch import DiskWatch, is_of_disk
from site_client.errors import InUse, SpoolRefused, StateUnreadable
from site_client.logging_setup import log_to_stderr
from site_client.spool import Job, Status, TrainerSide
from site_client.trainer.idle.decide import Mode
from site_client.trainer.idle.watch import Watch, local_zone
from site_client.trainer.job_folders import sweep_job_folders
from site_client.trainer.supervisor import Supervisor

_log = structlog.get_logger()
TURN_S: Final = 0.25
STATUS_S: Final = 1.0


def run(settings: SiteSettings, config: Path) -> int:
    """Runs the trainer until SIGTERM or SIGINT.

    Args:
        settings: Of this site.
        config: The file they came from, for the worker.

    Returns:
        The exit status of the process.

    Raises:
        InUse: Another trainer runs on the same state folder.
        StateUnreadable: Its lock is no file, or may not be written.
    """
    log_to_stderr(tracebacks=False)
    notifier = Notifier.of_service()
    if settings.is_example:
        _stand_by(notifier)
        return 0
    # Workers inherit this: SIGUSR1 must not kill one that has not yet set its own handler.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    stopping, disk = threading.Event(), DiskWatch(notifier)
    _set_at_signal(stopping)

    def serve() -> None:
        settings.folders.trainer.mkdir(parents=True, exist_ok=True)
        with _opened(settings.folders.trainer / "lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InUse("another trainer runs on this state folder; stop it first") from None
            TrainerService(settings, config, lambda: datetime.now(UTC), notifier, stopping).run()

    disk.outlast(serve, stopping)
    return 0


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("w")
    except OSError as error:
        if is_of_disk(error):
            raise
        raise StateUnreadable.of(path.name, error) from error


def _stand_by(notifier: Notifier) -> None:
    """Waits until it is told to end, and reads nothing, not even an export that lies in the example's folder.

    Exiting would be worse: systemd would take that for a failure and start the service again and again.
    """
    stopping = threading.Event()
    _set_at_signal(stopping)
    _log.warning("not configured", fix="edit site.toml, then restart")
    notifier.ready()
    notifier.status(f"{NOT_CONFIGURED}, then systemctl restart hemofed-trainer")
    while not stopping.wait(TURN_S):
        notifier.alive()
    notifier.stopping()


def _set_at_signal(stopping: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())


class TrainerService:
    """The loop of the trainer. `stopping` ends it."""

    def __init__(
        self,
        settings: SiteSettings,
        config: Path,
        clock: Callable[[], datetime],
        notifier: Notifier | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        """Makes the service's end of the spool; nothing runs yet.

        Args:
            settings: Of this site.
            config: The file they came from, for the worker.
            clock: The wall clock, aware.
            notifier: To systemd; None: no notification.
            stopping: Ends the loop when it is set; None: an event of its own.
        """
        self.stopping = stopping or threading.Event()
        self._settings, self._clock = settings, clock
        self._notifier = notifier or Notifier()
        self._spool = TrainerSide(settings.folders.spool)
        self._watch = Watch(settings, clock, local_zone())
        # In memory only: what was encrypted to it can be read by no one after the end of this process.
        self._sealing_key = SealingKey.generate()
        self._supervisor = Supervisor(config, self._spool, self._sealing_key, self._notifier.alive)
        self._status_written_s = 0.0
        self._disk = DiskWatch(self._notifier)
        self._again_at_s = 0.0  # monotonic; before it nothing is written
        self._failure = ""  # of the newest turn, as logged

    def run(self) -> None:
        """Runs until `stopping`, then ends the worker."""
        self._spool.clear_drafts()  # before the first worker, which may have a draft in hand
        self._spool.publish_key(self._sealing_key.public_bytes)
        self._write_status(Status(self._clock(), SiteState.PREPARING))
        self._watch.start()
        self._notifier.ready()
        while not self.stopping.is_set():
            self._notifier.alive()
            self._guarded_turn()
            self.stopping.wait(TURN_S)
        self._notifier.stopping()
        # The worker first: it may need a minute for its checkpoint, in which systemd is told that the service is alive.
        self._supervisor.stop()
        self._watch.stop()
        _log.info("trainer stopped")

    def _guarded_turn(self) -> None:
        """Takes a turn, which one bad record or a full disk must not make the last one; logs what changed."""
        try:
            # The gate comes first: neither a bad record nor a full disk may delay a pause.
            self._ask_gate()
            if time.monotonic() < self._again_at_s:
                return
            self._turn()
        except (SpoolRefused, OSError) as error:
            if is_of_disk(error):
                self._again_at_s = time.monotonic() + self._disk.refused(error)
                return
            # Of an OSError the kind alone: its text may hold the path of an image.
            failure = str(error) if isinstance(error, SpoolRefused) else type(error).__name__
            if failure != self._failure:
                _log.error("turn failed", error=failure)
            self._failure = failure
        else:
            self._failure = ""
            self._disk.works()

    def _turn(self) -> None:
        jobs = self._spool.jobs()
        self._spool.sweep()
        working = self._supervisor.job
        sweep_job_folders(self._settings, jobs if working is None else [*jobs, working])
        self._supervisor.collect(jobs)
        if self._watch.decision.mode is Mode.RUN:
            self._supervisor.start_next(jobs)
        if time.monotonic() - self._status_written_s >= STATUS_S:
            self._write_status(self._status(jobs))

    def _ask_gate(self) -> None:
        """Samples the machine and makes the worker do what the gate decided."""
        sampled_at_s = time.monotonic()
        previous = self._watch.decision
        decision = self._watch.sample(self._supervisor.process_ids, job_at_hand=self._supervisor.job is not None)
        # Changes only: four lines a second would fill the journal.
        if (decision.mode, decision.reasons) != (previous.mode, previous.reasons):
            _log.info("gate changed", mode=decision.mode.value, reasons=list(decision.reasons))
        self._supervisor.obey(decision.mode, previous.mode, sampled_at_s)

    def _status(self, jobs: list[Job]) -> Status:
        supervisor, worker = self._supervisor, self._supervisor.worker
        idle = Status(self._clock(), SiteState.IDLE, studies_ready=supervisor.studies)
        paused = self._watch.decision.reasons
        if worker is None:
            # The gate pauses only a site that has something to do: otherwise the site is idle, or ready to hand over.
            if paused and (not supervisor.scanned or supervisor.next_job(jobs) is not None):
                return replace(idle, state=SiteState.PAUSED, reasons=paused)
            return replace(idle, state=SiteState.READY) if jobs else idle
        message = worker.message
        return replace(
            idle,
            state=SiteState.PAUSED if paused else message.state,
            reasons=paused,
            run_id=None if worker.job is None else worker.job.run_id,
            round=None if worker.job is None else worker.job.round,
            progress_percent=message.percent,
            step=message.step,
            steps=message.steps,
            loss=message.loss,
            eta_s=worker.speed.seconds_left(message),
        )

    def _write_status(self, status: Status) -> None:
        self._spool.write_status(status)
        self._watch.write_record()
        self._notifier.status(in_words(status, [reason.words for reason in self._watch.decision.pause_reasons]))
        self._status_written_s = time.monotonic()


def in_words(status: Status, pause_reasons: list[str]) -> str:
    """Makes the line for `systemctl status`: what the trainer does, and why it pauses."""
    line = status.state.removeprefix("SITE_").lower().replace("_", " ")
    if status.round is not None:
        line += f", round {status.round}, {status.progress_percent} %"
    return f"{line}: {'; '.join(pause_reasons)}" if pause_reasons else line
