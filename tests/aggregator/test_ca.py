"""The CA: what it signs, for whom, for how long, and that real TLS accepts it."""

import socket
import ssl
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from aggregator.errors import JoinDenied, StateFolderRefused
from aggregator.sites.authority import Authority, SiteCertificate, create_authority, read_csr
from tests.aggregator.conftest import Host, StandingClock
from tests.custodian import CUSTODIAN


def issue(authority: Authority, host: Host, clock: Callable[[], datetime], days: int = 30) -> SiteCertificate:
    return authority.issue_site_certificate("st-mary", host.csr(), clock(), clock() + timedelta(days=days))


def chain_of(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def test_every_file_is_for_its_owner_only(authority: Authority, tmp_path: Path) -> None:
    authority.server_identity(())
    folder = tmp_path / "ca"
    assert {path.name for path in folder.iterdir()} == {
        "ca.key",
        "ca.pem",
        "custodian.pem",
        "server.pem",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_second_ca_in_the_same_folder_is_refused(authority: Authority, tmp_path: Path, clock: StandingClock) -> None:
    with pytest.raises(StateFolderRefused, match="already holds a CA"):
        create_authority(tmp_path / "ca", clock, CUSTODIAN.public_key())
    assert Authority(tmp_path / "ca", clock).fingerprint == authority.fingerprint


def test_a_folder_without_or_with_a_broken_ca_is_refused(
    authority: Authority, tmp_path: Path, clock: StandingClock
) -> None:
    with pytest.raises(StateFolderRefused, match="init"):
        Authority(tmp_path / "nothing", clock)
    (tmp_path / "ca" / "custodian.pem").write_bytes((tmp_path / "ca" / "ca.pem").read_bytes())
    with pytest.raises(StateFolderRefused, match="Ed25519"):
        Authority(tmp_path / "ca", clock)


def test_the_fingerprint_is_the_sha256_of_the_certificates_der(authority: Authority) -> None:
    der = ssl.PEM_cert_to_DER_cert(authority.certificate_pem.decode())
    assert authority.fingerprint == sha256(der).digest()


def test_a_site_certificate_names_the_site_and_not_what_the_request_said(
    authority: Authority, host: Host, clock: StandingClock
) -> None:
    [certificate] = chain_of(issue(authority, host, clock).pem)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["st-mary"]
    assert certificate.public_key() == host.tls_key.public_key()
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_site_certificate_lives_for_its_days_and_began_before_a_slow_clock(
    authority: Authority, host: Host, clock: StandingClock
) -> None:
    issued = issue(authority, host, clock, days=30)
    [certificate] = chain_of(issued.pem)
    assert certificate.not_valid_after_utc == clock() + timedelta(days=30) == issued.expires_at
    five_minutes_slow = clock() - timedelta(minutes=5)
    assert certificate.not_valid_before_utc < five_minutes_slow


@pytest.mark.parametrize("minutes", [-5, 0, 5])
def test_a_verifier_whose_clock_is_five_minutes_off_accepts_every_certificate(
    authority: Authority, host: Host, clock: StandingClock, minutes: int
) -> None:
    at = clock() + timedelta(minutes=minutes)
    server = authority.server_identity(["hub.example.org"]).certificate_pem
    for pem in (issue(authority, host, clock).pem, authority.custodian_certificate_pem, server):
        for certificate in chain_of(pem):
            assert certificate.not_valid_before_utc < at < certificate.not_valid_after_utc
    verifier = PolicyBuilder().store(Store(chain_of(authority.certificate_pem))).time(at)
    verifier.build_server_verifier(x509.DNSName("hub.example.org")).verify(chain_of(server)[0], [])


def test_the_same_request_at_the_same_time_gives_the_same_bytes(
    authority: Authority, host: Host, other_host: Host, clock: StandingClock
) -> None:
    assert issue(authority, host, clock) == issue(authority, host, clock)
    first = chain_of(issue(authority, host, clock).pem)[0]
    assert first.serial_number != chain_of(issue(authority, other_host, clock).pem)[0].serial_number
    clock.advance(seconds=1)
    assert first.serial_number != chain_of(issue(authority, host, clock).pem)[0].serial_number


def test_the_custodian_is_an_ed25519_key_certified_by_the_ca(authority: Authority) -> None:
    [custodian] = chain_of(authority.custodian_certificate_pem)
    [root] = chain_of(authority.certificate_pem)
    custodian.verify_directly_issued_by(root)
    assert custodian.public_key() == authority.custodian == CUSTODIAN.public_key()
    assert not custodian.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def csr_with(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def test_a_request_that_is_none_or_for_another_kind_of_key_is_refused(host: Host) -> None:
    good = host.csr()
    forged = good[:-1] + bytes([good[-1] ^ 1])
    for bad in (b"", b"garbage", good[:-5], forged, bytes(10_000)):
        with pytest.raises(JoinDenied):
            read_csr(bad)
    for key in (Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(JoinDenied, match="P-256"):
            read_csr(csr_with(key))


def test_the_server_certificate_is_kept_until_two_thirds_of_its_life_or_another_name(
    authority: Authority, tmp_path: Path, clock: StandingClock
) -> None:
    first = authority.server_identity(["hub.example.org"])
    clock.advance(days=59)
    assert authority.server_identity(["hub.example.org"]) == first
    assert Authority(tmp_path / "ca", clock).server_identity(()) == first
    named = authority.server_identity(["hub.example.org", "10.1.2.3"])
    assert named.certificate_pem != first.certificate_pem
    clock.advance(days=61)
    renewed = authority.server_identity(["hub.example.org", "10.1.2.3"])
    assert renewed.certificate_pem != named.certificate_pem
    assert chain_of(renewed.certificate_pem)[0].not_valid_after_utc > clock() + timedelta(days=89)


def test_the_server_key_does_not_show(authority: Authority) -> None:
    identity = authority.server_identity(())
    assert b"PRIVATE" in identity.key_pem
    assert "PRIVATE" not in repr(identity)


def test_real_tls_with_both_certificates_and_the_ca_in_the_chain(tmp_path: Path, host: Host) -> None:
    """Loopback, Python's own ssl on both ends; the real clock, for OpenSSL asks no other."""

    def clock() -> datetime:
        return datetime.now(UTC)

    authority = create_authority(tmp_path / "real", clock, CUSTODIAN.public_key())
    issued = issue(authority, host, clock)
    server, client = _contexts(tmp_path, authority, issued.pem, host)
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def answer() -> None:
        accepted, _ = listener.accept()
        with server.wrap_socket(accepted, server_side=True) as connection:
            peer = connection.getpeercert(binary_form=True)
            # The context demands a client certificate.
            assert peer is not None
            seen.append(peer)
            connection.sendall(str(connection.version()).encode())

    thread = threading.Thread(target=answer)
    thread.start()
    with (
        socket.create_connection(listener.getsockname(), timeout=10) as raw,
        client.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        assert connection.recv(16) == b"TLSv1.3"
    thread.join()
    listener.close()
    assert sha256(seen[0]).digest() == issued.fingerprint


def _contexts(folder: Path, authority: Authority, site_pem: bytes, host: Host) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    identity = authority.server_identity(())
    (folder / "server.pem").write_bytes(identity.key_pem + identity.certificate_pem)
    key = host.tls_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "site.pem").write_bytes(key + site_pem)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority.certificate_pem.decode())
    server.load_cert_chain(folder / "server.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    client.load_cert_chain(folder / "site.pem")
    return server, client
