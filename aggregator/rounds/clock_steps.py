"""Follows the host's clock when it is set: the times of unfinished rounds move with it.

Deadlines are times of day in rows, so that a restart keeps them. After a step of the clock they would end a phase in
which no time has passed, or hold it for as long as the clock went back. The monotonic clock of the host tells a step
from time that has passed. A host that slept counts as one that was set: its sites could not reach it either.

One process notices a step between two of its own looks. With a shared database nothing moves: the other processes have
clocks of their own, and the step is logged. A clock that is set while the aggregator is down is not noticed.
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import structlog

from aggregator.context import AppContext
from aggregator.store import Cause, round_rows, site_rows

log = structlog.get_logger()

STEP_S = 5.0  # smaller ones move nothing until together they are as large
ACTOR = "driver:clock"


class ClockSteps:
    """One for all drivers of a process; thread-safe."""

    def __init__(self, app: AppContext, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Take the clocks as they are.

        Args:
            app: The aggregator.
            monotonic: Seconds that never go back.
        """
        self._app, self._monotonic = app, monotonic
        self._lock = threading.Lock()
        self._ahead_s = self._read_ahead_s()

    def follow(self) -> None:
        """Move the times of unfinished rounds if the clock was set since the last look. Call it before reading them."""
        with self._lock:
            ahead_s = self._read_ahead_s()
            step = timedelta(seconds=ahead_s - self._ahead_s)
            if abs(step) < timedelta(seconds=STEP_S):
                return
            self._move(step)
            # After the rows are written: a locked database raises, and the next look tries again. Smaller steps add up
            # until then: a clock that is set back by four seconds at each look would hold a phase for ever.
            self._ahead_s = ahead_s

    def _read_ahead_s(self) -> float:
        return self._app.clock().timestamp() - self._monotonic()

    def _move(self, step: timedelta) -> None:
        step_s = round(step.total_seconds())
        if self._app.store.is_shared:
            log.warning("clock was set", step_s=step_s, rounds="keep their deadlines: other aggregators share them")
            return
        cause = Cause(self._app.clock(), ACTOR, f"the host's clock was set by {step_s} s; deadlines move with it")
        with self._app.store.write() as session:
            moved = round_rows.move_times(session, step, cause)
            site_rows.move_reports(session, step)
        for site, last in list(self._app.last_reports.items()):
            self._app.last_reports[site] = last._replace(written_at=last.written_at + step)
        log.warning("clock was set", step_s=step_s, rounds=f"{moved} keep the time that they had left")
