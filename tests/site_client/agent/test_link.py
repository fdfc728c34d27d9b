"""The wire over real TLS on loopback: who is believed, through which proxy, and what a person is told when it fails."""

import base64
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from site_client.agent.identity.pinning import fetch_ca
from site_client.agent.link import Endpoint, Link  # before grpc: it sets the cipher suites
from tests.site_client.agent.conftest import Consortium

import grpc  # isort: skip

from site_client.agent.egress.egress import Cleared
from site_client.agent.identity.identity import SiteIdentity
from site_client.errors import ConfigRefused, EgressRefused, IdentityRefused, Refused, Unreachable

ECHO, REFUSE, PUT, GET = "/test.Echo/Say", "/test.Echo/Refuse", "/test.Echo/Put", "/test.Echo/Get"


class Echo(grpc.GenericRpcHandler):
    """Answers with what came, or who called."""

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        return {
            ECHO: grpc.unary_unary_rpc_method_handler(lambda data, context: data + self._caller(context)),
            REFUSE: grpc.unary_unary_rpc_method_handler(self._refuse),
            PUT: grpc.stream_unary_rpc_method_handler(lambda chunks, context: b"".join(chunks)),
            GET: grpc.unary_stream_rpc_method_handler(lambda data, context: iter([data, data, data])),
        }.get(details.method)

    @staticmethod
    def _caller(context: grpc.ServicerContext) -> bytes:
        (name,) = context.auth_context().get("x509_common_name", [b"nobody"])
        # gRPC gives the names in a certificate as bytes.
        assert isinstance(name, bytes)
        return b" from " + name

    @staticmethod
    def _refuse(data: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "site 'mercy' was revoked; contact the coordinator")


def serve(consortium: Consortium, *, mutual: bool = True, **dates: float) -> tuple[grpc.Server, str]:
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Echo()])
    pair = consortium.server_pair(**dates)
    credentials = grpc.ssl_server_credentials([pair], consortium.ca_pem if mutual else None, mutual)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture
def app(consortium: Consortium) -> Iterator[str]:
    server, address = serve(consortium)
    yield address
    server.stop(0).wait()


@dataclass
class Proxy:
    """An HTTP CONNECT proxy on loopback that keeps what it was asked, and counts what went through."""

    wants: str = ""  # user:password
    asked: list[bytes] = field(default_factory=list)
    bytes_up: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which would serve one more caller
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            piece = client.recv(4096)
            if not piece:
                return
            request += piece
        self.asked.append(request)
        token = base64.b64encode(self.wants.encode())
        if self.wants and token not in request:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            client.close()
            return
        host, port = request.split()[1].decode().rsplit(":", 1)
        upstream = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=self._pump, args=(upstream, client, False), daemon=True).start()
        self._pump(client, upstream, True)

    def _pump(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(65_536):
                self.bytes_up += len(data) if up else 0
                target.sendall(data)
        except OSError:
            pass  # the other end went away, which is what ends a tunnel
        for end in (source, target):
            end.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


@pytest.fixture
def dial(identity: SiteIdentity) -> Iterator[Callable[..., Link]]:
    links: list[Link] = []

    def make(address: str, **changes: Any) -> Link:
        plain: dict[str, Any] = {"ca_pem": identity.ca_pem, "key_pem": identity.tls_key_pem, "stall_s": 5.0}
        endpoint = Endpoint(address, **(plain | {"certificate_pem": identity.certificate_pem} | changes))
        links.append(Link(endpoint))
        return links[-1]

    yield make
    for link in links:
        link.close()


def test_calls_go_both_ways_and_the_other_end_knows_who_calls(app: str, dial: Callable[..., Link]) -> None:
    link = dial(app)
    assert link.unary(ECHO, Cleared(b"hello")) == b"hello from mercy"
    assert link.put(PUT, iter([Cleared(b"a"), Cleared(b"b")])) == b"ab"
    assert list(link.get(GET, Cleared(b"x"))) == [b"x"] * 3
    assert link.peer == app


def test_a_refusal_is_told_with_the_aggregator_s_own_words(app: str, dial: Callable[..., Link]) -> None:
    with pytest.raises(Refused, match="contact the coordinator") as refusal:
        dial(app).unary(REFUSE, Cleared(b""))
    assert refusal.value.code == "PERMISSION_DENIED"


def test_nobody_else_s_server_is_believed(dial: Callable[..., Link], consortium: Consortium) -> None:
    impostor = type(consortium)(name="impostor CA")
    server, address = serve(impostor, mutual=False)
    with pytest.raises(Unreachable):
        dial(address).unary(ECHO, Cleared(b"secret"))
    server.stop(0).wait()


def test_without_a_certificate_nobody_gets_in(app: str, dial: Callable[..., Link]) -> None:
    with pytest.raises(Unreachable):
        dial(app, key_pem=None, certificate_pem=None).unary(ECHO, Cleared(b""))


DIAL = """
import sys, pathlib
from site_client.agent.link import Endpoint, Link
from site_client.agent.egress.egress import Cleared
from site_client.agent.identity.identity import SiteIdentity
from site_client.errors import Unreachable
identity = SiteIdentity(pathlib.Path(sys.argv[2]))
link = Link(Endpoint(sys.argv[1], identity.ca_pem, identity.tls_key_pem, identity.certificate_pem, stall_s=3.0))
try:
    link.unary("/test.Echo/Say", Cleared(b""))
except Unreachable:
    sys.exit(7)
"""


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_an_agent_speaks_tls_1_3_and_not_1_2(
    newest: ssl.TLSVersion, identity: SiteIdentity, consortium: Consortium, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    context.set_alpn_protocols(["h2"])
    (tmp_path / "server.pem").write_bytes(b"".join(consortium.server_pair()))
    context.load_cert_chain(tmp_path / "server.pem")
    said: list[str] = []

    def answer() -> None:
        client, _ = listener.accept()
        try:
            with context.wrap_socket(client, server_side=True) as secured:
                said.append(str(secured.version()))
        except ssl.SSLError as error:
            said.append(error.reason)
        client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer)
        server.start()
        words = [f"127.0.0.1:{listener.getsockname()[1]}", str(tmp_path / "state" / "agent" / "identity")]
        # A process of its own: grpc reads the cipher suites once, and another test may have started it before.
        assert subprocess.run([sys.executable, "-c", DIAL, *words], check=False).returncode == 7
        server.join()
    assert said == (["TLSv1.3"] if newest is ssl.TLSVersion.TLSv1_3 else ["NO_SHARED_CIPHER"])


def test_a_refusal_of_the_guard_in_mid_stream_comes_back_as_itself(app: str, dial: Callable[..., Link]) -> None:
    def chunks() -> Iterator[Cleared]:
        yield Cleared(b"a")
        raise EgressRefused("no part of the upload")

    with pytest.raises(EgressRefused):
        dial(app).put(PUT, chunks())


def test_a_new_certificate_is_used_after_reconnecting(
    app: str, dial: Callable[..., Link], consortium: Consortium, tmp_path: Path
) -> None:
    link = dial(app)
    assert link.unary(ECHO, Cleared(b"")) == b" from mercy"
    other = consortium.enrol(tmp_path / "other", "north")
    link.reconnect(
        Endpoint(app, other.ca_pem, key_pem=other.tls_key_pem, certificate_pem=other.certificate_pem, stall_s=5.0)
    )
    assert link.unary(ECHO, Cleared(b"")) == b" from north"


def test_everything_goes_through_the_proxy_that_is_set(app: str, dial: Callable[..., Link], proxy: Proxy) -> None:
    link = dial(app, proxy=f"http://127.0.0.1:{proxy.port}")
    assert link.unary(ECHO, Cleared(b"hello")) == b"hello from mercy"
    link.put(PUT, iter([Cleared(bytes(100_000))] * 3))
    assert proxy.asked[0].startswith(f"CONNECT {app} ".encode())
    assert 300_000 < proxy.bytes_up < 300_000 * 1.02 + 8_000  # the overhead that docs/HOSPITAL.md states


def test_a_proxy_with_a_password_gets_it(app: str, dial: Callable[..., Link], proxy: Proxy) -> None:
    proxy.wants = "site:pass word"
    link = dial(app, proxy=f"http://site:pass%20word@127.0.0.1:{proxy.port}")
    assert link.unary(ECHO, Cleared(b"hello")) == b"hello from mercy"


def test_a_proxy_that_refuses_is_named_and_nothing_goes_around_it(
    app: str, dial: Callable[..., Link], proxy: Proxy
) -> None:
    proxy.wants = "site:secret"
    with pytest.raises(Unreachable, match="through the proxy"):
        dial(app, proxy=f"http://127.0.0.1:{proxy.port}").unary(ECHO, Cleared(b"hello"))
    assert proxy.asked
    assert proxy.bytes_up == 0


def test_with_a_dead_proxy_nothing_is_dialled_directly(
    app: str, dial: Callable[..., Link], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("no_grpc_proxy", "127.0.0.1")
    proxy.close()
    with pytest.raises(Unreachable):
        dial(app, proxy=f"http://127.0.0.1:{proxy.port}", stall_s=2.0).unary(ECHO, Cleared(b"hello"))


def test_a_proxy_in_the_environment_is_not_asked(
    app: str, dial: Callable[..., Link], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "grpc_proxy", "http_proxy"):
        monkeypatch.setitem(os.environ, name, f"http://127.0.0.1:{proxy.port}")
    assert dial(app).unary(ECHO, Cleared(b"hello")) == b"hello from mercy"
    assert proxy.asked == []


def test_an_https_proxy_is_refused_because_grpc_would_go_around_it(app: str, dial: Callable[..., Link]) -> None:
    with pytest.raises(ConfigRefused, match="http://"):
        dial(app, proxy="https://127.0.0.1:3128")


# The first connection of all.


def test_the_ca_of_the_token_is_found_directly_and_through_a_proxy(
    app: str, consortium: Consortium, proxy: Proxy
) -> None:
    assert fetch_ca(app, "", consortium.fingerprint).split() == consortium.ca_pem.split()
    fetch_ca(app, f"http://127.0.0.1:{proxy.port}", consortium.fingerprint)
    assert len(proxy.asked) == 1


def test_tls_inspection_is_named_by_its_issuer(consortium: Consortium) -> None:
    inspector = type(consortium)(name="Hospital Web Filter CA")
    server, address = serve(inspector, mutual=False)
    with pytest.raises(IdentityRefused, match="CN=Hospital Web Filter CA"):
        fetch_ca(address, "", consortium.fingerprint)
    server.stop(0).wait()


def test_a_proxy_that_wants_a_password_is_said_at_the_first_contact(
    app: str, consortium: Consortium, proxy: Proxy
) -> None:
    proxy.wants = "site:secret"
    with pytest.raises(Unreachable, match="407: set user and password"):
        fetch_ca(app, f"http://127.0.0.1:{proxy.port}", consortium.fingerprint)
    fetch_ca(app, f"http://site:secret@127.0.0.1:{proxy.port}", consortium.fingerprint)
