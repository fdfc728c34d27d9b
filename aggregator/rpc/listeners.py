"""The two gRPC listeners, put together: for sites with their certificates, and for hosts that have none yet."""

import socket

from federation.limits import CHUNK_BYTES_MAX
from federation.v1 import bandwidth_pb2, blobs_pb2, enrolment_pb2, rounds_pb2

from aggregator.config import AggregatorSettings
from aggregator.context import AppContext
from aggregator.rpc.acceptor import Acceptor, ConnectionLimits
from aggregator.rpc.bandwidth import BandwidthServicer
from aggregator.rpc.blobs import BlobsServicer
from aggregator.rpc.call_guard import CallGuard
from aggregator.rpc.call_server import CallServer
from aggregator.rpc.calls import CallLimits, CallReceiver
from aggregator.rpc.enrolment import HostEnrolmentServicer, SiteEnrolmentServicer
from aggregator.rpc.rounds import RoundsServicer
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService

FRAMING_BYTES = 64 * 1024  # of a message, beside a full chunk of data
ENROLMENT_BYTES_MAX = 64 * 1024  # of a message of a host that is not authenticated
WINDOW_BYTES = 512 * 1024  # under way in one stream: 10 MB/s at a round trip of 50 ms
KEEPALIVE_MS = 15_000  # a site whose line was cut holds its connection until a ping fails


def sites_server(
    app: AppContext, authority: Authority, enrolment: EnrolmentService, listener: socket.socket, connections: int
) -> CallServer:
    """Make the server for sites: mutual TLS, every service.

    Args:
        app: The aggregator.
        authority: Its CA, of which callers need a certificate.
        enrolment: Of the same database.
        listener: Listens already.
        connections: How many are accepted at once.
    """
    limits, listen = app.settings.limits, app.settings.listen
    acceptor = _acceptor("sites", app.settings, listener, connections)
    guard = CallGuard(app)
    rounds = RoundsServicer(guard)
    receiver = CallReceiver(
        acceptor,
        CallLimits(limits.calls_per_site, limits.message_s, limits.progress_s, listen.answer_hold_ms / 1000),
        listen.threads,
        guard.site_of,
    )
    services = enrolment_pb2.DESCRIPTOR.services_by_name["Enrolment"]
    handlers = [
        receiver.handler(rounds_pb2.DESCRIPTOR.services_by_name["Rounds"], rounds, {"Poll": rounds.look}),
        receiver.handler(blobs_pb2.DESCRIPTOR.services_by_name["Blobs"], BlobsServicer(guard)),
        receiver.handler(bandwidth_pb2.DESCRIPTOR.services_by_name["Line"], BandwidthServicer(guard)),
        receiver.handler(services, SiteEnrolmentServicer(guard, enrolment)),
    ]
    return CallServer(
        acceptor,
        receiver,
        handlers,
        lambda: authority.server_identity(listen.host_names),
        authority.certificate_pem,
        _options(app.settings, CHUNK_BYTES_MAX + FRAMING_BYTES),
    )


def enrolment_server(
    settings: AggregatorSettings,
    authority: Authority,
    enrolment: EnrolmentService,
    listener: socket.socket,
    connections: int,
) -> CallServer:
    """Make the server for hosts without a certificate: server TLS; Join, Challenge and Recover. See `sites_server`."""
    limits, listen = settings.limits, settings.listen
    acceptor = _acceptor("enrolment", settings, listener, connections)
    receiver = CallReceiver(
        acceptor,
        CallLimits(limits.calls_per_address, limits.message_s, limits.progress_s, hold_s=0),
        max(2, listen.threads // 8),
        site_of=None,
    )
    service = enrolment_pb2.DESCRIPTOR.services_by_name["Enrolment"]
    # No connection is admitted here, so each ends after `handshake_s`. gRPC says farewell at half of that: a host that
    # waits for its approval connects again, and loses no answer.
    half_ms = round(limits.handshake_s * 500)
    return CallServer(
        acceptor,
        receiver,
        [receiver.handler(service, HostEnrolmentServicer(enrolment))],
        lambda: authority.server_identity(listen.host_names),
        None,
        [*_options(settings, ENROLMENT_BYTES_MAX), ("grpc.max_connection_age_ms", half_ms)],
    )


def _acceptor(name: str, settings: AggregatorSettings, listener: socket.socket, connections: int) -> Acceptor:
    limits = settings.limits
    return Acceptor(
        name,
        listener,
        ConnectionLimits(connections, limits.connections_per_address, limits.connections_per_site, limits.handshake_s),
    )


def _options(settings: AggregatorSettings, message_bytes_max: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", CHUNK_BYTES_MAX + FRAMING_BYTES),
        ("grpc.max_concurrent_streams", settings.limits.calls_per_connection),
        ("grpc.server_handshake_timeout_ms", round(settings.limits.handshake_s * 1000)),
        # Windows that grow by probing hold megabytes a site.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # sites ping every 15 s
    ]
