"""The loop that steps rounds. A turn carries out every step that is due by the rows and the clock, one a round.

Several drivers may run, in threads or on machines. A lease keeps two from aggregating the same round; should both do
it, the guarded UPDATE at the end lets only one publish. A driver looks at once when a site's message completes a phase,
and otherwise every `interval_s`. Between two looks it remembers only which rounds failed a moment ago, so it may be
killed at any time.

A round whose step fails is logged and left alone for a while; the others continue. Its deadline ends it in the end.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from federation.secagg import SecaggError
from sqlalchemy.exc import DBAPIError

from aggregator.context import AppContext
from aggregator.errors import LostRace, NotFound, SumRefused
from aggregator.rounds import aggregation, failures, transitions
from aggregator.rounds.clock_steps import ClockSteps
from aggregator.rounds.decisions import Abandon, Advance, Aggregate, Freeze, Retry, Wait, decide
from aggregator.rounds.snapshot import newcomers, read_snapshot
from aggregator.runs.lifecycle import begin_queued
from aggregator.store import Cause, round_rows, run_rows

log = structlog.get_logger()

LEFT_ALONE_S = 5.0  # a round whose step failed

_PROCESS = secrets.token_hex(8)


class Driver:
    """One driver; `run` belongs to one thread."""

    def __init__(
        self,
        app: AppContext,
        owner: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        clock_steps: ClockSteps | None = None,
    ) -> None:
        """Make a driver.

        Args:
            app: The aggregator.
            owner: Its name in leases; a new one when None.
            monotonic: Seconds that never go back.
            clock_steps: Shared by the drivers of a process; its own when None.
        """
        self._app = app
        self._owner = owner or own_name()
        self._monotonic = monotonic
        self._clock_steps = clock_steps or ClockSteps(app, monotonic)
        self._left_alone: dict[int, float] = {}  # round id -> monotonic time until which it is left alone
        self._leased_at = monotonic()
        self._seen_at = monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since it last looked at the rounds, or made progress with one."""
        return self._monotonic() - self._seen_at

    def run(self, stop: threading.Event) -> None:
        """Take turns until `stop` is set; notify `app.work_due` after setting it to end the wait."""
        log.info("driver started", owner=self._owner)
        self._free_leases_of_the_dead()
        while not stop.is_set():
            # Counted before the rows are read: a message that arrives in between is not missed.
            count = self._app.work_due.count
            try:
                moved = self.turn()
            except DBAPIError as error:  # locked by another program, or damaged: the rounds wait, and so does the loop
                log.error("database refused", why=str(error.orig), tried_again_in_s=LEFT_ALONE_S)
                stop.wait(LEFT_ALONE_S)
                continue
            if not moved:
                self._app.work_due.wait(count, self._app.settings.driver.interval_s)
        log.info("driver stopped", owner=self._owner)

    def turn(self) -> bool:
        """Look once at every unfinished round. True when one moved, so that more may be due."""
        self._seen_at = self._monotonic()
        self._clock_steps.follow()
        with self._app.store.read() as session:
            round_ids = round_rows.unfinished_ids(session)
            is_run_due = bool(run_rows.queued(session)) and run_rows.active(session) is None
        moved = is_run_due and self._begin_queued()
        for round_id in round_ids:
            if self._monotonic() < self._left_alone.get(round_id, 0.0):
                continue
            try:
                moved = self._step(round_id) or moved
            except LostRace as lost:
                log.info("race lost", round_id=round_id, why=str(lost))
            except Exception:  # one bad row must not stop the others
                log.exception("round step failed", round_id=round_id)
                self._left_alone[round_id] = self._monotonic() + LEFT_ALONE_S
        return moved

    def _begin_queued(self) -> bool:
        """Begin the next queued run. True when one has begun."""
        try:
            with self._app.store.write() as session:
                run = begin_queued(session, Cause(self._app.clock(), self._actor, "first round"))
        except LostRace as lost:
            log.info("race lost", why=str(lost))
            return False
        if run is not None:
            log.info("run started", run=run.run_id.hex(), name=run.name)
        return run is not None

    def _step(self, round_id: int) -> bool:
        """Carry out what is due for one round. True when the round moved."""
        # Without the write lock first: most looks find nothing to do, and sites' messages need that lock.
        with self._app.store.read() as session:
            row = round_rows.by_id(session, round_id)
            if row.state in round_rows.OVER:
                return False
            snapshot = read_snapshot(session, row, self._app.clock())
            if not newcomers(snapshot) and isinstance(decide(snapshot, self._app.clock()), Wait):
                return False
        now = self._app.clock()
        with self._app.store.write() as session:
            if not round_rows.lease(session, round_id, self._owner, now, self._lease_until(now)):
                return False
            self._leased_at = self._monotonic()
            row = round_rows.by_id(session, round_id)
            for site in newcomers(read_snapshot(session, row, now, snapshot)):
                round_rows.add_seat(session, row, site)
            # Decided again under the lease: a message may have come in since the first look.
            decision = decide(read_snapshot(session, row, now, snapshot), now)
            step = transitions.Step(session, run_rows.get(session, row.run_id), row, Cause(now, self._actor, ""))
            match decision:
                case Freeze():
                    transitions.freeze(step, decision)
                case Advance():
                    transitions.advance(step, decision)
                case Retry():
                    transitions.retry(step, decision)
                case Abandon():
                    transitions.abandon(step, decision, self._app.settings.driver.abandoned_in_a_row_max)
            if not isinstance(decision, Aggregate):  # which needs the lease, and no transaction, for seconds
                round_rows.release(session, round_id, self._owner)
        log.info("round stepped", round_id=round_id, decision=type(decision).__name__)
        if isinstance(decision, Wait):
            return False
        if isinstance(decision, Aggregate):
            self._aggregate(round_id)
        self._app.phase_changed.notify()
        return True

    def _aggregate(self, round_id: int) -> None:
        """Aggregate under the lease. A sum that leads to no model abandons the round; other failures are retried."""
        try:
            aggregation.aggregate_round(self._app, round_id, self._actor, lambda: self._renew_lease(round_id))
        except (SecaggError, SumRefused, NotFound) as error:
            log.warning("sum refused", round_id=round_id, why=str(error))
            cause = Cause(self._app.clock(), self._actor, str(error))
            with self._app.store.write() as session:
                row = round_rows.by_id(session, round_id)
                step = transitions.Step(session, run_rows.get(session, row.run_id), row, cause)
                failures.abandon_aggregation(step, error, self._app.settings.driver.abandoned_in_a_row_max)

    # --- leases ---

    @property
    def _actor(self) -> str:
        return f"driver:{self._owner}"

    def _lease_until(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._app.settings.driver.lease_s)

    def _renew_lease(self, round_id: int) -> None:
        self._seen_at = self._monotonic()
        # An aggregation reports progress after each of its many small stages; a write for each would be too many.
        if self._monotonic() - self._leased_at < self._app.settings.driver.lease_s / 4:
            return
        now = self._app.clock()
        with self._app.store.write() as session:
            if not round_rows.lease(session, round_id, self._owner, now, self._lease_until(now)):
                raise LostRace(f"round {round_id}: the lease went to another driver, or the round is over")
        self._leased_at = self._monotonic()

    def _free_leases_of_the_dead(self) -> None:
        """Give back the leases of killed processes of this machine, instead of waiting for them to expire."""
        with self._app.store.write() as session:
            for round_id, owner in round_rows.leases(session):
                if is_dead(owner):
                    round_rows.release(session, round_id, owner)


def own_name() -> str:
    """Make a driver's name, host/pid/process/driver. It is unique, and others on this host see whether it lives."""
    return f"{socket.gethostname()}/{os.getpid()}/{_PROCESS}/{secrets.token_hex(4)}"


def is_dead(owner: str) -> bool:
    """Whether `owner` is a driver of this host whose process is gone. False when in doubt."""
    host, pid, process, _driver = owner.split("/") if owner.count("/") == 3 else ("", "", "", "")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return process != _PROCESS  # in a container every start has the same pid
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, as another user
        return False
    return False
