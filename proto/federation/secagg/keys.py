"""Every call into a primitive except the mask keystream: X25519, HKDF-SHA256, AES-256-GCM, Ed25519.

    shares:  AES-256-GCM under HKDF(X25519(share keys), share label), AAD = the same label
    masks:   HKDF(X25519(mask keys), pair label)   and   HKDF(b, self label)

All primitives are `cryptography`'s. RFC 7748 (X25519, with its all-zero check), RFC 5869, NIST SP 800-38D, RFC 8032.
"""

from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.secagg import shamir
from federation.secagg.errors import AdvertisementRefused, MalformedValue, ShareRefused
from federation.secagg.secret import MaskSecret, PolynomialSecret, Secret, Seed, ShareSecret, StreamKey
from federation.secagg.transcript import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    CohortContext,
    ShareKind,
    pair_label,
    polynomial_label,
    self_label,
    share_label,
)

_CURVE_PRIME = (1 << 255) - 19
# Coordinates of the points of order 1, 2, 4 and 8 on the curve and its twist. The exchange refuses them too (all-zero
# result); here they are refused before a share is dealt.
_SMALL_ORDER = frozenset(
    (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _CURVE_PRIME - 1,
    )
)
_TAG_BYTES = 16
CIPHERTEXT_BYTES = 2 * shamir.ELEMENT_BYTES + _TAG_BYTES
# One key encrypts one message (share_label names the cohort, the sender and the receiver), so a fixed nonce is safe;
# and the message is a function of the member's state, so even a repeated call repeats the same ciphertext.
_NONCE = bytes(12)


def public_key(secret: MaskSecret | ShareSecret) -> bytes:
    """The raw X25519 public key of a private key."""
    return _private(secret).public_key().public_bytes_raw()


def check_public_key(site: str, key: bytes) -> None:
    """Refuses non-canonical encodings of a coordinate, and points of small order.

    With two encodings of one key the duplicate check would miss it. With a point of small order the agreed key is known
    to everybody, whatever the peer's secret.

    Raises:
        AdvertisementRefused: The key is one of these.
    """
    coordinate = int.from_bytes(key, "little")
    if len(key) != KEY_BYTES or coordinate >= _CURVE_PRIME or coordinate in _SMALL_ORDER:
        raise AdvertisementRefused(site, "a mask or share key is not a canonical X25519 key of large order")


def seal_shares(
    secret: ShareSecret, peer_key: bytes, uctx: CohortContext, sender: str, receiver: str, shares: tuple[bytes, bytes]
) -> bytes:
    """Ciphertext (82 bytes) of sender's (seed share, mask-key share) for receiver."""
    key, label = _share_key(secret, peer_key, uctx, sender, receiver, peer=receiver)
    return AESGCM(key).encrypt(_NONCE, shares[0] + shares[1], label)


def decrypt_shares(
    secret: ShareSecret, peer_key: bytes, uctx: CohortContext, sender: str, receiver: str, ciphertext: bytes
) -> tuple[bytes, bytes]:
    """The two shares from sender. Refused: anything sender did not encrypt for receiver in this very cohort."""
    key, label = _share_key(secret, peer_key, uctx, sender, receiver, peer=sender)
    try:
        if len(ciphertext) != CIPHERTEXT_BYTES:
            raise InvalidTag
        plaintext = AESGCM(key).decrypt(_NONCE, ciphertext, label)
    except InvalidTag:
        raise ShareRefused(
            sender, f"its ciphertext for {receiver!r} does not decrypt; it or the wire altered it"
        ) from None
    seed_share, key_share = plaintext[: shamir.ELEMENT_BYTES], plaintext[shamir.ELEMENT_BYTES :]
    check_share(sender, seed_share)
    check_share(sender, key_share)
    return seed_share, key_share


def check_share(site: str, share: bytes) -> None:
    """Refuse a share that is not an element of the field, naming who it came from."""
    try:
        shamir.decode(share)
    except MalformedValue as error:
        raise ShareRefused(site, str(error)) from None


def pair_keys(
    secret: MaskSecret, peer_keys: Mapping[str, bytes], uctx: CohortContext, site: str
) -> dict[str, StreamKey]:
    """Key of the mask that site shares with each peer; the same from both ends.

    peer_keys: mask key by peer. One call for all of them: unpacking the private key costs as much as an exchange.
    """
    private = _private(secret)
    return {
        peer: StreamKey(_derive(_agree(private, peer, peer_key), pair_label(uctx, site, peer)))
        for peer, peer_key in peer_keys.items()
    }


def self_key(seed: Seed, uctx: CohortContext, site: str) -> StreamKey:
    """Key of the self mask. It stays on an upload that arrives late and whose pairwise masks were already recovered."""
    return StreamKey(_derive(seed.expose(), self_label(uctx, site)))


def coefficient_bytes(secret: PolynomialSecret, uctx: CohortContext, kind: ShareKind, size_bytes: int) -> bytes:
    """Randomness of one Shamir polynomial: AES-256-CTR under a key for this cohort and this kind.

    Derived, not drawn: a member that crashed deals the same polynomial again. Two polynomials over one secret in one
    cohort would not be wrong, but their shares would not fit together.
    """
    key = _derive(secret.expose(), polynomial_label(uctx, kind))
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size_bytes))


def signature_holds(signing_key: bytes, signature: bytes, statement: bytes) -> bool:
    """Whether an Ed25519 signature by the raw public key `signing_key` is right."""
    if len(signing_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(signing_key).verify(signature, statement)
    except InvalidSignature:
        return False
    return True


def _share_key(
    secret: ShareSecret, peer_key: bytes, uctx: CohortContext, sender: str, receiver: str, *, peer: str
) -> tuple[bytes, bytes]:
    label = share_label(uctx, sender, receiver)
    return _derive(_agree(_private(secret), peer, peer_key), label), label


def _agree(private: X25519PrivateKey, peer: str, peer_key: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(peer_key))
    except ValueError:  # the all-zero result: RFC 7748 section 6.1
        raise AdvertisementRefused(peer, "a mask or share key is a point of small order") from None


def _private(secret: Secret) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(secret.expose())


def _derive(key: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key)
