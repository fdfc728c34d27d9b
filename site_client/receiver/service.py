"""The receiver as a process: a listener, a pull and the reports of commitment, each in threads of its own.

The loop of the main thread feeds systemd's watchdog while all of them live, sweeps what broken connections have left,
removes old files, and says in `systemctl status` what came in. No log line, status or file name holds a value of an
image or a UID; titles and addresses of senders do stand there.
"""

import fcntl
import gc
import os
import signal
import sys
import threading
import time
import warnings
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import structlog
from federation.notify import Notifier

from site_client.disk_watch import DiskWatch, is_of_disk
from site_client.errors import InUse, StateUnreadable
from site_client.files import private_folder
from site_client.logging_setup import log_to_stderr
from site_client.receiver.age_clock import AgeClock
from site_client.receiver.cleaning import Cleaning
from site_client.receiver.commitments import Commitments
from site_client.receiver.incoming import Incoming, load_secret
from site_client.receiver.listener import Listener, silence_libraries
from site_client.receiver.pull import Pull
from site_client.receiver.settings import ReceiverSettings

_log = structlog.get_logger()
_TURN_S: Final = 0.5
_CARE_S: Final = 60.0  # between two sweeps
_CLEANING_S: Final = 600.0
_UMASK: Final = 0o027
NOT_CONFIGURED: Final = "not configured yet: edit receiver.toml"


def run(settings: ReceiverSettings) -> int:
    """Run until SIGTERM or SIGINT.

    Returns:
        The exit status of the process.

    Raises:
        ConfigRefused: A file that the settings name cannot be used.
        InUse: Another receiver runs on the same state folder, or the port is taken.
        StateUnreadable: The folder of the state or of the images cannot be used.
    """
    log_to_stderr(tracebacks=False)
    silence()
    # The group of the incoming folder reads its files; everything else has its own mode.
    os.umask(_UMASK)
    notifier, stopping = Notifier.of_service(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    if not settings.is_configured:
        _stand_by(notifier, stopping)
        return 0

    def serve() -> None:
        with _lock(settings.state):
            ReceiverService(settings, notifier, stopping).run()

    DiskWatch(notifier).outlast(serve, stopping)
    return 0


def silence() -> None:
    """Let no library and no traceback write: their texts quote values of data sets."""
    silence_libraries()
    warnings.simplefilter("ignore")
    sys.excepthook = _log_kind
    threading.excepthook = lambda error: _log_kind(error.exc_type, error.exc_value, error.exc_traceback)


def _log_kind(kind: type[BaseException], _error: BaseException | None, _trace: TracebackType | None) -> Any:
    _log.error("thread ended", kind=kind.__name__)


def _stand_by(notifier: Notifier, stopping: threading.Event) -> None:
    """Wait until told to end: systemd would take an exit for a failure, and start the service again and again."""
    _log.warning("not configured", fix="edit receiver.toml, then restart")
    notifier.ready()
    notifier.status(f"{NOT_CONFIGURED}, then systemctl restart hemofed-receiver")
    while not stopping.wait(_TURN_S):
        notifier.alive()
    notifier.stopping()


class ReceiverService:
    """The loop. `stopping` ends it."""

    def __init__(self, settings: ReceiverSettings, notifier: Notifier, stopping: threading.Event) -> None:
        """Put the parts together, and bind the port.

        Raises:
            ConfigRefused: A file that the settings name cannot be used.
            InUse: The port is taken.
            StateUnreadable: A folder cannot be used.
        """
        self._settings, self._notifier, self._stopping = settings, notifier, stopping
        self._disk = DiskWatch(notifier)
        self._incoming = _opened(settings)
        self._commitments = Commitments(settings.state / "commitments", self._incoming, settings.storage)
        clock = AgeClock(settings.state / "age.clock")
        self._cleaning = Cleaning(self._incoming, settings.taken, settings.keep_days, clock)
        self.listener = self._listener() if settings.storage.senders else None
        self._pull = (
            Pull(settings, self._incoming, lambda: datetime.now().astimezone(), self._disk_failed)
            if settings.dicomweb.url
            else None
        )
        self._threads = [threading.Thread(target=self._commitments.run, args=(stopping,), name="commitments")]
        if self._pull is not None:
            self._threads.append(threading.Thread(target=self._pull.run, args=(stopping,), name="pull"))

    def run(self) -> None:
        """Serve until `stopping`."""
        for thread in self._threads:
            thread.daemon = True
            thread.start()
        if self.listener is not None:
            self.listener.start()
        _log.info("receiver started", port=self.listener.port if self.listener else None, pulls=self._pull is not None)
        self._notifier.ready()
        cared_s = cleaned_s = time.monotonic()
        while not self._stopping.wait(_TURN_S):
            if self._is_whole():
                self._notifier.alive()
            now_s = time.monotonic()
            try:
                if now_s - cared_s >= _CARE_S:
                    cared_s = now_s
                    self._care()
                if now_s - cleaned_s >= _CLEANING_S:
                    cleaned_s = now_s
                    self._cleaning.run_once()
                self._disk.works()
            except OSError as error:
                self._disk_failed(error)
            self._notifier.status(self._in_words())
        self._notifier.stopping()
        self._commitments.wake()
        if self.listener is not None:
            self.listener.log_counts()
            self.listener.stop()
        # An image that is being fetched is left: its partial file is swept at the next start.
        _log.info("receiver stopped")

    def _is_whole(self) -> bool:
        """Whether every thread lives. If one does not, the watchdog starts the service again."""
        is_listening = self.listener is None or self.listener.is_alive
        return is_listening and all(thread.is_alive() for thread in self._threads)

    def _care(self) -> None:
        # A connection that moves writes more often than this: twice the time after which it would have been closed.
        quiet_s = 2 * max(self._settings.storage.idle_s, self._settings.dicomweb.stall_s)
        self._incoming.sweep(quiet_s)
        gc.collect()  # pynetdicom's associations refer to one another, and hold their sockets
        if self.listener is not None:
            self.listener.log_counts()

    def _listener(self) -> Listener:
        try:
            return Listener(self._settings, self._incoming, self._commitments, self._disk_failed)
        except OSError as error:
            if is_of_disk(error):
                raise
            storage = self._settings.storage
            why = os.strerror(error.errno or 0).lower()
            raise InUse(
                f"port {storage.port} of storage.address cannot be bound ({why}); free it, or set another"
            ) from None

    def _disk_failed(self, error: OSError) -> None:
        if is_of_disk(error):
            self._disk.refused(error)
        else:
            _log.error("object not stored", kind=type(error).__name__)

    def _in_words(self) -> str:
        words = []
        if self.listener is not None:
            words.append(f"listening on {self.listener.port}, {self.listener.stored} objects received")
        if self._pull is not None:
            pause = "" if self._pull.is_open() else " (outside dicomweb.windows)"
            words.append(f"{self._pull.fetched} objects fetched{pause}")
        free = self._incoming.free_bytes()
        if free < self._settings.disk_free_min_bytes:
            words.append("NOT STORING: the disk has less free than disk_free_min_gib")
        if days := self._cleaning.days_held:
            words.append(f"old files stay up to {days} days longer: the clock was set ahead, or this stood still")
        return "; ".join([*words, f"{free / (1 << 30):.0f} GiB free"])


def _opened(settings: ReceiverSettings) -> Incoming:
    """Open the incoming folder. It is not made here: its owner, group and mode are the administrator's."""
    try:
        return Incoming(settings.incoming, load_secret(settings.state / "names.key"))
    except OSError as error:
        if is_of_disk(error):
            raise
        why = os.strerror(error.errno or 0).lower()
        raise StateUnreadable(
            f"the folder `incoming` cannot be used ({why}); make it as docs/HOSPITAL.md says, writable for "
            "hemofed-receiver and readable for hemofed-trainer"
        ) from None


def _lock(state: Path) -> IO[bytes]:
    try:
        lock = (private_folder(state) / "lock").open("ab")
    except OSError as error:
        if is_of_disk(error):
            raise
        raise StateUnreadable.of("lock", error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InUse("another receiver runs on this state folder; stop it first") from None
    return lock
