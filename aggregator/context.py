"""The argument of every use case: store, blobs, clock, settings, and two signals. No logic."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from federation.manifest import Model

from aggregator.config import AggregatorSettings
from aggregator.sev_snp import EvidenceVerifier, verify_snp
from aggregator.store import Store, open_store
from aggregator.store.blobs import Blobs
from aggregator.store.content_keys import ContentKeys
from aggregator.store.tables import SiteReport
from aggregator.store.traffic import Traffic

Clock = Callable[[], datetime]  # aware UTC
Random = Callable[[int], bytes]  # that many unpredictable bytes

_MIB = 1 << 20


class Signal:
    """Tells waiting threads of this process to read the rows again.

    A notification is a hint, never a fact: the rows are the facts. Other processes do not get it, so a thread waits for
    a notification or a timeout, never for a notification alone.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def count(self) -> int:
        """The number of notifications so far. Read it before the rows, so that none in between is missed."""
        with self._condition:
            return self._count

    def notify(self) -> None:
        """Wake all waiting threads."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` at every notification, in the thread that notifies; it must not wait."""
        with self._condition:
            self._listeners.append(listener)

    def wait(self, count: int, timeout_s: float) -> bool:
        """Wait until there were more than `count` notifications. False when `timeout_s` went by first."""
        with self._condition:
            return self._condition.wait_for(lambda: self._count != count, timeout_s)


class LedgerMark(NamedTuple):
    """The length of a site's egress ledger, and its head."""

    entries: int
    head: bytes


class LastReport(NamedTuple):
    """A site's last report, and what is remembered of those before it."""

    report: SiteReport
    written_at: datetime  # when a report was last written to the database
    longest: LedgerMark  # of the ledgers that it reported
    longest_before: LedgerMark  # without the last report; of length 0 before the second


@dataclass(frozen=True)
class AppContext:
    """One per process; immutable, thread-safe."""

    store: Store
    blobs: Blobs  # models and published sums: sites may read them
    # Masked uploads are in a folder of their own: no site can name a model as its upload, or read an upload.
    uploads: Blobs
    settings: AggregatorSettings
    content_keys: ContentKeys  # of sealed models
    clock: Clock = lambda: datetime.now(UTC)
    random: Random = os.urandom
    traffic: Traffic = field(default_factory=Traffic)
    last_reports: dict[str, LastReport] = field(default_factory=dict)  # by site, see `sites.reports`
    # By digest: the model computed last in this process, if any. Reading it back from disk takes longer than a phase.
    models: dict[bytes, Model] = field(default_factory=dict)
    # By site, model and outcome: evidence whose outcome stands in the audit.
    release_outcomes: set[tuple[str, bytes, str]] = field(default_factory=set)
    verify_evidence: EvidenceVerifier = verify_snp  # before a content key is released to an attested machine
    work_due: Signal = field(default_factory=Signal)  # drivers look at once: the last message of a phase arrived
    phase_changed: Signal = field(default_factory=Signal)  # held polls look again: a round entered another state


def open_context(settings: AggregatorSettings) -> AppContext:
    """Connect to the state folder of `settings`; its tables must be there already (`migrations`)."""
    folder, limit_bytes = settings.state.folder, settings.state.blob_max_mib * _MIB
    store = open_store(settings.database_url)
    blobs, uploads = Blobs(folder / "blobs", limit_bytes), Blobs(folder / "uploads", limit_bytes)
    return AppContext(store, blobs, uploads, settings, ContentKeys(folder / "ca" / "content.key"))
