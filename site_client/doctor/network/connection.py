"""From this machine to the aggregator's TLS: name, proxy, connection, who issued the certificate, HTTP/2, its dates.

The handshake verifies nothing and shows no certificate of ours: it only reads what is presented, so that whatever is on
the way can be named. Nothing is sent over the connection.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from site_client.agent.identity.pinning import connect, host_and_port, presented_chain
from site_client.config import AggregatorSettings
from site_client.doctor.result import CheckResult, green, grey, red
from site_client.errors import ProxyRefused, Unreachable

_IP_MTU = 14  # linux/in.h
_PROXY_ADVICE = {
    407: "Set user and password in aggregator.proxy (http://user:password@host:port), or run a helper for "
    "NTLM/Kerberos (px, cntlm) and name it there",
    403: "Ask IT to allow CONNECT to {address}",
}


@dataclass(frozen=True)
class Handshake:
    """What was presented: the chain (leaf first), the protocol agreed on, the TLS version."""

    chain: tuple[x509.Certificate, ...]
    alpn: str | None
    version: str
    took_s: float
    mtu_bytes: int


def check_name(aggregator: AggregatorSettings) -> Iterator[CheckResult]:
    """Whether the one name that this machine has to know is known: the proxy's, or the aggregator's."""
    host = urlsplit(aggregator.proxy).hostname if aggregator.proxy else host_and_port(aggregator.address)[0]
    whose = "proxy" if aggregator.proxy else "aggregator"
    try:
        found = {address[0] for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        yield red("dns", f"the {whose}'s name {host} is not known here", f"Ask IT to resolve {host}")
        return
    yield green("dns", f"{whose} {host} has {len(found)} address{'es' * (len(found) != 1)}")


def check_way(aggregator: AggregatorSettings, ca: x509.Certificate | None, now: datetime) -> Iterator[CheckResult]:
    """Proxy, connection, TLS. `ca`: the consortium's; None before this host has joined."""
    host, port = host_and_port(aggregator.address)
    try:
        plain = connect(host, port, aggregator.proxy)
    except ProxyRefused as error:
        advice = _PROXY_ADVICE.get(error.status, "Ask IT what the proxy wants").format(address=aggregator.address)
        yield red("proxy", f"the proxy answered {error.status} to CONNECT", advice)
        return
    except Unreachable:
        yield red("proxy", "what answers there is no HTTP proxy", "Set aggregator.proxy to an HTTP CONNECT proxy")
        return
    except OSError as error:
        whom = "the proxy" if aggregator.proxy else aggregator.address
        words = f"{whom} does not take a connection ({error.strerror or type(error).__name__})"
        yield red("connection", words, f"Ask IT to allow outbound TCP from here to {whom}")
        return
    yield green("proxy", "CONNECT was allowed") if aggregator.proxy else green("proxy", "none set: direct")
    try:
        shake = _shake(plain, host)
    except (OSError, ValueError) as error:
        yield green("connection", "TCP is open")
        words = f"no TLS there ({getattr(error, 'reason', None) or type(error).__name__})"
        yield red("tls", words, f"Check aggregator.address; ask IT whether something on the way answers for {host}")
        return
    mtu = f", path MTU {shake.mtu_bytes}" if shake.mtu_bytes else ""
    yield green("connection", f"TCP and TLS in {1000 * shake.took_s:.0f} ms{mtu}")
    yield from judge(shake, host, ca, now)


def judge(shake: Handshake, host: str, ca: x509.Certificate | None, now: datetime) -> Iterator[CheckResult]:
    """Who issued it, which protocol, from when to when."""
    leaf = shake.chain[0]
    if ca is None:
        yield grey("tls", "this host has not joined, so it knows no CA to compare with", "Run hemofed-site join")
    elif not _issued_by(leaf, ca):
        issuer = _common_name(leaf.issuer)
        yield red(
            "tls",
            f"the certificate shown here was issued by CN={issuer}, not by the consortium's CA",
            f"TLS is inspected by CN={issuer}: ask IT to bypass {host}",
            local=True,
        )
    else:
        yield green("tls", f"{shake.version}, certificate of the consortium's CA")
    if shake.alpn == "h2":
        yield green("http2", "HTTP/2 is agreed on")
    else:
        yield red("http2", "no HTTP/2 (ALPN) is agreed on", f"Something on the way strips HTTP/2: bypass {host}")
    if now < leaf.not_valid_before_utc:
        behind_s = (leaf.not_valid_before_utc - now).total_seconds()
        yield red("clock", f"the aggregator's certificate is not valid yet by this clock: {behind_s:.0f} s to go",
                  f"Enable NTP; this clock is behind by {behind_s:.0f} s or more")  # fmt: skip
    elif now > leaf.not_valid_after_utc:
        ahead_s = (now - leaf.not_valid_after_utc).total_seconds()
        yield red("clock", f"by this clock the aggregator's certificate ended {ahead_s:.0f} s ago",
                  "Enable NTP if this clock is ahead; else tell the coordinator")  # fmt: skip


def _shake(plain: socket.socket, host: str) -> Handshake:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # read, not trusted: see the module's first lines
    context.set_alpn_protocols(["h2"])
    began = time.monotonic()
    with plain, context.wrap_socket(plain, server_hostname=host) as secured:
        chain = tuple(x509.load_der_x509_certificate(der) for der in presented_chain(secured))
        if not chain:
            raise ValueError("no certificate")
        took_s = time.monotonic() - began
        return Handshake(chain, secured.selected_alpn_protocol(), secured.version() or "TLS", took_s, _mtu(secured))


def _mtu(connected: socket.socket) -> int:
    try:
        return connected.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:  # IPv6 has another option, and not every kernel tells
        return 0


def _issued_by(leaf: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _common_name(name: x509.Name) -> str:
    found = [str(one.value) for one in name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return (found[0] if found else name.rfc4514_string())[:80]
