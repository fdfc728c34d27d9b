"""The running aggregator: two gRPC listeners, drivers, housekeeping, dashboard; started together, stopped in order."""

import fcntl
import os
import signal
import socket
import threading
from pathlib import Path
from types import FrameType

import structlog
from federation.notify import Notifier

from aggregator import memory
from aggregator.alerts.watch import AlertWatch
from aggregator.config import AggregatorSettings, LimitsSettings
from aggregator.context import AppContext, open_context
from aggregator.dashboard.app import create_app
from aggregator.errors import ConfigRefused, PartEnded, StateFolderRefused
from aggregator.health.checks import HealthChecks
from aggregator.health.metrics import AggregatorMetrics
from aggregator.health.pages import create_health_app
from aggregator.health.status_line import status_line
from aggregator.logging_setup import limit_repetition
from aggregator.network import listen, raise_descriptor_limit
from aggregator.rounds.clock_steps import ClockSteps
from aggregator.rounds.driver import Driver
from aggregator.rounds.housekeeping import Housekeeping
from aggregator.rpc.listeners import enrolment_server, sites_server
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.web_server import WebServer

log = structlog.get_logger()

SUPERVISED_EVERY_S = 1.0
GRACE_S = 3.0  # for calls in progress when stopping
# A connection to a gRPC listener is three descriptors: the client's, and both ends of the one to gRPC.
DESCRIPTORS_PER_CONNECTION = 3
DESCRIPTORS_KEPT = 400  # for the database, blobs, event loops and whatever else the process opens
CONNECTIONS_MIN = 48  # with fewer a consortium would not get through a masking phase


class AggregatorServer:
    """Everything that `serve` runs. `start` returns when it listens; `stop` when nothing of it is left."""

    def __init__(self, app: AppContext, authority: Authority) -> None:
        """Bind the addresses and make all parts, without starting one.

        Args:
            app: The aggregator; `stop` closes its store.
            authority: Its CA.

        Raises:
            ConfigRefused: When it cannot listen at one of its addresses, or may have too few descriptors.
        """
        self._app = app
        self._stop = threading.Event()
        settings = app.settings
        for_sites, for_hosts = _connection_shares(settings.limits, raise_descriptor_limit())
        listeners = _listen_at(settings)
        ports = {key: listener.getsockname()[1] for key, listener in listeners.items()}
        self.sites_port, self.enrolment_port = ports["sites"], ports.get("enrolment", 0)
        enrolment = EnrolmentService(app.store, authority, settings.enrolment, app.clock, app.random)
        self._sites = sites_server(app, authority, enrolment, listeners["sites"], for_sites)
        self._servers = [self._sites]
        if "enrolment" in listeners:
            self._servers.append(enrolment_server(settings, authority, enrolment, listeners["enrolment"], for_hosts))
        clock_steps = ClockSteps(app)
        self._drivers = [Driver(app, clock_steps=clock_steps) for _ in range(settings.driver.threads)]
        self._loops = [
            *(
                threading.Thread(target=driver.run, args=(self._stop,), name=f"driver-{index}")
                for index, driver in enumerate(self._drivers)
            ),
            threading.Thread(target=Housekeeping(app).run, args=(self._stop,), name="housekeeping"),
            threading.Thread(target=AlertWatch(app).run, args=(self._stop,), name="alerts"),
        ]
        self._web: list[WebServer] = []
        self._checks = HealthChecks(app, self.ended_part, self.driver_silent_s)
        if "dashboard" in listeners:
            pages = create_app(app, self._checks.ready)
            self._web.append(WebServer("dashboard", pages, listeners["dashboard"], settings.limits))
        if "health" in listeners:
            pages = create_health_app(self._checks, AggregatorMetrics(app, self.driver_silent_s))
            self._web.append(WebServer("health", pages, listeners["health"], settings.limits))

    def start(self) -> None:
        """Start every part."""
        for server in self._servers:
            server.start()
        self._app.phase_changed.subscribe(self._sites.wake)
        for thread in self._loops:
            thread.start()
        for web in self._web:
            web.start()
        log.info("aggregator started", sites_port=self.sites_port, enrolment_port=self.enrolment_port)

    def ended_part(self) -> str | None:
        """Return the name of a thread that has ended without being stopped; None when all run."""
        threads = [*self._loops, *(thread for server in self._servers for thread in server.threads)]
        threads += [web.thread for web in self._web]
        return next((thread.name for thread in threads if not thread.is_alive()), None)

    def driver_silent_s(self) -> float:
        """Return the seconds since the last look at the rounds of the driver that is silent longest."""
        return max(driver.silent_s for driver in self._drivers)

    def report(self, notifier: Notifier) -> None:
        """Tell systemd that the service is alive, while `/healthz` would answer so, and its status in words."""
        faults = [check.fault for check in self._checks.alive() if check.fault]
        if not faults:
            notifier.alive()
        if notifier.has_listener:
            notifier.status(faults[0] if faults else status_line(self._app))

    def stop(self) -> None:
        """Take no new calls, give those in progress a moment, and let each loop finish its step."""
        self._stop.set()
        # Wakes loops that wait; without it they would end at their timeouts.
        self._app.work_due.notify()
        self._app.phase_changed.notify()
        # All at once: a client that holds on to one part must not delay the end of another.
        for server in self._servers:
            server.stop(GRACE_S)
        for web in self._web:
            web.stop()
        for server in self._servers:
            server.join()
        for thread in self._loops:
            thread.join()
        for web in self._web:
            web.join()
        # Last: calls, loops and pages use it to their end.
        self._app.store.close()
        log.info("aggregator stopped")


def serve(settings: AggregatorSettings) -> None:
    """Run until SIGTERM or SIGINT. The state folder has been initialised and its tables are up to date.

    Raises:
        ConfigRefused: When it cannot listen at one of its addresses, or may have too few descriptors.
        StateFolderRefused: Without a usable CA, or when another process serves the folder.
        PartEnded: A part has ended without being stopped.
    """
    memory.share_heaps()
    notifier = Notifier.of_service()
    limit_repetition(settings.limits.log_lines_per_minute)
    app = open_context(settings)
    lock = None if app.store.is_shared else _lock(settings.state.folder / "serve.lock")
    aggregator = AggregatorServer(app, Authority(settings.state.folder / "ca", app.clock))
    stop_requested = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop_requested.set()

    threading.excepthook = _log_failure
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    aggregator.start()
    notifier.ready()
    ended = None
    while ended is None and not stop_requested.wait(SUPERVISED_EVERY_S):
        ended = aggregator.ended_part()
        aggregator.report(notifier)
    notifier.stopping()
    if ended is None:
        log.info("stop requested")
    else:
        log.error("part ended", part=ended)
    aggregator.stop()
    if lock is not None:
        os.close(lock)
    if ended is not None:
        raise PartEnded(
            f"the part {ended!r} of the service has ended; the log says why, and a new start brings it back"
        )


def _log_failure(failure: threading.ExceptHookArgs) -> None:
    """Python would print the traceback between the lines of the log."""
    name = failure.thread.name if failure.thread is not None else ""
    log.error("part failed", part=name, exc_info=failure.exc_value)


def _lock(path: Path) -> int:
    """Return a descriptor that holds the lock of a state folder, until it is closed or the process ends.

    Raises:
        StateFolderRefused: When another process holds it.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StateFolderRefused(
            f"expected {path.parent} to be served by no other process, got one that runs; stop it first. Several "
            "aggregators can share a PostgreSQL database, and no SQLite file"
        ) from None
    return lock


def _listen_at(settings: AggregatorSettings) -> dict[str, socket.socket]:
    """Listen at every address, by its key."""
    addresses = {"sites": settings.listen.sites}
    if settings.listen.enrolment:
        addresses["enrolment"] = settings.listen.enrolment
    if settings.dashboard.enabled:
        addresses["dashboard"] = settings.listen.dashboard
    if settings.listen.health:
        addresses["health"] = settings.listen.health
    listeners: dict[str, socket.socket] = {}
    try:
        for key, address in addresses.items():
            listeners[key] = listen(key, address)
    except ConfigRefused:
        for listener in listeners.values():
            listener.close()
        raise
    return listeners


def _connection_shares(limits: LimitsSettings, descriptors: int) -> tuple[int, int]:
    """Divide the descriptors among sites' and enrolment listener, so that no listener can use up those of another.

    Returns:
        How many connections each may have: as many as the settings say, or in proportion where that is too many.

    Raises:
        ConfigRefused: When it would be too few for a round.
    """
    wanted = limits.connections + limits.enrolment_connections
    possible = (descriptors - DESCRIPTORS_KEPT - limits.dashboard_connections) // DESCRIPTORS_PER_CONNECTION
    if possible >= wanted:
        return limits.connections, limits.enrolment_connections
    if possible < CONNECTIONS_MIN:
        needed = DESCRIPTORS_KEPT + limits.dashboard_connections + DESCRIPTORS_PER_CONNECTION * CONNECTIONS_MIN
        raise ConfigRefused(f"expected at least {needed} descriptors, got {descriptors}; raise the limit (ulimit -n)")
    sites = possible * limits.connections // wanted
    log.warning(
        "fewer connections than configured",
        descriptors=descriptors,
        connections=sites,
        enrolment_connections=possible - sites,
    )
    return sites, possible - sites
