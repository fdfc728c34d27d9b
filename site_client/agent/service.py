"""The agent as a process: one loop that never gives up, and ends when it is told to.

Expected failures wait and go on; unexpected ones are recorded with their traceback (the agent has never seen a patient,
so none can be in it), wait, and go on. What the hospital may want to know stands in <state>/agent/status.json.
"""

import fcntl
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import structlog
from federation.errors import FederationError

from site_client.agent.backoff import LONGEST_S, Backoff
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.egress.payloads import Payloads
from site_client.agent.egress.rate_limit import RateLimit
from site_client.agent.identity.certificates import Certificates
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.link import Endpoint, Link, enrolled
from site_client.agent.rounds.participant import Participant
from site_client.agent.status_file import AgentStatus, in_words, write_status
from site_client.bus import Bus
from site_client.config import SiteSettings
from site_client.errors import ConfigRefused, InUse, SiteError, Unreachable
from site_client.metered import is_metered
from site_client.notify import Notifier
from site_client.spool import AgentSide

_log = structlog.get_logger()
_NEWS_S = 0.1  # how often files are looked at between two polls: others may wait for what came
_GRACE_S = 5.0  # a call in progress may take this long to end after SIGTERM
_QUIET_STALLS = 3.0  # in lengths of agent.stall_s: what a loop at work may take without a message moving


def run(settings: SiteSettings) -> int:
    """Runs until SIGTERM or SIGINT; gives the exit status.

    Errors: IdentityRefused, ConfigRefused, LedgerBroken, InUse.
    """
    log_to_stderr()
    identity = SiteIdentity(settings.folders.agent / "identity")
    if identity.site != settings.name:
        raise ConfigRefused(f"site.toml says name = {settings.name!r}, but this host is enrolled as {identity.site!r}")
    if not settings.aggregator.address:
        raise ConfigRefused("aggregator.address in site.toml is empty; ask the coordinator for host:port")
    with _only_one(settings.folders.agent / "lock"):
        service = AgentService(settings, identity, lambda: datetime.now(UTC), Notifier.of_service())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        service.run()
    return 0


@dataclass
class _Health:
    """What the loop remembers between turns; lost at a restart without harm."""

    last_contact_at: datetime | None = None
    last_error: str = ""
    logged: tuple[str | None, str] = (None, "")  # what was asked of this site and refused by it, as last logged


class AgentService:
    """The loop, put together from its parts."""

    def __init__(
        self,
        settings: SiteSettings,
        identity: SiteIdentity,
        clock: Callable[[], datetime],
        notifier: Notifier | None = None,
    ) -> None:
        self._settings, self._identity, self._clock = settings, identity, clock
        self._notifier = notifier or Notifier()
        self._notifier.allow(_QUIET_STALLS * settings.agent.stall_s)
        self._stopping = threading.Event()
        self._ledger = Ledger(settings.folders.agent / "ledger.jsonl", identity.keys.signing, clock)
        payloads = Payloads(settings.folders.agent / "payloads", settings.agent.payloads_mib * 1024 * 1024)
        self._guard = Guard(settings.policy)
        self._link = Link(self._endpoint())
        pace = RateLimit(settings.policy.bandwidth_kib_s * 1024)
        self._egress = Egress(self._guard, self._ledger, self._link, payloads, pace, self._notifier.alive)
        self._certificates = Certificates(identity, self._egress, self._desk, clock)
        spool = AgentSide(settings.folders.spool)
        spool.clear_drafts()
        bus = Bus()
        self._rounds = Participant(self._egress, identity, spool, settings, clock, lambda: is_metered(bus))
        self._health = _Health()
        self._backoff = Backoff(min(LONGEST_S, settings.agent.poll_max_s))

    def stop(self) -> None:
        """Ends the loop after the turn in progress; a call that takes too long is cut. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Turns until `stop`."""
        threading.Thread(target=self._cut_when_stopping, name="stop", daemon=True).start()
        _log.info("agent_started", site=self._identity.site, ledger_entries=self._ledger.entries)
        if self._ledger.repaired_bytes:
            _log.warning("ledger_repaired", cut_bytes=self._ledger.repaired_bytes, entry=self._ledger.entries)
        self._notifier.ready()
        while not self._stopping.is_set():
            self._notifier.alive()
            wait_s = self._turn()
            self._tell()
            self._rest(wait_s)
        self._notifier.stopping()
        self._link.close()
        self._ledger.close()
        _log.info("agent_stopped", site=self._identity.site)

    def _turn(self) -> float:
        try:
            if self._certificates.keep():
                self._link.reconnect(self._endpoint())
            turn = self._rounds.step()
        except Unreachable as error:
            return self._failed("aggregator_unreachable", error)
        except (SiteError, FederationError) as error:
            return self._failed("step_failed", error)
        except Exception as error:
            _log.error("step_crashed", kind=type(error).__name__, exc_info=True)
            return self._failed("step_crashed", error)
        refused = "" if turn.refusal is None else str(turn.refusal)
        if self._backoff.failures:
            _log.info("went_on", failures=self._backoff.failures)
        self._backoff.succeeded()
        if (turn.asked, refused) != self._health.logged:  # every poll asks the same until it is done
            self._log_step(turn.asked, refused)
        self._health = _Health(self._clock(), refused or self._certificates.notice, (turn.asked, refused))
        return turn.wait_s

    def _log_step(self, asked: str | None, refused: str) -> None:
        if refused:
            _log.warning("step_refused", asked=asked, why=refused)
        elif asked:
            _log.info("step_done", asked=asked)

    def _failed(self, event: str, error: Exception) -> float:
        if self._stopping.is_set():
            return 0.0
        self._health.last_error = str(error)
        wait_s = self._backoff.failed(self._egress.progress)
        _log.warning(event, why=str(error), failures=self._backoff.failures, wait_s=round(wait_s, 1))
        return wait_s

    def _rest(self, wait_s: float) -> None:
        """Waits, but not when something happened here that the aggregator should hear. After a failure it always
        waits."""
        left_s = wait_s
        while left_s > 0 and not self._stopping.wait(min(_NEWS_S, left_s)):
            left_s -= _NEWS_S
            self._notifier.alive()
            if self._backoff.failures == 0 and self._rounds.has_news():
                return

    def _cut_when_stopping(self) -> None:
        self._stopping.wait()
        threading.Event().wait(_GRACE_S)
        self._link.close()

    # The ways out.

    @contextmanager
    def _desk(self) -> Iterator[Egress]:
        """A way to the enrolment listener, for as long as it takes."""
        link = Link(self._enrolment_endpoint())
        try:
            yield Egress(self._guard, self._ledger, link, moved=self._notifier.alive)
        finally:
            link.close()

    def _endpoint(self) -> Endpoint:
        return enrolled(self._settings, self._identity)

    def _enrolment_endpoint(self) -> Endpoint:
        address = self._settings.aggregator.enrolment_address or self._identity.membership.enrolment_address
        proxy, stall_s = self._settings.aggregator.proxy, self._settings.agent.stall_s
        return Endpoint(address, self._identity.ca_pem, proxy=proxy, stall_s=stall_s)

    # What the hospital can see.

    def _tell(self) -> None:
        situation, current = self._rounds.situation(), self._rounds.book.current
        view = AgentStatus(
            written_at=self._clock(),
            state=situation.state,
            reasons=situation.reasons,
            run_id=current.run_id.hex() if current else None,
            round=current.number if current else None,
            model_digest=self._rounds.models.newest.hex() or None,
            roster_epoch=self._identity.roster.epoch,
            certificate_expires_at=self._identity.expires_at,
            last_contact_at=self._health.last_contact_at,
            last_error=self._health.last_error,
            ledger_entries=self._ledger.entries,
            roster=tuple(sorted(self._identity.roster.signing_keys)),
        )
        write_status(self._settings.folders.agent, view)
        self._notifier.status(in_words(view))


def log_to_stderr() -> None:
    """One line an event; for people at a terminal, as JSON for everything else."""
    render = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _only_one(path: Path) -> IO[bytes]:
    """Holds a lock as long as it is open. Errors: InUse when another agent uses this state folder."""
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise InUse("another agent is running with this state folder; stop it first") from error
    return lock
