"""The agent as a process: one loop that outlives every failure, and ends on SIGTERM or SIGINT.

After a failure the loop waits and goes on. An unexpected one is logged with its traceback: the agent never reads a
patient's data, so no value of a patient can be in it. <state>/agent/status.json shows the agent's state to the
hospital.
"""

import fcntl
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import structlog
from cryptography import x509
from federation.errors import FederationError
from federation.notify import Notifier
from federation.vocabulary import SiteState

from site_client.agent.backoff import LONGEST_S, Backoff
from site_client.agent.connection import explain
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.egress.payloads import Payloads
from site_client.agent.egress.rate_limit import RateLimit
from site_client.agent.identity.certificates import Certificates
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.link import Endpoint, Link, enrolled
from site_client.agent.rounds.participant import Participant
from site_client.agent.rounds.situation import Situation
from site_client.agent.status_file import (
    AgentStatus,
    clock_in_words,
    in_words,
    is_clock_off,
    write_refusal,
    write_status,
)
from site_client.bus import Bus
from site_client.config import SiteSettings
from site_client.disk_watch import DiskWatch, is_of_disk
from site_client.errors import ConfigRefused, InUse, ModelDamaged, SiteError, StateUnreadable, Unreachable
from site_client.files import DAMAGED
from site_client.logging_setup import log_to_stderr
from site_client.metered import is_metered
from site_client.spool import AgentSide

_log = structlog.get_logger()
_NEWS_S: Final = 0.1  # between two looks at the files while the loop waits: other sites may wait for this update
_GRACE_S: Final = 5.0  # a call in progress may take this long to end after SIGTERM
_LOOKS_EVERY: Final = 8  # failures in a row; at the longest pauses 8 minutes
_QUIET_STALLS: Final = 3.0  # lengths of agent.stall_s that a working loop may take without a message moving


def run(settings: SiteSettings) -> int:
    """Run until SIGTERM or SIGINT.

    Returns:
        The exit status.

    Raises:
        ConfigRefused: The settings are another site's, or have no aggregator.
        IdentityRefused: This host has not joined, or a file of its identity does not verify.
        StateRefused: A file that protects patients is damaged.
        LedgerBroken: The ledger does not verify.
        InUse: Another agent runs on this state folder.
    """
    log_to_stderr(tracebacks=True)
    try:
        return _run(settings)
    except (SiteError, FederationError) as error:
        # Not over the status of the agent that runs.
        if not isinstance(error, InUse) and settings.folders.agent.is_dir():
            write_refusal(settings.folders.agent, datetime.now(UTC), str(error))
        raise


def _run(settings: SiteSettings) -> int:
    identity = SiteIdentity(settings.folders.agent / "identity")
    if identity.site != settings.name:
        raise ConfigRefused(f"site.toml says name = {settings.name!r}, but this host is enrolled as {identity.site!r}")
    if not settings.aggregator.address:
        raise ConfigRefused("aggregator.address in site.toml is empty; ask the coordinator for host:port")
    notifier, stopping = Notifier.of_service(), threading.Event()
    disk = DiskWatch(notifier)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())

    def serve() -> None:
        # One agent on a state folder: two would use the same secrets with different messages.
        with _lock(settings.folders.agent / "lock"):
            service = AgentService(settings, identity, lambda: datetime.now(UTC), notifier, stopping)
            disk.works()
            service.run()

    disk.outlast(serve, stopping)
    return 0


@dataclass
class _Health:
    """The loop's memory between turns; a restart loses it without harm."""

    last_contact_at: datetime | None = None
    last_error: str = ""
    logged: tuple[str | None, str] = (None, "")  # the step asked for and its refusal, as last logged
    clock_ahead_s: float | None = None  # of the aggregator's


class AgentService:
    """The loop."""

    def __init__(
        self,
        settings: SiteSettings,
        identity: SiteIdentity,
        clock: Callable[[], datetime],
        notifier: Notifier | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        """Put the loop together from its parts.

        Args:
            settings: Of this site.
            identity: Of this site.
            clock: Aware time.
            notifier: To systemd; None: no notification.
            stopping: Ends the loop when it is set; None: only `stop` does.

        Raises:
            StateRefused: The journal is damaged.
            LedgerBroken: The ledger does not verify.
            InUse: Another process has the ledger open.
        """
        self._settings, self._identity, self._clock = settings, identity, clock
        self._notifier = notifier or Notifier()
        # The unit's watchdog time may be shorter than the silence of a stalled transfer.
        self._notifier.allow(_QUIET_STALLS * settings.agent.stall_s)
        self._stopping = stopping or threading.Event()
        self._disk = DiskWatch(self._notifier)
        self._ledger = Ledger(settings.folders.agent / "ledger.jsonl", identity.keys.signing, clock)
        try:
            payloads = Payloads(settings.folders.agent / "payloads", settings.agent.payloads_mib * 1024 * 1024)
            self._guard = Guard(settings.policy)
            self._link = Link(self._endpoint())
            rate_limit = RateLimit(settings.policy.bandwidth_kib_s * 1024)
            self._egress = Egress(self._guard, self._ledger, self._link, payloads, rate_limit, self._notifier.alive)
            self._certificates = Certificates(identity, self._egress, self._enrolment, clock)
            spool = AgentSide(settings.folders.spool)
            # The lock is held, so no other agent builds a draft now.
            spool.clear_drafts()
            bus = Bus()
            self._participant = Participant(self._egress, identity, spool, settings, clock, lambda: is_metered(bus))
            self._health = _Health()
            self._attention = ""  # as last logged
            # Event and sentence of the newest failure; None after a success.
            self._failure: tuple[str, str] | None = None
            self._unreachable = ""  # gRPC's words, as they were looked into last
            self._in_the_way = ""  # what was found then, in the doctor's words
            self._unwritten = ""  # why the status file could not be written, as last logged
            self._backoff = Backoff(min(LONGEST_S, settings.agent.poll_max_s))
        except BaseException:
            # Its lock would keep the next try out.
            self._ledger.close()
            raise

    def stop(self) -> None:
        """End the loop after the turn in progress; a call that takes too long is cut. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Take turns until `stop`."""
        # A signal handler cannot interrupt a call that waits in gRPC; closing the channel ends it.
        threading.Thread(target=self._cut_when_stopping, name="stop", daemon=True).start()
        _log.info("agent started", site=self._identity.site, ledger_entries=self._ledger.entries)
        if self._ledger.repaired_bytes:
            _log.warning("ledger repaired", cut_bytes=self._ledger.repaired_bytes, entry=self._ledger.entries)
        # Only now: systemd starts units that depend on a ready agent.
        self._notifier.ready()
        while not self._stopping.is_set():
            self._notifier.alive()
            wait_s = self._turn()
            self._write_status()
            self._rest(wait_s)
        self._notifier.stopping()
        self._link.close()
        self._ledger.close()
        _log.info("agent stopped", site=self._identity.site)

    def _turn(self) -> float:
        try:
            # A segment a turn, each once: the start has compared their ends only, to be short.
            self._ledger.check_next_segment()
            # Before the poll: an expired certificate would fail it.
            if self._certificates.keep():
                self._link.reconnect(self._endpoint())
            turn = self._participant.step()
        except Unreachable as error:
            return self._failed("aggregator not reached", self._explained(error))
        except (SiteError, FederationError) as error:
            return self._failed("step failed", error)
        # No exception ends the loop: the next turn starts from the files.
        except Exception as error:
            if is_of_disk(error):
                self._disk.refused(error)
                self._health.last_error = self._disk.sentence
                return self._backoff.failed(0)
            if self._failure != ("step crashed", str(error)):
                _log.error("step crashed", kind=type(error).__name__, exc_info=True)
            return self._failed("step crashed", error)
        self._disk.works()
        self._failure = None
        refusal = "" if turn.refusal is None else str(turn.refusal)
        if self._backoff.failures:
            _log.info("recovered", failures=self._backoff.failures)
        self._backoff.succeeded()
        if (turn.asked, refusal) != self._health.logged:  # every poll asks for the same step until it is done
            if refusal:
                _log.warning("step refused", asked=turn.asked, why=refusal)
            elif turn.asked:
                _log.info("step done", asked=turn.asked)
        now = self._clock()
        ahead_s = self._compared(now, turn.aggregator_time_ms)
        self._health = _Health(now, refusal or self._certificates.notice, (turn.asked, refusal), ahead_s)
        return turn.wait_s

    def _compared(self, now: datetime, aggregator_time_ms: int) -> float | None:
        """Return how far this clock is ahead of the aggregator's. A change from right to wrong or back is logged."""
        if aggregator_time_ms == 0:
            return None
        ahead_s, before_s = now.timestamp() - aggregator_time_ms / 1000, self._health.clock_ahead_s
        was_off = before_s is not None and is_clock_off(before_s)
        if is_clock_off(ahead_s) and not was_off:
            _log.warning("clock differs", why=clock_in_words(ahead_s))
        elif was_off and not is_clock_off(ahead_s):
            _log.info("clock agrees again")
        return ahead_s

    def _explained(self, error: Unreachable) -> Unreachable:
        """Return the error with the doctor's words, if the doctor finds what is in the way."""
        # Each look is a connection of its own: at the first failure, when gRPC's words change, and rarely after.
        if self._stopping.is_set():
            return error
        if self._backoff.failures % _LOOKS_EVERY == 0 or self._unreachable != str(error):
            self._unreachable = str(error)
            ca = x509.load_pem_x509_certificate(self._identity.ca_pem)
            self._in_the_way = explain(self._settings.aggregator, ca, self._clock())
        if not self._in_the_way:
            return error
        return Unreachable(f"no answer from {self._settings.aggregator.address}: {self._in_the_way}")

    def _failed(self, event: str, error: Exception) -> float:
        if self._stopping.is_set():
            return 0.0
        self._health.last_error = str(error)
        # Bytes that arrived damaged are no progress: the whole file would be fetched again each second.
        wait_s = self._backoff.failed(0 if isinstance(error, ModelDamaged) else self._egress.progress)
        # Changes only: an aggregator that is away for a week would fill the journal.
        if self._failure != (event, str(error)):
            _log.warning(event, why=str(error), failures=self._backoff.failures, wait_s=round(wait_s, 1))
        self._failure = event, str(error)
        return wait_s

    def _rest(self, wait_s: float) -> None:
        """Wait, but not longer than until an update or a decision is news for the aggregator.

        After a failure it always waits: the news would meet the same failure.
        """
        left_s = wait_s
        while left_s > 0 and not self._stopping.wait(min(_NEWS_S, left_s)):
            left_s -= _NEWS_S
            self._notifier.alive()
            if self._backoff.failures == 0 and self._participant.has_news():
                return

    def _cut_when_stopping(self) -> None:
        self._stopping.wait()
        threading.Event().wait(_GRACE_S)
        self._link.close()

    @contextmanager
    def _enrolment(self) -> Iterator[Egress]:
        """Connect to the enrolment listener, for as long as the context lasts."""
        address = self._settings.aggregator.enrolment_address or self._identity.membership.enrolment_address
        proxy, stall_s = self._settings.aggregator.proxy, self._settings.agent.stall_s
        link = Link(Endpoint(address, self._identity.ca_pem, proxy=proxy, stall_s=stall_s))
        try:
            yield Egress(self._guard, self._ledger, link, moved=self._notifier.alive)
        finally:
            link.close()

    def _endpoint(self) -> Endpoint:
        return enrolled(self._settings, self._identity)

    def _write_status(self) -> None:
        current = self._participant.journal.current
        try:
            situation, newest = self._participant.situation(), self._participant.model_files.newest
            waiting = tuple(sorted(set(self._identity.roster.signing_keys) - self._participant.known()))
        except (SiteError, FederationError, OSError) as error:  # a damaged file of the state folder; the loop goes on
            situation, newest, waiting = Situation(SiteState.ATTENTION), b"", ()
            self._health.last_error = str(error)
        if situation.refusal != self._attention:
            if situation.refusal:
                _log.warning("attention needed", why=situation.refusal)
            else:
                _log.info("attention over")
            self._attention = situation.refusal
        status = AgentStatus(
            written_at=self._clock(),
            state=situation.state,
            reasons=situation.reasons,
            run_id=current.run_id.hex() if current else None,
            round=current.number if current else None,
            model_digest=newest.hex() or None,
            roster_epoch=self._identity.roster.epoch,
            certificate_expires_at=self._identity.expires_at,
            last_contact_at=self._health.last_contact_at,
            last_error=self._health.last_error or situation.refusal,
            ledger_entries=self._ledger.entries,
            roster=tuple(sorted(self._identity.roster.signing_keys)),
            roster_waiting=waiting,
            roster_expires_at=self._identity.roster.expires_at,
            suspended=self._participant.suspended,
            rolled_back=self._participant.rolled_back,
            set_aside=tuple(sorted(path.name for path in self._settings.folders.agent.rglob(f"*{DAMAGED}"))),
            clock_ahead_s=self._health.clock_ahead_s,
        )
        try:
            write_status(self._settings.folders.agent, status)
            self._unwritten = ""
        except OSError as error:  # a full disk: the next turn writes it
            if (why := error.strerror or "") != self._unwritten:
                _log.warning("status not written", why=why)
            self._unwritten = why
        self._notifier.status(in_words(status))


def _lock(path: Path) -> IO[bytes]:
    """Return a lock on the state folder, which lasts as long as the file is open."""
    try:
        lock = path.open("ab")
    except OSError as error:
        if is_of_disk(error):
            raise
        raise StateUnreadable.of(path.name, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise InUse("another agent is running with this state folder; stop it first") from error
    return lock
