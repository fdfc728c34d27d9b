"""The running aggregator: two gRPC listeners, drivers, housekeeping, the dashboard; started together, stopped in order.

TLS 1.3 only. gRPC for Python has no switch for the version. The certificates are ECDSA, so a single RSA suite for
TLS 1.2 leaves that version without a common cipher, while 1.3 has its own list.
"""

import os
import signal
import socket
import threading
from concurrent import futures
from types import FrameType

# grpc reads it once, when it is imported.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"

import grpc
import structlog
import uvicorn
from federation.limits import CHUNK_BYTES_MAX
from federation.v1.bandwidth_pb2_grpc import add_LineServicer_to_server
from federation.v1.blobs_pb2_grpc import add_BlobsServicer_to_server
from federation.v1.enrolment_pb2_grpc import add_EnrolmentServicer_to_server
from federation.v1.rounds_pb2_grpc import add_RoundsServicer_to_server

from aggregator import memory
from aggregator.config import AggregatorSettings, ListenSettings
from aggregator.context import AppContext, open_context
from aggregator.dashboard.app import create_app
from aggregator.errors import ConfigRefused
from aggregator.rounds.driver import Driver
from aggregator.rounds.housekeeping import Housekeeping
from aggregator.rpc.bandwidth import BandwidthServicer
from aggregator.rpc.blobs import BlobsServicer
from aggregator.rpc.call_guard import CallGuard
from aggregator.rpc.enrolment import HostEnrolmentServicer, SiteEnrolmentServicer
from aggregator.rpc.rounds import RoundsServicer
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService

log = structlog.get_logger()

FRAMING_BYTES = 64 * 1024  # of a message, beside a full chunk of data
ENROLMENT_BYTES_MAX = 64 * 1024  # of a message on the enrolment listener, whose callers are not authenticated
WINDOW_BYTES = 512 * 1024  # under way in one stream: 10 MB/s at a round trip of 50 ms
QUEUED_PER_THREAD = 16  # calls that may wait for a thread before new ones are refused
GRACE_S = 5.0  # for calls in progress when stopping
KEEPALIVE_MS = 15_000  # a stream whose site is gone keeps its thread until a ping fails


class AggregatorServer:
    """Everything that `serve` runs. `start` returns when it listens; `stop` when nothing of it is left."""

    def __init__(self, app: AppContext, authority: Authority) -> None:
        """Bind the addresses and make all parts, without starting one.

        Args:
            app: The aggregator; `stop` closes its store.
            authority: Its CA.

        Raises:
            ConfigRefused: when it cannot listen at one of its addresses.
        """
        self._app = app
        self._guard = CallGuard(app)
        self._stop = threading.Event()
        listen = app.settings.listen
        _require_free(listen)
        enrolment = EnrolmentService(app.store, authority, app.settings.enrolment, app.clock, app.random)
        self._sites = _server(listen.threads, CHUNK_BYTES_MAX + FRAMING_BYTES)
        add_RoundsServicer_to_server(RoundsServicer(self._guard), self._sites)
        add_BlobsServicer_to_server(BlobsServicer(self._guard), self._sites)
        add_LineServicer_to_server(BandwidthServicer(self._guard), self._sites)
        add_EnrolmentServicer_to_server(SiteEnrolmentServicer(self._guard, enrolment), self._sites)
        self.sites_port = self._sites.add_secure_port(listen.sites, _mutual_tls(authority, listen.host_names))
        self._enrolment = _server(max(4, listen.threads // 4), ENROLMENT_BYTES_MAX) if listen.enrolment else None
        self.enrolment_port = 0
        if self._enrolment is not None:
            add_EnrolmentServicer_to_server(HostEnrolmentServicer(enrolment), self._enrolment)
            credentials = _server_tls(authority, listen.host_names)
            self.enrolment_port = self._enrolment.add_secure_port(listen.enrolment, credentials)
        self._loops = [
            *(
                threading.Thread(target=Driver(app).run, args=(self._stop,), name=f"driver-{index}")
                for index in range(app.settings.driver.threads)
            ),
            threading.Thread(target=Housekeeping(app).run, args=(self._stop,), name="housekeeping"),
        ]
        self._dashboard = _dashboard(app) if app.settings.dashboard.enabled else None
        self._dashboard_thread = (
            threading.Thread(target=self._dashboard.run, name="dashboard") if self._dashboard is not None else None
        )

    def start(self) -> None:
        """Start every part."""
        self._sites.start()
        if self._enrolment is not None:
            self._enrolment.start()
        for thread in self._loops:
            thread.start()
        if self._dashboard_thread is not None:
            self._dashboard_thread.start()
        log.info("aggregator started", sites_port=self.sites_port, enrolment_port=self.enrolment_port)

    def stop(self) -> None:
        """Take no new calls, give those in progress a moment, and let each loop finish its step."""
        self._stop.set()
        self._guard.stopping.set()
        # Wakes loops and held polls that wait; without it they would end at their timeouts.
        self._app.phase_changed.notify()
        self._app.work_due.notify()
        stopped = [server.stop(GRACE_S) for server in (self._sites, self._enrolment) if server is not None]
        for event in stopped:
            event.wait()
        for thread in self._loops:
            thread.join()
        if self._dashboard is not None and self._dashboard_thread is not None:
            self._dashboard.should_exit = True
            self._dashboard_thread.join()
        # Last: calls, loops and pages use it to their end.
        self._app.store.close()
        log.info("aggregator stopped")


def serve(settings: AggregatorSettings) -> None:
    """Run until SIGTERM or SIGINT. The state folder has been initialised and its tables are up to date.

    Raises:
        ConfigRefused: when it cannot listen at one of its addresses.
        StateFolderRefused: without a usable CA.
    """
    memory.share_heaps()
    app = open_context(settings)
    aggregator = AggregatorServer(app, Authority(settings.state.folder / "ca", app.clock))
    stop_requested = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    aggregator.start()
    stop_requested.wait()
    log.info("stop requested")
    aggregator.stop()


def _require_free(listen: ListenSettings) -> None:
    """Refuse an address that is taken, or is not of this machine, before anything runs.

    gRPC would write a page about it. uvicorn's thread would end alone and leave the aggregator without a dashboard.
    """
    for key, address in (("sites", listen.sites), ("enrolment", listen.enrolment), ("dashboard", listen.dashboard)):
        if not address:
            continue
        host, _, port = address.rpartition(":")
        try:
            family, kind, _, _, bound = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(bound)
        except OSError as error:
            raise ConfigRefused(
                f"cannot listen at {address} ([listen] {key}): {error.strerror}; "
                f"stop what uses port {port} (`ss -ltnp sport = :{port}` names it) or set another address"
            ) from error


def _server(threads: int, message_bytes_max: int) -> grpc.Server:
    options = [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", CHUNK_BYTES_MAX + FRAMING_BYTES),
        ("grpc.so_reuseport", 0),  # with it a second aggregator would silently take half of the calls
        # Windows that grow by probing hold megabytes a site.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # sites ping every 15 s
    ]
    executor = futures.ThreadPoolExecutor(threads, thread_name_prefix="grpc")
    return grpc.server(executor, options=options, maximum_concurrent_rpcs=threads * QUEUED_PER_THREAD)


def _mutual_tls(authority: Authority, host_names: tuple[str, ...]) -> grpc.ServerCredentials:
    def certificates() -> grpc.ServerCertificateConfiguration:
        identity = authority.server_identity(host_names)
        pair = (identity.key_pem, identity.certificate_pem)
        return grpc.ssl_server_certificate_configuration([pair], authority.certificate_pem)

    # gRPC calls it at every handshake, so a renewed server certificate needs no restart.
    return grpc.dynamic_ssl_server_credentials(certificates(), certificates, require_client_authentication=True)


def _server_tls(authority: Authority, host_names: tuple[str, ...]) -> grpc.ServerCredentials:
    def certificates() -> grpc.ServerCertificateConfiguration:
        identity = authority.server_identity(host_names)
        return grpc.ssl_server_certificate_configuration([(identity.key_pem, identity.certificate_pem)])

    return grpc.dynamic_ssl_server_credentials(certificates(), certificates, require_client_authentication=False)


def _dashboard(app: AppContext) -> uvicorn.Server:
    host, _, port = app.settings.listen.dashboard.rpartition(":")
    config = uvicorn.Config(
        create_app(app), host=host, port=int(port), log_config=None, access_log=False, ws="none", lifespan="off"
    )
    return uvicorn.Server(config)
