"""Conditions of the host in which figures would mislead: a database that takes no writes, a clock that was set.

A page says them, so that a reader does not take the aggregator's trouble for the hospitals'.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from aggregator.rounds.clock_steps import ACTOR, STEP_S
from aggregator.store import Store, clock_rows
from aggregator.units import duration

PROBE_EVERY_S = 2.0
LOCK_WAITED_S = 0.25  # the aggregator's own writes take milliseconds
STEP_TOLD_FOR = timedelta(days=1)


class WriteProbe:
    """Asks SQLite for the write lock, for a moment and at most every two seconds, and gives it back. Thread-safe.

    PostgreSQL has no such lock; its failures are those of a page.
    """

    def __init__(self, store: Store, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Ask nothing yet.

        Args:
            store: The database.
            monotonic: Seconds that never go back.
        """
        self._path = "" if store.is_shared else str(store.engine.url.database)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._failed_since: float | None = None
        self._reason, self._failures = "", 0

    def fault(self) -> str:
        """Return in one sentence why nothing can be written; empty while writes work."""
        if not self._path:
            return ""
        with self._lock:
            now = self._monotonic()
            if now - self._looked_at >= PROBE_EVERY_S:
                self._looked_at = now
                self._look(now)
            # One refusal may be a long write of this process; two in a row are none.
            if self._failed_since is None or (self._failures == 1 and self._reason == _LOCKED):
                return ""
            return (
                f"The aggregator cannot write: {self._reason}, for {duration(now - self._failed_since)} at least. "
                "Rounds wait, and what sites report meanwhile is not kept."
            )

    def _look(self, now: float) -> None:
        try:
            connection = sqlite3.connect(f"file:{self._path}?mode=rw", LOCK_WAITED_S, isolation_level=None, uri=True)
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            finally:
                connection.close()
        except sqlite3.Error as error:
            self._reason = _known(error) or str(error)
            self._failed_since = now if self._failed_since is None else self._failed_since
            self._failures += 1
        else:
            self._failed_since, self._failures = None, 0


_LOCKED = "database locked"
# By what the driver says. Any other text of a driver may quote a value of a statement, so no refusal of one shows it.
_REFUSALS = {
    "locked": _LOCKED,
    "disk is full": "disk full",
    "readonly": "database read-only",
    "disk I/O": "disk failed",
    "malformed": "database damaged",
}


def refusal(error: DBAPIError) -> str:
    """Return in two words why a database refused a page; empty for a fault that is the program's own."""
    return _known(error.orig) or ("connection lost" if error.connection_invalidated else "")


def _known(error: BaseException | None) -> str:
    return next((words for mark, words in _REFUSALS.items() if mark in str(error)), "")


def clock_notices(session: Session, now: datetime) -> list[str]:
    """Say that the host's clock was set: one sentence each, none for a clock that was not.

    Args:
        session: A session of `Store.read`.
        now: Aware UTC.
    """
    notices = []
    newest = clock_rows.newest_time(session)
    if newest is not None and (newest - now).total_seconds() > STEP_S:
        ahead = duration((newest - now).total_seconds())
        notices.append(
            f"The clock was set back: the newest entry is of {newest:%Y-%m-%d %H:%M:%S} UTC, {ahead} ahead of now. "
            "Ages of entries from before are not known."
        )
    step = clock_rows.newest_by(session, ACTOR)
    if step is not None and abs(now - step.at) < STEP_TOLD_FOR:
        notices.append(f"{step.at:%Y-%m-%d %H:%M} UTC: {step.why}.")
    return notices
