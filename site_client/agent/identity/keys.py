"""The three keys of a site, all made on this host. None of them ever leaves it.

tls      P-256, authenticates the connection; a new one with every certificate
signing  Ed25519, speaks for the site in the roster: secure aggregation, join, recovery
sealing  X-Wing (ML-KEM-768 with X25519), receives what is encrypted to this site: HPKE with KEM MLKEM768_X25519
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from federation.hpke import SealingKey

from site_client.errors import IdentityRefused
from site_client.files import replace_file

_JOIN_DOMAIN, _RECOVER_DOMAIN = b"hemofed join v1\x00", b"hemofed recover v1\x00"


@dataclass(frozen=True)
class SiteKeys:
    """The two long-lived keys."""

    signing: Ed25519PrivateKey = field(repr=False)
    sealing: SealingKey = field(repr=False)

    @property
    def signing_public(self) -> bytes:
        """The public signing key, 32 bytes, as in the roster."""
        return self.signing.public_key().public_bytes_raw()


@dataclass(frozen=True)
class Request:
    """A fresh TLS key and the PKCS#10 request for it."""

    key_pem: bytes = field(repr=False)
    csr_der: bytes


def make_or_load(folder: Path) -> SiteKeys:
    """Load the keys in `folder`, and make those that are missing, with mode 0600."""
    signing, sealing = folder / "signing.key", folder / "sealing.key"
    # Never replaced: the roster and the ledger know this key.
    if not signing.exists():
        replace_file(signing, Ed25519PrivateKey.generate().private_bytes_raw())
    if not sealing.exists():
        replace_file(sealing, SealingKey.generate().to_bytes())
    return load(folder)


def load(folder: Path) -> SiteKeys:
    """Load the keys in `folder`.

    Raises:
        IdentityRefused: A key is missing or damaged.
    """
    try:
        signing = Ed25519PrivateKey.from_private_bytes((folder / "signing.key").read_bytes())
        return SiteKeys(signing, SealingKey.from_bytes((folder / "sealing.key").read_bytes()))
    except (OSError, ValueError) as error:
        raise IdentityRefused(
            "signing.key or sealing.key in the state folder is missing or damaged; put the identity folder of the last "
            "backup back, or move it away, ask the coordinator for an invitation and run `hemofed-site join`"
        ) from error


def request_certificate(site: str) -> Request:
    """Draw a new P-256 key, and request a certificate in this name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Request(pem, csr.public_bytes(serialization.Encoding.DER))


def prove_possession(keys: SiteKeys, csr_der: bytes) -> bytes:
    """Sign a join request: the signing key speaks for the TLS key and the sealing key."""
    # Both keys in one signature: neither can be swapped for another key on the way.
    digests = hashlib.sha256(csr_der).digest() + hashlib.sha256(keys.sealing.public_bytes).digest()
    return keys.signing.sign(_JOIN_DOMAIN + digests)


def answer_challenge(keys: SiteKeys, nonce: bytes, csr_der: bytes) -> bytes:
    """Sign a recover request."""
    return keys.signing.sign(_RECOVER_DOMAIN + nonce + hashlib.sha256(csr_der).digest())
