"""A disk that is full, read-only or failing: one sentence when it begins, one when it is over, growing pauses between.

A service stays up meanwhile, and `systemctl status` has the sentence: ending would make systemd start it every ten
seconds, with a traceback each time.
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import Final, TypeGuard

import structlog
from federation.notify import Notifier

from site_client.files import DISK_ERRORS

_log = structlog.get_logger()
FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0
_BEAT_S: Final = 1.0
_WORDS: Final = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full for this user",
    errno.EROFS: "is read-only",
    errno.EIO: "has an input/output error",
}


def is_of_disk(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error says that a disk is full, read-only or failing."""
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


class DiskWatch:
    """Counts the refusals in a row, and reports when they begin and end."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._refusals = 0
        self.sentence = ""  # while the disk refuses

    def refused(self, error: OSError) -> float:
        """Count a refusal.

        Args:
            error: One for which `is_of_disk` holds. Its path stays out of the sentence.

        Returns:
            Seconds until the next try.
        """
        # Every error of `is_of_disk` has a number, which is one of the table.
        assert error.errno is not None
        words = _WORDS[error.errno]
        sentence = f"this machine's disk {words}; free or mend it, the service goes on by itself"
        if sentence != self.sentence:
            _log.error("disk refused", why=sentence, detail=os.strerror(error.errno).lower())
            self.sentence = sentence
        self._notifier.status(sentence)
        self._refusals += 1
        return float(min(LONGEST_S, FIRST_S * 2.0 ** min(self._refusals - 1, 16)))

    def works(self) -> None:
        """Report that the disk takes data again. Nothing happens when it always did."""
        if self.sentence:
            _log.warning("disk works again", refusals=self._refusals)
        self.sentence, self._refusals = "", 0

    def wait(self, wait_s: float, stopping: threading.Event) -> None:
        """Wait, alive for systemd, but not longer than until `stopping`."""
        left_s = wait_s
        while left_s > 0 and not stopping.wait(min(_BEAT_S, left_s)):
            left_s -= _BEAT_S
            self._notifier.alive()

    def outlast(self, attempt: Callable[[], None], stopping: threading.Event) -> None:
        """Call `attempt` again after each refusal of the disk, until `stopping`.

        Raises:
            OSError: One that is not of the disk.
        """
        while not stopping.is_set():
            try:
                attempt()
            except OSError as error:
                if not is_of_disk(error):
                    raise
                wait_s = self.refused(error)
                # A service that waits for its disk is up: systemd would end one that is never ready.
                self._notifier.ready()
                self.wait(wait_s, stopping)
