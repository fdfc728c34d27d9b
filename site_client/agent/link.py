"""The link: one long-lived mutual-TLS HTTP/2 connection to the aggregator. The only file of a site that imports grpc.

TLS 1.3 only. gRPC has no switch for the version. The consortium's certificates are ECDSA, so an offer of TLS 1.2 with
only an RSA suite leaves TLS 1.2 without a common cipher, while 1.3 has its own.

Proxy: gRPC would take one from the environment, ignore an https:// one silently, and obey no_proxy. This file passes
the configured one as an argument or switches proxies off, and removes no_proxy from this process's environment. So
with a proxy configured no connection is ever direct.
"""

import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from federation.limits import MESSAGE_BYTES_MAX

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"  # read once, when grpc starts

import grpc

from site_client.agent.egress.egress import Cleared
from site_client.agent.identity.identity import SiteIdentity
from site_client.config import SiteSettings
from site_client.errors import ConfigRefused, EgressRefused, LinkError, Refused, Unreachable

# When the line is cut and comes back under another address, a download waits silently until a ping finds that out.
# Below the shortest idle limit of common NAT (60 s), and not below the aggregator's minimum (10 s).
KEEPALIVE_MS = 15_000
ANSWER_MS = 20_000  # a shorter silence is normal on a slow line

_RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


@dataclass(frozen=True)
class Endpoint:
    """An address to dial, and the identity to show. Without key and certificate the client is anonymous."""

    address: str
    ca_pem: bytes
    key_pem: bytes | None = field(default=None, repr=False)
    certificate_pem: bytes | None = None
    proxy: str = field(default="", repr=False)
    stall_s: float = 60.0


def enrolled(settings: SiteSettings, identity: SiteIdentity, patience_s: float = math.inf) -> Endpoint:
    """Return the aggregator's listener for sites, dialled as this site.

    Args:
        settings: Of this site.
        identity: Of this site.
        patience_s: For an answer, where that is less than agent.stall_s.
    """
    return Endpoint(
        address=settings.aggregator.address,
        ca_pem=identity.ca_pem,
        key_pem=identity.tls_key_pem,
        certificate_pem=identity.certificate_pem,
        proxy=settings.aggregator.proxy,
        stall_s=min(patience_s, settings.agent.stall_s),
    )


class Link:
    """A `Transport`. Calls raise Unreachable (try again) or Refused (do not); the message names the remedy."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = _dial(endpoint)

    @property
    def peer(self) -> str:
        """Address of the other end, host:port."""
        return self._endpoint.address

    def unary(self, path: str, request: Cleared) -> bytes:
        """Send one message, return the answer."""
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        try:
            return bytes(call(request.data, timeout=self._endpoint.stall_s))
        except grpc.RpcError as error:
            raise self._explain(error) from error

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes:
        """Send a stream. A slow one is fine; one without progress for `stall_s` seconds ends with Unreachable."""
        watch = _Watch(self._endpoint.stall_s)
        feed = _Feed(requests, watch)
        stream: grpc.StreamUnaryMultiCallable[bytes, bytes] = self._channel.stream_unary(path)
        # Not the blocking call: the watch needs something to cancel.
        call = stream.future(feed)
        try:
            with watch.over(call):
                return bytes(call.result())
        except grpc.RpcError as error:
            # gRPC reports its own error for a request stream that raised; ours says why.
            if feed.error is not None:
                raise feed.error from error
            raise self._explain(error) from error

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        """Receive a stream. A slow one is fine; one without progress for `stall_s` seconds ends with Unreachable."""
        watch = _Watch(self._endpoint.stall_s)
        stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(path)
        call = stream(request.data)
        try:
            with watch.over(call):
                for data in call:
                    watch.touch()
                    yield bytes(data)
        except grpc.RpcError as error:
            raise self._explain(error) from error
        finally:
            call.cancel()

    def reconnect(self, endpoint: Endpoint) -> None:
        """Drop the connection, and dial with a renewed certificate."""
        self._channel.close()
        self._endpoint = endpoint
        self._channel = _dial(endpoint)

    def close(self) -> None:
        """Drop the connection; calls in progress end with Unreachable."""
        self._channel.close()

    def _explain(self, error: grpc.RpcError) -> LinkError:
        # Every RpcError that a call raises is a grpc.Call too, which its type does not say.
        call: Any = error
        code, details = call.code(), (call.details() or "")[:300]
        if code in _RETRYABLE:
            return Unreachable(_why_unreachable(self._endpoint, code, details))
        if code is grpc.StatusCode.UNIMPLEMENTED:
            why = (
                f"{self._endpoint.address} does not know this call: is it the other port of the aggregator? "
                "aggregator.address is the one for sites, usually 8443; join dials the one for enrolment, usually 8444"
            )
            return Refused(why, code.name)
        return Refused(f"the aggregator refused the call ({code.name}): {details or 'no reason given'}", code.name)


def _dial(endpoint: Endpoint) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(endpoint.ca_pem, endpoint.key_pem, endpoint.certificate_pem)
    return grpc.secure_channel(endpoint.address, credentials, _options(endpoint.proxy))


def _options(proxy: str) -> list[tuple[str, object]]:
    common: list[tuple[str, object]] = [
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", ANSWER_MS),
        # gRPC also pings to measure a download, has one ping under way at a time, and would wait a minute for this one.
        ("grpc.http2.ping_timeout_ms", ANSWER_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # else gRPC makes it one a minute on an idle connection
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.enable_retries", 0),  # every retry goes through egress again, or the ledger would miss it
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 30_000),
        ("grpc.use_local_subchannel_pool", 1),  # a new certificate means a new connection
    ]
    if not proxy:
        return [*common, ("grpc.enable_http_proxy", 0)]
    if urlsplit(proxy).scheme != "http":
        raise ConfigRefused("the proxy has to begin with http://: gRPC would ignore it and dial directly")
    for name in ("no_grpc_proxy", "no_proxy"):
        os.environ.pop(name, None)
    return [*common, ("grpc.http_proxy", proxy)]


def _why_unreachable(endpoint: Endpoint, code: grpc.StatusCode, details: str) -> str:
    through = " through the proxy" if endpoint.proxy else ""
    hints = {
        "407": "the proxy wants a user and password: set them in aggregator.proxy",
        "403": f"the proxy forbids it: ask IT to allow CONNECT to {endpoint.address}",
        "CERTIFICATE_VERIFY_FAILED": "its certificate does not verify: is this clock wrong, or is TLS inspected?",
        "ALPN": "a firewall or proxy strips HTTP/2: ask IT to bypass the aggregator's address",
    }
    hint = next((text for sign, text in hints.items() if sign in details), "it is tried again")
    return f"no answer from {endpoint.address}{through} ({code.name}); {hint}"


class _Feed:
    """Hands chunks to gRPC, and keeps an exception of ours, which gRPC would only log."""

    def __init__(self, requests: Iterator[Cleared], watch: "_Watch") -> None:
        self._requests, self._watch = requests, watch
        self.error: EgressRefused | OSError | None = None

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> bytes:
        self._watch.touch()
        try:
            return next(self._requests).data
        except (EgressRefused, OSError) as error:
            self.error = error
            raise


class _Watch:
    """Cancels a call that has made no progress for a while. Progress counts, not duration."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._last = time.monotonic()
        self._over = threading.Event()
        self._call: Any = None

    def touch(self) -> None:
        self._last = time.monotonic()

    def over(self, call: Any) -> "_Watch":
        self._call = call
        return self

    def __enter__(self) -> None:
        # A thread and no deadline: a deadline would limit the duration, and a slow transfer may take long.
        threading.Thread(target=self._watch, name="stall-watch", daemon=True).start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(max(0.01, self._last + self._stall_s - time.monotonic())):
            if time.monotonic() - self._last >= self._stall_s:
                self._call.cancel()
                return
