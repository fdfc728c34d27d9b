"""Encryption to the holder of an X-Wing key: HPKE in base mode (RFC 9180), one message a key encapsulation.

    KEM   MLKEM768-X25519 (X-Wing, draft-connolly-cfrg-xwing-kem; 0x647a)
    KDF   HKDF-SHA256 (0x0001)
    AEAD  AES-256-GCM (0x0002)

A ciphertext is enc (1120 bytes) || AES-256-GCM of the message. Breaking X25519 alone, or ML-KEM alone, gives nothing.
`tests/contract/hpke_reference.py` is a second implementation.
"""

from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from federation.errors import SealRefused

_MLKEM_SEED_BYTES, _X25519_BYTES, _MLKEM_PUBLIC_BYTES = 64, 32, 1184
SEALING_KEY_BYTES: Final = _MLKEM_PUBLIC_BYTES + _X25519_BYTES  # of the public key
OVERHEAD_BYTES: Final = 1088 + 32 + 16  # of a ciphertext: both encapsulations and the tag
_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True)
class SealingKey:
    """The two halves of an X-Wing key pair."""

    mlkem: MLKEM768PrivateKey = field(repr=False)
    x25519: X25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> "SealingKey":
        """Draws a new pair."""
        return cls(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> "SealingKey":
        """Reads 96 bytes: ML-KEM seed, then X25519 key.

        Raises:
            ValueError: Another number of bytes.
        """
        if len(raw) != _MLKEM_SEED_BYTES + _X25519_BYTES:
            raise ValueError(f"expected a sealing key of {_MLKEM_SEED_BYTES + _X25519_BYTES} bytes, got {len(raw)}")
        mlkem = MLKEM768PrivateKey.from_seed_bytes(raw[:_MLKEM_SEED_BYTES])
        return cls(mlkem, X25519PrivateKey.from_private_bytes(raw[_MLKEM_SEED_BYTES:]))

    def to_bytes(self) -> bytes:
        """Returns the 96 bytes that `from_bytes` reads."""
        return self.mlkem.private_bytes_raw() + self.x25519.private_bytes_raw()

    @property
    def public_bytes(self) -> bytes:
        """The public key, 1216 bytes, as in the roster."""
        return self.mlkem.public_key().public_bytes_raw() + self.x25519.public_key().public_bytes_raw()

    def decrypt(self, ciphertext: bytes, info: bytes) -> bytes:
        """Decrypts a ciphertext of `encrypt_to` this key with this `info`.

        Raises:
            SealRefused: It was made for another key or another `info`, or has changed.
        """
        try:
            return _SUITE.decrypt(ciphertext, MLKEM768X25519PrivateKey(self.mlkem, self.x25519), info)
        except (InvalidTag, ValueError):
            raise SealRefused("expected a key sealed to this machine for this purpose, got other bytes") from None


def encrypt_to(public_key: bytes, message: bytes, info: bytes) -> bytes:
    """Encrypts a message so that only the holder of the private key can read it.

    Args:
        public_key: X-Wing public key, 1216 bytes.
        message: A few bytes; it is encrypted in one piece.
        info: Says what the message is; the receiver has to name the same.

    Returns:
        The ciphertext, longer by `OVERHEAD_BYTES`. The same message twice gives different bytes.

    Raises:
        SealRefused: It is no public key.
    """
    try:
        mlkem = MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC_BYTES])
        x25519 = X25519PublicKey.from_public_bytes(public_key[_MLKEM_PUBLIC_BYTES:])
        return _SUITE.encrypt(message, MLKEM768X25519PublicKey(mlkem, x25519), info)
    except ValueError:
        raise SealRefused(f"expected an X-Wing public key of {SEALING_KEY_BYTES} bytes, got other bytes") from None
