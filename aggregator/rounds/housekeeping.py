"""The loop beside the drivers, for everything that no round waits for.

It deletes uploads whose attempt is over, writes down the bytes that sites have sent and received, notes how far the
audit has come, and continues a run that a crash left without an unfinished round. It remembers nothing, so it may be
killed at any time; several may run.

A failure is logged; the next turn tries again.
"""

import threading
import time
from collections.abc import Callable

import structlog

from aggregator.context import AppContext
from aggregator.runs.lifecycle import continue_run
from aggregator.states import RunState
from aggregator.store import Cause, audit_mark, round_rows, run_rows

log = structlog.get_logger()

INTERVAL_S = 5.0
ACTOR = "driver:housekeeping"


class Housekeeping:
    """One loop; `run` belongs to one thread."""

    def __init__(self, app: AppContext, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Make the loop.

        Args:
            app: The aggregator.
            monotonic: Seconds that never go back.
        """
        self._app = app
        self._monotonic = monotonic
        self._write_due_at = monotonic()

    def run(self, stop: threading.Event) -> None:
        """Take turns until `stop` is set; notify `app.phase_changed` after setting it to end the wait."""
        log.info("housekeeping started")
        # Counted before `stop` is read: the notification that follows it is not missed.
        count = self._app.phase_changed.count
        while not stop.is_set():
            self.turn()
            # A round that has just ended leaves the largest waste, an upload a member: it goes at once.
            self._app.phase_changed.wait(count, INTERVAL_S)
            count = self._app.phase_changed.count
        self._attempt(self._write_traffic)
        self._attempt(self._note_audit)
        log.info("housekeeping stopped")

    def turn(self) -> None:
        """Do every task that is due, once."""
        self._attempt(self._drop_leftovers)
        self._attempt(self._drop_orphans)
        self._attempt(self._continue_run)
        # Not at every phase: it takes the write lock that the messages of the next phase need.
        if self._monotonic() >= self._write_due_at:
            self._write_due_at = self._monotonic() + INTERVAL_S
            self._attempt(self._write_traffic)
            self._attempt(self._note_audit)

    def _attempt(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception:  # a full disk must not end the loop
            log.exception("housekeeping failed", task=task.__name__.strip("_"))

    def _drop_leftovers(self) -> None:
        with self._app.store.read() as session:
            leftovers = round_rows.leftovers(session)
        if not leftovers:
            return
        # First the blob, then the digest in its seat: after a crash in between, the digest still leads to the blob.
        for _round_id, _site, digest in leftovers:
            self._app.uploads.drop(digest)
        with self._app.store.write() as session:
            for round_id, site, digest in leftovers:
                round_rows.forget_upload(session, round_id, site, digest)

    def _drop_orphans(self) -> None:
        """Drop every upload that no seat names: a stream may go on after its seat has offered another blob."""
        # Listed before the seats are read: a seat names its blob before the first byte of it is written.
        held = self._app.uploads.digests()
        if not held:
            return
        with self._app.store.read() as session:
            orphans = held - round_rows.expected_uploads(session)
        for digest in orphans:
            self._app.uploads.drop(digest)

    def _continue_run(self) -> None:
        with self._app.store.read() as session:
            run = run_rows.active(session)
            row = round_rows.newest(session, run.run_id) if run else None
        if run is None or run.state is not RunState.RUNNING or (row is not None and row.state not in round_rows.OVER):
            return
        with self._app.store.write() as session:
            cause = Cause(self._app.clock(), ACTOR, "no round was unfinished")
            continue_run(session, run_rows.get(session, run.run_id), cause)
        self._app.work_due.notify()

    def _write_traffic(self) -> None:
        if self._app.traffic.empty:
            return
        with self._app.store.write() as session:
            self._app.traffic.write(session)

    def _note_audit(self) -> None:
        # Before the note: what it names is then in the database's own file and no longer in its log alone.
        self._app.store.checkpoint()
        audit_mark.note(self._app.store, self._app.settings.state.folder)
