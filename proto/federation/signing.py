"""The custodian's signature over exact bytes, with a domain so that one kind of document cannot pass as another."""

from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.errors import BadSignature


class Signer(Protocol):
    """An Ed25519 private key: `Ed25519PrivateKey`, or a key that a hardware token keeps."""

    def sign(self, data: bytes, /) -> bytes:
        """Signs with Ed25519 (RFC 8032): 64 bytes."""


def sign(key: Signer, domain: str, data: bytes) -> bytes:
    """Signs domain || 0x00 || data with Ed25519 (RFC 8032): 64 bytes."""
    return key.sign(_signed(domain, data))


def verify(key: Ed25519PublicKey, domain: str, data: bytes, signature: bytes) -> None:
    """Checks a signature of `sign`, 64 bytes.

    Raises:
        BadSignature: The key did not sign these bytes in this domain.
    """
    try:
        key.verify(signature, _signed(domain, data))
    except InvalidSignature as error:
        raise BadSignature(f"expected {domain!r} bytes signed by the expected key, got another signature") from error


def _signed(domain: str, data: bytes) -> bytes:
    return domain.encode() + b"\x00" + data
