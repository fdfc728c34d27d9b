"""The very first connection: fetch the aggregator's certificate chain, and keep only the CA that the token names.

There is no trust on first use. The chain is read without verification, its CA is compared with the fingerprint, and
every later connection verifies against that CA. Through a proxy this file sends CONNECT itself, so that a person sees
the proxy's answer.
"""

import base64
import hashlib
import socket
import ssl
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from cryptography import x509

from site_client.errors import IdentityRefused, ProxyRefused, Unreachable

TIMEOUT_S = 20.0
_HEADERS_MAX = 64 * 1024
_DER = 2  # _ssl.ENCODING_DER


def fetch_ca(address: str, proxy: str, fingerprint: bytes) -> bytes:
    """Fetch the consortium's CA certificate.

    Args:
        address: Of the aggregator, host:port.
        proxy: http://[user:password@]host:port, or "".
        fingerprint: SHA-256 of the certificate in DER.

    Returns:
        The certificate, PEM.

    Raises:
        Unreachable: No TLS 1.3 answers there.
        IdentityRefused: The chain has no such certificate. The message names the issuer of the one that is there.
    """
    host, port = host_and_port(address)
    try:
        with connect(host, port, proxy) as plain, _context().wrap_socket(plain, server_hostname=host) as secured:
            chain = presented_chain(secured)
    except (OSError, ssl.SSLError) as error:
        raise Unreachable(
            f"{address} does not answer with TLS 1.3 ({error}); check address, firewall and proxy"
        ) from error
    # Any certificate of the chain: a server may or may not present its root.
    for der in chain:
        if hashlib.sha256(der).digest() == fingerprint:
            return ssl.DER_cert_to_PEM_cert(der).encode()
    issuer = x509.load_der_x509_certificate(chain[0]).issuer.rfc4514_string() if chain else "none"
    raise IdentityRefused(
        f"the server at {address} is not the aggregator of this token: its certificate was issued by {issuer[:120]!r}. "
        f"If that is your own TLS inspection, ask IT to bypass {host}"
    )


def connect(host: str, port: int, proxy: str) -> socket.socket:
    """Connect to host:port, through the proxy if there is one.

    Raises:
        OSError: No TCP connection.
        ProxyRefused: The proxy refused CONNECT.
        Unreachable: The proxy's answer is no HTTP.
    """
    if not proxy:
        return socket.create_connection((host, port), TIMEOUT_S)
    parts = urlsplit(proxy)
    plain = socket.create_connection((parts.hostname or "", parts.port or 0), TIMEOUT_S)  # config.py requires both
    try:
        _ask_proxy(plain, f"{host}:{port}", parts.username, parts.password)
    except BaseException:
        plain.close()
        raise
    return plain


def _ask_proxy(plain: socket.socket, target: str, user: str | None, password: str | None) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if user is not None:
        pair = f"{unquote(user)}:{unquote(password or '')}".encode()
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}")
    plain.sendall("\r\n".join([*lines, "", ""]).encode())
    status = _status(plain)
    if status != 200:
        advice = {407: "set user and password of aggregator.proxy", 403: f"ask IT to allow CONNECT to {target}"}
        raise ProxyRefused(f"the proxy answered {status}: {advice.get(status, 'ask IT about this status')}", status)


def _status(plain: socket.socket) -> int:
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = plain.recv(1)  # byte by byte: what follows the headers belongs to TLS
        if not piece or len(answer) > _HEADERS_MAX:
            raise Unreachable("the proxy closed the connection in the middle of its answer; is it an HTTP proxy?")
        answer += piece
    words = answer.split(b"\r\n", 1)[0].split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the caller compares the fingerprint; nothing else is read or sent here
    context.set_alpn_protocols(["h2"])
    return context


def presented_chain(secured: ssl.SSLSocket) -> list[bytes]:
    """Return the presented chain, leaf first, DER."""
    if hasattr(secured, "get_unverified_chain"):  # public from Python 3.13 on
        return [bytes(der) for der in secured.get_unverified_chain()]
    # Before 3.13 the same method is at the inner object, which has no type hints.
    inner = cast(Any, secured)._sslobj
    return [certificate.public_bytes(_DER) for certificate in inner.get_unverified_chain() or ()]


def host_and_port(address: str) -> tuple[str, int]:
    """Split host:port, whose form config.py has checked."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
