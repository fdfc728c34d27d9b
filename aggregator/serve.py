"""The running aggregator: two gRPC listeners, drivers, the dashboard; started together, stopped in order.

TLS 1.3 only. gRPC for Python has no switch for the version; our certificates are ECDSA, so offering for TLS 1.2 nothing
but an RSA suite leaves it without a common cipher, while 1.3 has its own list.
"""

import os
import signal
import socket
import threading
from concurrent import futures
from types import FrameType

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"  # read once, when grpc starts

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
from aggregator.rpc.bandwidth import LineDoor
from aggregator.rpc.blobs import BlobsDoor
from aggregator.rpc.call_guard import CallGuard
from aggregator.rpc.enrolment import EnrolledDoor, JoiningDoor
from aggregator.rpc.rounds import RoundsDoor
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService

log = structlog.get_logger()

FRAMING_BYTES = 64 * 1024  # what a message may have beside a full chunk of data
JOINING_BYTES_MAX = 64 * 1024
WINDOW_BYTES = 512 * 1024  # what a stream may have under way: 10 MB/s at a round trip of 50 ms
QUEUED_PER_THREAD = 16  # calls that may wait for a thread before new ones are refused
GRACE_S = 5.0  # for calls in progress when stopping
KEEPALIVE_MS = 15_000  # a stream whose site is gone holds a thread until a ping finds it out


class AggregatorServer:
    """Everything `serve` runs. `start` returns when it listens; `stop` when nothing of it is left.

    Raises: ConfigRefused when it cannot listen at one of its addresses.
    """

    def __init__(self, app: AppContext, authority: Authority) -> None:
        self._app = app
        self._gate = CallGuard(app)
        self._stop = threading.Event()
        listen = app.settings.listen
        _require_free(listen)
        enrolment = EnrolmentService(app.store, authority, app.settings.enrolment, app.clock, app.random)
        self._sites = _server(listen.threads, CHUNK_BYTES_MAX + FRAMING_BYTES)
        add_RoundsServicer_to_server(RoundsDoor(self._gate), self._sites)
        add_BlobsServicer_to_server(BlobsDoor(self._gate), self._sites)
        add_LineServicer_to_server(LineDoor(self._gate), self._sites)
        add_EnrolmentServicer_to_server(EnrolledDoor(self._gate, enrolment), self._sites)
        self.sites_port = self._sites.add_secure_port(listen.sites, _mutual_tls(authority, listen.host_names))
        self._joining = _server(max(4, listen.threads // 4), JOINING_BYTES_MAX) if listen.enrolment else None
        self.enrolment_port = 0
        if self._joining is not None:
            add_EnrolmentServicer_to_server(JoiningDoor(enrolment), self._joining)
            credentials = _server_tls(authority, listen.host_names)
            self.enrolment_port = self._joining.add_secure_port(listen.enrolment, credentials)
        drivers = [Driver(app) for _ in range(app.settings.driver.threads)]
        self._drivers = [
            threading.Thread(target=driver.run, args=(self._stop,), name=f"driver-{index}")
            for index, driver in enumerate(drivers)
        ]
        self._dashboard = _dashboard(app) if app.settings.dashboard.enabled else None
        self._dashboard_thread = (
            threading.Thread(target=self._dashboard.run, name="dashboard") if self._dashboard is not None else None
        )

    def start(self) -> None:
        self._sites.start()
        if self._joining is not None:
            self._joining.start()
        for thread in self._drivers:
            thread.start()
        if self._dashboard_thread is not None:
            self._dashboard_thread.start()
        log.info("aggregator started", sites_port=self.sites_port, enrolment_port=self.enrolment_port)

    def stop(self) -> None:
        """No new calls; those in progress get a moment; drivers finish the step in hand."""
        self._stop.set()
        self._gate.stopping.set()
        self._app.phase_changed.notify()
        self._app.work_due.notify()
        stopped = [server.stop(GRACE_S) for server in (self._sites, self._joining) if server is not None]
        for event in stopped:
            event.wait()
        for thread in self._drivers:
            thread.join()
        if self._dashboard is not None and self._dashboard_thread is not None:
            self._dashboard.should_exit = True
            self._dashboard_thread.join()
        self._app.store.close()
        log.info("aggregator stopped")


def serve(settings: AggregatorSettings) -> None:
    """Run until SIGTERM or SIGINT. The state folder has been initialised and its tables are up to date."""
    memory.share_heaps()
    app = open_context(settings)
    aggregator = AggregatorServer(app, Authority(settings.state.folder / "ca", app.clock))
    asked_to_stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    aggregator.start()
    asked_to_stop.wait()
    log.info("stop requested")
    aggregator.stop()


def _require_free(listen: ListenSettings) -> None:
    """Refuse an address that is taken or not ours, by its key, before anything runs.

    gRPC would say so in a page, and uvicorn's thread would end alone and leave the rest without a dashboard.
    """
    for key, address in (("sites", listen.sites), ("enrolment", listen.enrolment), ("dashboard", listen.dashboard)):
        if not address:
            continue
        host, _, port = address.rpartition(":")
        try:
            family, kind, _, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
        except OSError as error:
            raise ConfigRefused(
                f"cannot listen at {address} ([listen] {key}): {error.strerror}; "
                f"stop what uses port {port} (`ss -ltnp sport = :{port}` names it) or set another address"
            ) from error


def _server(threads: int, message_bytes_max: int) -> grpc.Server:
    options = [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", CHUNK_BYTES_MAX + FRAMING_BYTES),
        ("grpc.so_reuseport", 0),  # a second aggregator on the same port is a mistake, not a helper
        # Windows grown by probing hold megabytes a site.
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

    # Asked at every handshake, so a renewed server certificate needs no restart.
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
