"""Is the service alive: would a new start help? Is it ready: can it serve hospitals now?"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from aggregator.context import AppContext

_MIB = 1 << 20


class Check(NamedTuple):
    """One question and its answer."""

    name: str
    fault: str  # one sentence: expected, got, what to do; empty when all is well


@dataclass(frozen=True)
class HealthChecks:
    """The checks of one running service.

    Attributes:
        app: The aggregator.
        ended_part: Returns the name of a thread that has ended by itself, None when all run.
        driver_silent_s: Returns the seconds since all drivers last looked at the rounds.
    """

    app: AppContext
    ended_part: Callable[[], str | None]
    driver_silent_s: Callable[[], float]

    def alive(self) -> list[Check]:
        """Return the checks whose failure only a new start mends."""
        return [self._parts(), self._driver()]

    def ready(self) -> list[Check]:
        """Return the checks of all that hospitals need of the service."""
        return [*self.alive(), self._database(), self._disk()]

    def _parts(self) -> Check:
        ended = self.ended_part()
        return Check("parts", "" if ended is None else f"expected every part to run, {ended} has ended; start again")

    def _driver(self) -> Check:
        silent_s, most_s = self.driver_silent_s(), self.app.settings.health.driver_silent_max_s
        fault = f"expected a look at the rounds within {most_s} s, the last was {silent_s:.0f} s ago; see the log"
        return Check("driver", "" if silent_s <= most_s else fault)

    def _database(self) -> Check:
        try:
            with self.app.store.read() as session:
                session.execute(text("SELECT 1 FROM runs LIMIT 1"))
        except SQLAlchemyError as error:
            # The statement and its values stay out of the answer.
            return Check("database", f"expected the database to answer, got {type(error).__name__}; see the log")
        return Check("database", "")

    def _disk(self) -> Check:
        folder, least_mib = self.app.settings.state.folder, self.app.settings.health.disk_free_min_mib
        free_mib = shutil.disk_usage(folder).free // _MIB
        fault = f"expected {least_mib} MiB free for the state folder, got {free_mib} MiB; make room"
        return Check("disk", "" if free_mib >= least_mib else fault)
