"""The consortium's certificate authority: its key in one folder, and the certificates that it signs.

    ca.key, ca.pem  P-256; signs every certificate below. Its fingerprint stands in each invitation.
    custodian.pem   Ed25519; certifies the key that signs rosters and plans. The key itself is with `hemofed-custodian`.
    server.pem      P-256 key and certificate chain of both listeners, renewed before they run out.

A site certificate is for clients only and always P-256, so none can pose as the server or as the custodian. It is a
pure function of CA, name, request and dates: an enrolment call repeated after a lost answer gets the same bytes.
Keys are 0600 and written atomically; nothing here is ever logged.
"""

import hashlib
import ipaddress
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aggregator.errors import JoinDenied, StateFolderRefused
from aggregator.secret_file import write_secret

# HOSPITAL rule: a clock five minutes off still works; the sixth is for the handshake itself.
BACKDATED = timedelta(minutes=6)
AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=90)
CSR_LIMIT_BYTES = 8192
ALWAYS_SERVED = ("localhost", "127.0.0.1", "::1")

_CERTIFICATE_BEGINS = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True)
class ServerIdentity:
    """The key and the certificate chain of a TLS listener."""

    key_pem: bytes = field(repr=False)
    certificate_pem: bytes


@dataclass(frozen=True)
class SiteCertificate:
    """A certificate issued to a site."""

    pem: bytes
    fingerprint: bytes  # SHA-256 of the DER
    issued_at: datetime
    expires_at: datetime


class Authority:
    """The CA of one folder. Thread-safe."""

    def __init__(self, folder: Path, clock: Callable[[], datetime]) -> None:
        """Read the keys.

        Args:
            folder: As `create_authority` made it.
            clock: Aware UTC.

        Raises:
            StateFolderRefused: When a file is missing or unreadable.
        """
        self._folder = folder
        self._clock = clock
        self._server_lock = threading.Lock()
        try:
            self._key = _read_p256(folder / "ca.key")
            self.certificate_pem = (folder / "ca.pem").read_bytes()
            self._certificate = x509.load_pem_x509_certificate(self.certificate_pem)
            self.custodian_certificate_pem = (folder / "custodian.pem").read_bytes()
            self.custodian = _certified_custodian(self.custodian_certificate_pem)
        except (OSError, ValueError) as error:
            raise StateFolderRefused(f"no usable CA in {folder} ({error}); run `hemofed-aggregator init`") from None

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the CA certificate's DER, 32 bytes; each invitation pins it."""
        return self._certificate.fingerprint(hashes.SHA256())

    @property
    def challenge_key(self) -> bytes:
        """A secret of 32 bytes that every aggregator with this CA has; no signature is made with it."""
        scalar = self._key.private_numbers().private_value.to_bytes(32)
        return HKDF(hashes.SHA256(), 32, salt=None, info=b"hemofed challenge key v1").derive(scalar)

    def issue_site_certificate(
        self, site: str, csr_der: bytes, issued_at: datetime, expires_at: datetime
    ) -> SiteCertificate:
        """Certify a site's key. The same arguments give the same bytes.

        Args:
            site: The name in the certificate.
            csr_der: PKCS#10 in DER; only its key is taken.
            issued_at: Aware UTC.
            expires_at: Aware UTC.

        Raises:
            JoinDenied: When the request is malformed, not signed by its own key, or not P-256.
        """
        issued_at, expires_at = issued_at.replace(microsecond=0), expires_at.replace(microsecond=0)
        # Derived and not drawn: a call that is repeated after a lost answer gets the same certificate.
        serial = hashlib.sha256(b"hemofed serial\0" + csr_der + issued_at.isoformat().encode()).digest()[:16]
        # The name is the one that the token was bound to, whatever the request calls itself.
        builder = _builder(site, read_csr(csr_der), issued_at - BACKDATED, expires_at)
        builder = builder.serial_number(int.from_bytes(serial) | 1)  # never 0: RFC 5280, section 4.1.2.2
        certificate = self._sign(builder, ExtendedKeyUsageOID.CLIENT_AUTH)
        return SiteCertificate(
            certificate.public_bytes(serialization.Encoding.PEM),
            certificate.fingerprint(hashes.SHA256()),
            issued_at,
            expires_at,
        )

    def server_identity(self, host_names: Sequence[str]) -> ServerIdentity:
        """Return the listeners' identity for `host_names`, localhost and loopback; cheap enough for every handshake.

        A new pair is made when there is none, when two thirds of its life are over, or when it lacks one of the names.
        The chain ends with the CA certificate, which a joining host compares with the fingerprint in its token.
        """
        names = [_host_name(name) for name in dict.fromkeys((*ALWAYS_SERVED, *host_names))]
        path = self._folder / "server.pem"  # one file: no crash can pair a key with another's certificate
        with self._server_lock:
            # One handshake makes the pair; the others of that moment wait for it.
            if not path.exists() or not self._serves(path.read_bytes(), names):
                write_secret(path, self._make_server(names))
            key_pem, begins, chain = path.read_bytes().partition(_CERTIFICATE_BEGINS)
        return ServerIdentity(key_pem, begins + chain)

    def _serves(self, server_pem: bytes, names: Sequence[x509.GeneralName]) -> bool:
        certificate = x509.load_pem_x509_certificate(server_pem)
        certified = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        renew_at = certificate.not_valid_before_utc + SERVER_LIFE * 2 / 3
        return set(names) <= set(certified) and self._clock() < renew_at

    def _make_server(self, names: Sequence[x509.GeneralName]) -> bytes:
        key, now = ec.generate_private_key(ec.SECP256R1()), self._clock()
        builder = _builder("hemofed aggregator", key.public_key(), now - BACKDATED, now + SERVER_LIFE)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = self._sign(builder, ExtendedKeyUsageOID.SERVER_AUTH)
        return _key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM) + self.certificate_pem

    def _sign(self, builder: x509.CertificateBuilder, usage: x509.ObjectIdentifier) -> x509.Certificate:
        builder = builder.issuer_name(self._certificate.subject)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(_authority_key_id(self._key.public_key()), critical=False)
        # RFC 6979: no random number in the signature, so the same certificate has the same bytes.
        return builder.sign(self._key, hashes.SHA256(), ecdsa_deterministic=True)


def create_authority(folder: Path, clock: Callable[[], datetime], custodian: Ed25519PublicKey) -> Authority:
    """Make the CA in `folder` (0700), and certify the custodian's key.

    Raises:
        StateFolderRefused: When a CA is there already; a new one would lock every site out.
    """
    if (folder / "ca.key").exists():
        raise StateFolderRefused(f"{folder} already holds a CA; a new one would lock out every site that joined")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = clock()
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certify_ca(ca_key, now)
    write_secret(folder / "custodian.pem", _certify_custodian(custodian, ca, ca_key, now))
    write_secret(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
    write_secret(folder / "ca.key", _key_pem(ca_key))  # last: its presence says that the rest is there
    return Authority(folder, clock)


def read_csr(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    """Return the P-256 key of a certificate request that its own key signed.

    Raises:
        JoinDenied: Naming the mistake in the request.
    """
    # Before parsing: the caller is not authenticated.
    if len(csr_der) > CSR_LIMIT_BYTES:
        raise JoinDenied(f"expected a certificate request of at most {CSR_LIMIT_BYTES} bytes, got {len(csr_der)}")
    try:
        request = x509.load_der_x509_csr(csr_der)
        signed, key = request.is_signature_valid, request.public_key()
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise JoinDenied("expected a PKCS#10 certificate request in DER, got something else") from None
    if not signed:
        raise JoinDenied("the certificate request is not signed by the key it carries")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise JoinDenied("expected a certificate request for a P-256 key, got another kind")
    return key


def _certify_ca(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hemofed consortium CA")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.not_valid_before(now - BACKDATED).not_valid_after(now + AUTHORITY_LIFE)
    builder = builder.serial_number(x509.random_serial_number())
    # path_length 0: it certifies sites and servers, and no further authority.
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(certifies=True), critical=True)
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(key_id, critical=False).sign(key, hashes.SHA256())


def _certify_custodian(
    key: Ed25519PublicKey, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, now: datetime
) -> bytes:
    # No extended key usage: it authenticates no connection. Its Ed25519 key tells it from every site certificate.
    builder = _builder("hemofed custodian", key, now - BACKDATED, now + AUTHORITY_LIFE)
    builder = builder.issuer_name(ca.subject).serial_number(x509.random_serial_number())
    builder = builder.add_extension(_authority_key_id(ca_key.public_key()), critical=False)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    common_name: str, key: ec.EllipticCurvePublicKey | Ed25519PublicKey, valid_from: datetime, valid_to: datetime
) -> x509.CertificateBuilder:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateBuilder().subject_name(name).public_key(key)
    builder = builder.not_valid_before(valid_from).not_valid_after(valid_to)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return builder.add_extension(_key_usage(certifies=False), critical=True)


def _key_usage(*, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certifies,
        key_cert_sign=certifies,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_id(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _host_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read_p256(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path.name} holds no P-256 key")
    return key


def _certified_custodian(pem: bytes) -> Ed25519PublicKey:
    key = x509.load_pem_x509_certificate(pem).public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("custodian.pem certifies no Ed25519 key")
    return key
