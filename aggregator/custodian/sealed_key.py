"""The custodian's key in a file under a passphrase: scrypt (RFC 7914), then AES-256-GCM.

PKCS#8 of `cryptography` stretches a passphrase with a few thousand rounds of PBKDF2 only, and the file has to withstand
guessing for as long as sites trust the key.
"""

import os
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from aggregator.errors import CustodianRefused
from aggregator.secret_file import write_secret

PASSPHRASE_MIN = 12  # characters
COST_N = 2**17  # 128 MiB and about half a second a guess
COST_N_MAX = 2**20  # a file that asks for more would fill the memory
_R, _P = 8, 1
_SALT_BYTES, _NONCE_BYTES, _KEY_BYTES = 16, 12, 32
_DOMAIN = b"hemofed custodian key v1"


class SealedKey(msgspec.Struct, frozen=True, tag="hemofed custodian key 1", forbid_unknown_fields=True):
    """The file. The public key is authenticated with the sealed one."""

    public_key: bytes
    salt: bytes
    n: int  # scrypt's cost
    nonce: bytes
    sealed: bytes


def seal(path: Path, key: Ed25519PrivateKey, passphrase: str) -> None:
    """Write the key to a file of mode 0600.

    Raises:
        CustodianRefused: When the passphrase is shorter than 12 characters.
    """
    if len(passphrase) < PASSPHRASE_MIN:
        raise CustodianRefused(f"expected a passphrase of at least {PASSPHRASE_MIN} characters, got {len(passphrase)}")
    public, salt, nonce = key.public_key().public_bytes_raw(), os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    sealed = AESGCM(_stretched(passphrase, salt, COST_N)).encrypt(nonce, key.private_bytes_raw(), _DOMAIN + public)
    write_secret(path, msgspec.json.encode(SealedKey(public, salt, COST_N, nonce, sealed)))


def unseal(path: Path, passphrase: str) -> Ed25519PrivateKey:
    """Read the key.

    Raises:
        CustodianRefused: When the file is damaged, or the passphrase is another one.
    """
    try:
        file = msgspec.json.decode(path.read_bytes(), type=SealedKey)
        if not 2 <= file.n <= COST_N_MAX:
            raise ValueError("cost out of range")
        stretched = _stretched(passphrase, file.salt, file.n)
        raw = AESGCM(stretched).decrypt(file.nonce, file.sealed, _DOMAIN + file.public_key)
        return Ed25519PrivateKey.from_private_bytes(raw)
    except InvalidTag:
        raise CustodianRefused(f"{path}: the passphrase is another one, or the file was altered") from None
    except (msgspec.DecodeError, ValueError):
        raise CustodianRefused(f"{path} holds no key; restore it from the backup") from None


def _stretched(passphrase: str, salt: bytes, n: int) -> bytes:
    return Scrypt(salt, _KEY_BYTES, n, _R, _P).derive(passphrase.encode())
