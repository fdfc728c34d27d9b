"""HPKE's base mode over X-Wing, written out from RFC 9180 and draft-connolly-cfrg-xwing-kem: the receiver's half.

It shares no code with `federation.hpke` but the curve and AES: ML-KEM is `mlkem_reference`, HKDF is HMAC.
"""

import hmac
from hashlib import sha3_256

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.contract.mlkem_reference import decapsulate, key_pair

KEM_ID, KDF_ID, AEAD_ID = 0x647A, 0x0001, 0x0002
XWING_LABEL = bytes.fromhex("5c2e2f2f5e5c")
SUITE = b"HPKE" + KEM_ID.to_bytes(2) + KDF_ID.to_bytes(2) + AEAD_ID.to_bytes(2)
MLKEM_CIPHERTEXT_BYTES, X25519_BYTES = 1088, 32


def xwing_decapsulate(mlkem_seed: bytes, x25519_key: bytes, encapsulated: bytes) -> bytes:
    """The combiner: SHA3-256(ss_M || ss_X || ct_X || pk_X || label)."""
    _, decapsulation_key = key_pair(mlkem_seed)
    ct_m, ct_x = encapsulated[:MLKEM_CIPHERTEXT_BYTES], encapsulated[MLKEM_CIPHERTEXT_BYTES:]
    own = X25519PrivateKey.from_private_bytes(x25519_key)
    ss_x = own.exchange(X25519PublicKey.from_public_bytes(ct_x))
    pk_x = own.public_key().public_bytes_raw()
    return sha3_256(decapsulate(decapsulation_key, ct_m) + ss_x + ct_x + pk_x + XWING_LABEL).digest()


def labeled_extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + SUITE + label + ikm, "sha256")


def labeled_expand(prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labeled, block, output, number = length.to_bytes(2) + b"HPKE-v1" + SUITE + label + info, b"", b"", 1
    while len(output) < length:
        block = hmac.digest(prk, block + labeled + bytes([number]), "sha256")
        output, number = output + block, number + 1
    return output[:length]


def decrypt(mlkem_seed: bytes, x25519_key: bytes, ciphertext: bytes, info: bytes) -> bytes:
    """The first and only message of a context of base mode."""
    split = MLKEM_CIPHERTEXT_BYTES + X25519_BYTES
    shared = xwing_decapsulate(mlkem_seed, x25519_key, ciphertext[:split])
    context = b"\x00" + labeled_extract(b"", b"psk_id_hash", b"") + labeled_extract(b"", b"info_hash", info)
    secret = labeled_extract(shared, b"secret", b"")
    key, nonce = labeled_expand(secret, b"key", context, 32), labeled_expand(secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, ciphertext[split:], b"")
