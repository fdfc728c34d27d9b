"""What every use case is handed: the cupboards, the clock, the settings, and two bells. No logic."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from federation.manifest import Model

from aggregator.config import AggregatorSettings
from aggregator.store import Store, open_store
from aggregator.store.blobs import Blobs
from aggregator.store.tables import SiteReport
from aggregator.store.traffic import Traffic

Clock = Callable[[], datetime]  # aware UTC
Random = Callable[[int], bytes]  # that many unpredictable bytes

_MIB = 1 << 20


class Signal:
    """Something happened; whoever waits looks again.

    A ring is a hint, never a fact: the rows are the facts. Other processes do not hear it, so nobody waits on a bell
    alone, only on a bell or a timeout.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rings = 0

    @property
    def count(self) -> int:
        """Read this before the rows, and hand it to `wait`: a ring in between is then not missed."""
        with self._condition:
            return self._rings

    def notify(self) -> None:
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def wait(self, heard: int, timeout_s: float) -> bool:
        """True at the first ring after `heard` rings, False when `timeout_s` went by without one."""
        with self._condition:
            return self._condition.wait_for(lambda: self._rings != heard, timeout_s)


class LastReport(NamedTuple):
    """A site's last report, and when one of its reports was last written down."""

    report: SiteReport
    written_at: datetime


@dataclass(frozen=True)
class AppContext:
    """One per process; immutable, thread-safe."""

    store: Store
    blobs: Blobs  # models and opened sums: sites may read them
    uploads: Blobs  # masked uploads, a folder apart: no site can name one of the above as its upload, or read one
    settings: AggregatorSettings
    clock: Clock = lambda: datetime.now(UTC)
    random: Random = os.urandom
    traffic: Traffic = field(default_factory=Traffic)
    last_reports: dict[str, LastReport] = field(default_factory=dict)  # by site; `reports` says what for
    models: dict[bytes, Model] = field(default_factory=dict)  # by digest: the last one opened here, if any
    work_due: Signal = field(
        default_factory=Signal
    )  # the last expected message of a phase arrived: drivers look at once
    phase_changed: Signal = field(default_factory=Signal)  # a round entered another state: held polls look again


def open_context(settings: AggregatorSettings) -> AppContext:
    """Open the state folder named in `settings`; its tables must be there already (`migrations`)."""
    folder, limit = settings.state.folder, settings.state.blob_max_mib * _MIB
    store = open_store(settings.database_url)
    return AppContext(store, Blobs(folder / "blobs", limit), Blobs(folder / "uploads", limit), settings)
