"""The loop that moves rounds on: whatever is due by the rows and the clock, each row once a turn.

Several drivers may run, in threads or on machines. A lease keeps two from opening the same sum; should both, the last
guarded UPDATE still lets only one publish. A driver looks at once when a site's message completes a phase, and
otherwise every `interval_s`; between two looks it remembers nothing but which rows failed a moment ago, so any of them
may be killed at any time.

A row that fails is logged and left alone for a while; the others go on. Its deadline ends it in the end.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from federation.errors import FederationError
from federation.secagg import SecaggError
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.errors import LostRace, NotFound
from aggregator.rounds import aggregation, transitions
from aggregator.rounds.decisions import (
    Abandon,
    Advance,
    Aggregate,
    Freeze,
    Retry,
    RoundDecision,
    RoundSnapshot,
    Wait,
    decide,
)
from aggregator.runs.lifecycle import Cause, continue_run
from aggregator.runs.plans import plan_of
from aggregator.sites.roster import eligible
from aggregator.states import RoundState, RunState, SeatState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import Round, Seat

log = structlog.get_logger()

LEFT_ALONE_S = 5.0  # a row whose step failed
HOUSEKEEPING_EVERY_S = 5.0

_PROCESS = secrets.token_hex(8)


class Driver:
    """One driver; `run` belongs to one thread."""

    def __init__(
        self, app: AppContext, owner: str | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._owner = owner or own_name()
        self._monotonic = monotonic
        self._left_alone: dict[int, float] = {}  # round id -> monotonic time until which it is left alone
        self._due_at = monotonic()
        self._leased_at = monotonic()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; ring `app.work` afterwards to be heard at once."""
        log.info("driver started", owner=self._owner)
        self._free_leases_of_the_dead()
        while not stop.is_set():
            heard = self._app.work_due.count
            if not self.turn():
                self._app.work_due.wait(heard, self._app.settings.driver.interval_s)
        self._write_tally()
        log.info("driver stopped", owner=self._owner)

    def turn(self) -> bool:
        """Look once at every round that is not over. True when one moved, so that more may be due."""
        with self._app.store.read() as session:
            ids = round_rows.unfinished_ids(session)
        moved = any([self._outlive(round_id) for round_id in ids if not self._is_left_alone(round_id)])
        self._housekeeping(idle=not ids, moved=moved)
        return moved

    def _outlive(self, round_id: int) -> bool:
        """Step one round; whatever is wrong with it must not stop the others."""
        try:
            return self._step(round_id)
        except LostRace as lost:
            log.info("race lost", round_id=round_id, what=str(lost))
            return False
        except Exception:
            log.exception("round step failed", round_id=round_id)
            self._left_alone[round_id] = self._monotonic() + LEFT_ALONE_S
            return False

    def _step(self, round_id: int) -> bool:
        """What is due for one round, if anything. Looks without a lock first: most looks find nothing to do."""
        with self._app.store.read() as session:
            row = round_rows.by_id(session, round_id)
            look = self._look(session, row)
            if not look.newcomers and isinstance(self._decide(session, row, look), Wait):
                return False
        decision = self._act(round_id)
        if isinstance(decision, Aggregate):
            self._open(round_id)
        if decision is None or isinstance(decision, Wait):
            return False
        self._app.phase_changed.notify()
        return True

    def _act(self, round_id: int) -> RoundDecision | None:
        """Decide again, now holding the lease, and carry it out; opening is left to the caller. None: not ours."""
        now = self._app.clock()
        with self._app.store.write() as session:
            if not round_rows.lease(session, round_id, self._owner, now, self._lease_until(now)):
                return None
            self._leased_at = self._monotonic()
            row = round_rows.by_id(session, round_id)
            for site in self._look(session, row).newcomers:
                round_rows.add_seat(session, row, site)
            decision = self._decide(session, row, self._look(session, row))
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
            if not isinstance(decision, Aggregate):
                round_rows.release(session, round_id, self._owner)
        log.info("round stepped", round_id=round_id, decision=type(decision).__name__)
        return decision

    def _open(self, round_id: int) -> None:
        """Open the sum under the lease. What can never succeed abandons the round; anything else is tried again."""
        try:
            aggregation.aggregate_round(self._app, round_id, self._actor, lambda: self._renew(round_id))
        except (SecaggError, FederationError, NotFound) as error:
            log.warning("sum refused", round_id=round_id, why=str(error))
            self._abandon(round_id, f"the sum could not be opened: {error}")

    def _abandon(self, round_id: int, reason: str) -> None:
        ending = Cause(self._app.clock(), self._actor, reason)
        with self._app.store.write() as session:
            row = round_rows.by_id(session, round_id)
            step = transitions.Step(session, run_rows.get(session, row.run_id), row, ending)
            transitions.abandon(step, Abandon(reason), self._app.settings.driver.abandoned_in_a_row_max)

    # --- looking ---

    def _look(self, session: Session, row: Round) -> "_Look":
        asked = eligible(session) if row.state is RoundState.TRAINING else []
        return _Look(round_rows.seat_states(session, row.id), asked)

    def _decide(self, session: Session, row: Round, look: "_Look") -> RoundDecision:
        if row.state in round_rows.OVER:
            return Wait()
        view = RoundSnapshot(
            name=round_rows.subject(row),
            state=row.state,
            attempt=row.attempt,
            deadline=row.deadline,
            seats=look.seats,
            advertised=len(round_rows.senders(session, row.id, Seat.advertisement)),
            eligible=frozenset(look.eligible),
            bounds=plan_of(run_rows.get(session, row.run_id)).cohort,
        )
        return decide(view, self._app.clock())

    # --- leases ---

    @property
    def _actor(self) -> str:
        return f"driver:{self._owner}"

    def _lease_until(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._app.settings.driver.lease_s)

    def _renew(self, round_id: int) -> None:
        """Once a quarter of the lease is over: opening asks after each of its many small stages."""
        if self._monotonic() - self._leased_at < self._app.settings.driver.lease_s / 4:
            return
        now = self._app.clock()
        with self._app.store.write() as session:
            if not round_rows.lease(session, round_id, self._owner, now, self._lease_until(now)):
                raise LostRace(f"round {round_id}: the lease went to another driver, or the round is over")
        self._leased_at = self._monotonic()

    def _free_leases_of_the_dead(self) -> None:
        """A process of this machine that was killed cannot give back its leases; why wait for them to run out."""
        with self._app.store.write() as session:
            for round_id, owner in round_rows.leases(session):
                if is_dead(owner):
                    round_rows.release(session, round_id, owner)

    # --- housekeeping ---

    def _is_left_alone(self, round_id: int) -> bool:
        return self._monotonic() < self._left_alone.get(round_id, 0.0)

    def _housekeeping(self, idle: bool, moved: bool) -> None:
        """Things no round waits for: runs to carry on after a crash, waste to delete, bytes to write down."""
        due = self._monotonic() >= self._due_at
        try:
            if idle:
                self._carry_on()
            if moved or due:  # what becomes waste in another way (an abort, another driver) can wait for seconds
                self._drop_leftovers()
            if due:
                self._due_at = self._monotonic() + HOUSEKEEPING_EVERY_S
                self._write_tally()
        except Exception:
            log.exception("housekeeping failed")

    def _carry_on(self) -> None:
        with self._app.store.read() as session:
            run = run_rows.active(session)
            row = round_rows.newest(session, run.run_id) if run else None
            idle = run is not None and run.state is RunState.RUNNING and (row is None or row.state in round_rows.OVER)
        if run is None or not idle:
            return
        with self._app.store.write() as session:
            ending = Cause(self._app.clock(), self._actor, "no round was open")
            continue_run(session, run_rows.get(session, run.run_id), ending)

    def _drop_leftovers(self) -> None:
        """Uploads whose attempt is over: opened, or never to be. First the blob, then the note of it."""
        with self._app.store.read() as session:
            leftovers = round_rows.leftovers(session)
        if not leftovers:
            return
        for _round_id, _site, digest in leftovers:
            self._app.uploads.drop(digest)
        with self._app.store.write() as session:
            for round_id, site, digest in leftovers:
                round_rows.forget_upload(session, round_id, site, digest)

    def _write_tally(self) -> None:
        if self._app.traffic.empty:
            return
        with self._app.store.write() as session:
            self._app.traffic.write(session)


@dataclass(frozen=True)
class _Look:
    """The seats of a round, and who may take part in it: read once a look."""

    seats: dict[str, SeatState]
    eligible: list[str]  # while it is TRAINING

    @property
    def newcomers(self) -> list[str]:
        """Sites approved since the round was opened."""
        return [site for site in self.eligible if site not in self.seats]


def own_name() -> str:
    """host/pid/process/driver: unique, and says to others on this host whether its process still lives."""
    return f"{socket.gethostname()}/{os.getpid()}/{_PROCESS}/{secrets.token_hex(4)}"


def is_dead(owner: str) -> bool:
    """Whether `owner` was a driver of this host whose process is gone. False when in doubt."""
    host, pid, process, _driver = owner.split("/") if owner.count("/") == 3 else ("", "", "", "")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return process != _PROCESS  # in a container every start has the same number
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, as another user
        return False
    return False
