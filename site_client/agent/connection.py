"""Checks from this machine to the aggregator's TLS: name, proxy, connection, dates, issuer, HTTP/2.

`hemofed-site doctor` shows each; the agent puts the first that fails into its own sentence, because gRPC does not say
which of them it was.

The handshake verifies nothing and shows no certificate of ours. It only reads the presented chain, so that a firewall
that inspects TLS can be named. Nothing is sent over the connection.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from site_client.agent.identity.pinning import connect, host_and_port, presented_chain
from site_client.check_result import CheckResult, Color, green, grey, red
from site_client.config import AggregatorAddress
from site_client.errors import ProxyRefused, Unreachable

_IP_MTU = 14  # linux/in.h
_PROXY_ADVICE = {
    401: "Set user and password in aggregator.proxy (http://user:password@host:port)",
    407: "Set user and password in aggregator.proxy (http://user:password@host:port), or run a helper for "
    "NTLM/Kerberos (px, cntlm) and name it there",
    403: "Ask IT to allow CONNECT to {address}",
    **dict.fromkeys((500, 502, 503, 504), "Ask IT whether the proxy reaches {address}"),
}


@dataclass(frozen=True)
class Handshake:
    """The presented chain (leaf first), the protocol agreed on, the TLS version."""

    chain: tuple[x509.Certificate, ...]
    alpn: str | None
    version: str
    took_s: float
    mtu_bytes: int


def explain(aggregator: AggregatorAddress, ca: x509.Certificate, now: datetime) -> str:
    """Return what is in the way to the aggregator and how to mend it, in the doctor's words; empty when nothing is.

    It may wait as long as a connection does that is not answered.
    """
    for result in chain(check_name(aggregator), check_connection(aggregator, ca, now)):
        if result.color is Color.RED:
            # A clause, unless it begins with an abbreviation.
            fix = result.fix if result.fix[1:2].isupper() else result.fix[:1].lower() + result.fix[1:]
            return f"{result.found}; {fix}"
    return ""


def check_name(aggregator: AggregatorAddress) -> Iterator[CheckResult]:
    """Check the one name that this machine has to resolve: the proxy's, or the aggregator's."""
    host = urlsplit(aggregator.proxy).hostname if aggregator.proxy else host_and_port(aggregator.address)[0]
    role = "proxy" if aggregator.proxy else "aggregator"
    try:
        addresses = {address[0] for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        yield red("dns", f"the {role}'s name {host} is not known here", f"Ask IT to resolve {host}")
        return
    yield green("dns", f"{role} {host} has {len(addresses)} address{'es' * (len(addresses) != 1)}")


def check_connection(
    aggregator: AggregatorAddress, ca: x509.Certificate | None, now: datetime
) -> Iterator[CheckResult]:
    """Check proxy, connection and TLS.

    Args:
        aggregator: Address and proxy.
        ca: The consortium's; None before this host has joined.
        now: By this machine's clock.
    """
    host, port = host_and_port(aggregator.address)
    try:
        plain = connect(host, port, aggregator.proxy)
    except ProxyRefused as error:
        advice = _PROXY_ADVICE.get(error.status, "Ask IT about this answer of the proxy").format(
            address=aggregator.address
        )
        yield red("proxy", f"the proxy answered {error.status} to CONNECT", advice)
        return
    except Unreachable:
        yield red("proxy", "the answer there is not an HTTP proxy's", "Set aggregator.proxy to an HTTP CONNECT proxy")
        return
    except OSError as error:
        target = "the proxy" if aggregator.proxy else aggregator.address
        words = f"{target} does not take a connection ({error.strerror or type(error).__name__})"
        yield red("connection", words, f"Ask IT to allow outbound TCP from here to {target}")
        return
    yield green("proxy", "CONNECT was allowed") if aggregator.proxy else green("proxy", "none set: direct")
    try:
        handshake = _handshake(plain, host)
    except (OSError, ValueError) as error:
        # TCP works and TLS does not: IT has to search at a device that understands TLS.
        yield green("connection", "TCP is open")
        words = f"no TLS there ({getattr(error, 'reason', None) or type(error).__name__})"
        yield red("tls", words, f"Check aggregator.address; ask IT whether a firewall answers for {host}")
        return
    mtu = f", path MTU {handshake.mtu_bytes}" if handshake.mtu_bytes else ""
    yield green("connection", f"TCP and TLS in {1000 * handshake.took_s:.0f} ms{mtu}")
    yield from assess_handshake(handshake, host, ca, now)


def assess_handshake(
    handshake: Handshake, host: str, ca: x509.Certificate | None, now: datetime
) -> Iterator[CheckResult]:
    """Check dates, issuer and protocol of the presented certificate."""
    leaf = handshake.chain[0]
    # Dates first: a wrong clock makes every certificate look wrong.
    if now < leaf.not_valid_before_utc:
        behind_s = (leaf.not_valid_before_utc - now).total_seconds()
        words = f"the aggregator's certificate is not valid yet by this clock: {behind_s:.0f} s to go"
        yield red("clock", words, f"Enable NTP; this clock is behind by {behind_s:.0f} s or more")
    elif now > leaf.not_valid_after_utc:
        ahead_s = (now - leaf.not_valid_after_utc).total_seconds()
        words = f"by this clock the aggregator's certificate expired {ahead_s:.0f} s ago"
        yield red("clock", words, "Enable NTP if this clock is ahead; else tell the coordinator")
    if ca is None:
        yield grey("tls", "this host has not joined, so it knows no CA to compare with", "Run hemofed-site join")
    elif not _issued_by(leaf, ca):
        common = [str(attribute.value) for attribute in leaf.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        issuer = (common[0] if common else leaf.issuer.rfc4514_string())[:80]
        yield red(
            "tls",
            f"the certificate shown here was issued by CN={issuer}, not by the consortium's CA",
            f"TLS is inspected by CN={issuer}: ask IT to bypass {host}",
            local=True,
        )
    else:
        yield green("tls", f"{handshake.version}, certificate of the consortium's CA")
    if handshake.alpn == "h2":
        yield green("http2", "HTTP/2 is agreed on")
    else:
        yield red("http2", "no HTTP/2 (ALPN) is agreed on", f"A firewall or proxy strips HTTP/2: bypass {host}")


def _handshake(plain: socket.socket, host: str) -> Handshake:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The presented certificate is the finding: a handshake that verified would fail without showing its issuer.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # read, not trusted: see the module's first lines
    context.set_alpn_protocols(["h2"])
    began_s = time.monotonic()
    with plain, context.wrap_socket(plain, server_hostname=host) as secured:
        presented = tuple(x509.load_der_x509_certificate(der) for der in presented_chain(secured))
        if not presented:
            raise ValueError("no certificate")
        took_s = time.monotonic() - began_s
        return Handshake(presented, secured.selected_alpn_protocol(), secured.version() or "TLS", took_s, _mtu(secured))


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
