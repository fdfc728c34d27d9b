"""Every call into a primitive except the mask keystream: X25519, ML-KEM-768, HKDF-SHA256, AES-256-GCM, Ed25519.

    K        ML-KEM-768 from the dealer to the receiver's KEM key, one encapsulation a direction
    shares:  AES-256-GCM under HKDF(X25519(share keys) || K, share label), AAD = the same label
    masks:   HKDF(X25519(mask keys) || x, pair label)   and   HKDF(b, self label)
    x        HKDF(M of the first of the two, pair secret label); it travels as x XOR HKDF(K, pair pad label)

Both halves are hybrid: breaking X25519 alone, or ML-KEM alone, gives nothing. A member's X25519 mask key and its KEM
key both follow from its one mask secret M, which is Shamir-shared. So M covers everything that a vanished member's
masks need: x where it is the first of a pair, and the decapsulation of x where it is the second.

When M of a vanished member is recovered, K is known for the shares that were dealt to it. X25519 still covers them.
With X25519 broken, too, the vanished (at most n - t) and the corrupt (fewer than n/3) are still fewer than t.

All primitives are `cryptography`'s. RFC 7748 (X25519, with its all-zero check), FIPS 203 (ML-KEM, whose decapsulation
never fails: garbage gives a key that no other party has), RFC 5869, NIST SP 800-38D, RFC 8032.
"""

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.secagg import shamir
from federation.secagg.errors import AdvertisementRefused, MalformedValue, ShareRefused
from federation.secagg.secret import MaskSecret, PolynomialSecret, Seed, ShareSecret, StreamKey
from federation.secagg.transcript import (
    KEM_CIPHERTEXT_BYTES,
    KEM_KEY_BYTES,
    KEY_BYTES,
    SIGNATURE_BYTES,
    CohortContext,
    DealtShares,
    ShareKind,
    order,
    pair_label,
    pair_pad_label,
    pair_secret_label,
    polynomial_label,
    self_label,
    share_label,
    statement,
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
# One key encrypts one message: K is fresh, and the label names cohort, sender and receiver. So a fixed nonce is safe.
_NONCE = bytes(12)


Encapsulate = Callable[[bytes], tuple[bytes, bytes]]  # raw KEM key -> (K, ciphertext)


def share_public_key(secret: ShareSecret) -> bytes:
    """Returns the raw X25519 public key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(secret.expose()).public_key().public_bytes_raw()


class MaskKeys:
    """Both private keys that follow from one mask secret M.

    Unpacking them costs more than using them once, so a member keeps this object for the length of a step.
    """

    def __init__(self, secret: MaskSecret) -> None:
        self._secret = secret
        self._x25519 = X25519PrivateKey.from_private_bytes(_derive(secret.expose(), statement("mask x25519")))
        self._kem = MLKEM768PrivateKey.from_seed_bytes(_derive(secret.expose(), statement("mask kem"), 64))

    @property
    def mask_key(self) -> bytes:
        """Raw X25519 public key, 32 bytes."""
        return self._x25519.public_key().public_bytes_raw()

    @property
    def kem_key(self) -> bytes:
        """Raw ML-KEM-768 encapsulation key, 1184 bytes."""
        return self._kem.public_key().public_bytes_raw()

    def decapsulate(self, dealt: DealtShares) -> bytes:
        """Returns K of the shares that a dealer sent, 32 bytes (FIPS 203, algorithm 21).

        A ciphertext of garbage gives a K that no other party has.
        """
        return self._kem.decapsulate(dealt.kem_ciphertext)

    def pair_secret(self, uctx: CohortContext, first: str, second: str) -> bytes:
        """Returns x, 32 bytes, of a pair in which the owner of M is the first."""
        return _derive(self._secret.expose(), pair_secret_label(uctx, first, second))

    def pair_key(
        self, uctx: CohortContext, site: str, peer: str, peer_mask_key: bytes, dealt: DealtShares | None
    ) -> StreamKey:
        """Returns the key of the mask that `site`, the owner of M, shares with `peer`; the same from both ends.

        Args:
            uctx: Context of the cohort, 32 bytes.
            site: The owner of M.
            peer: The other member.
            peer_mask_key: Its raw X25519 mask key, 32 bytes.
            dealt: The shares of the peer for `site`. Used only when the peer is the first of the two.

        Returns:
            A key of 32 bytes: HKDF-SHA256 (RFC 5869) of X25519 (RFC 7748) || x.
        """
        if order((site, peer))[0] == site:
            x = self.pair_secret(uctx, site, peer)
        else:
            # A first member always sends it: `check_form` refused anything else.
            assert dealt is not None
            x = _pad(self.decapsulate(dealt), uctx, peer, site, dealt.pair_secret)
        return StreamKey(_derive(_agree(self._x25519, peer, peer_mask_key) + x, pair_label(uctx, site, peer)))


def encapsulate(kem_key: bytes) -> tuple[bytes, bytes]:
    """Draws a fresh K and returns it with its ciphertext, 32 and 1088 bytes (FIPS 203, ML-KEM-768)."""
    return MLKEM768PublicKey.from_public_bytes(kem_key).encapsulate()


def check_kem_key(site: str, key: bytes) -> None:
    """Refuses an encapsulation key that is not canonical: 1184 bytes (FIPS 203, section 7.2).

    Raises:
        AdvertisementRefused: The length is wrong or a coefficient is not reduced.
    """
    try:
        if len(key) != KEM_KEY_BYTES:
            raise ValueError
        MLKEM768PublicKey.from_public_bytes(key)
    except ValueError:
        raise AdvertisementRefused(site, "its KEM key is not a canonical ML-KEM-768 encapsulation key") from None


def check_public_key(site: str, key: bytes) -> None:
    """Refuses non-canonical encodings of a coordinate, 32 bytes little-endian (RFC 7748), and points of small order.

    With two encodings of one key the duplicate check would miss it. With a point of small order the agreed key is known
    to all, whatever the peer's secret.

    Raises:
        AdvertisementRefused: The key is one of these.
    """
    coordinate = int.from_bytes(key, "little")
    if len(key) != KEY_BYTES or coordinate >= _CURVE_PRIME or coordinate in _SMALL_ORDER:
        raise AdvertisementRefused(site, "a mask or share key is not a canonical X25519 key of large order")


def deal(
    share_secret: ShareSecret,
    mask_keys: MaskKeys,
    peer: tuple[bytes, bytes],
    uctx: CohortContext,
    sender: str,
    receiver: str,
    shares: tuple[bytes, bytes],
    encapsulate: Encapsulate = encapsulate,
) -> tuple[bytes, bytes, bytes]:
    """Encrypts the sender's shares for one receiver.

    Args:
        share_secret: The sender's.
        mask_keys: The sender's.
        peer: The receiver's KEM key and share key, 1184 and 32 bytes.
        uctx: Context of the cohort, 32 bytes.
        sender: The dealer.
        receiver: The member that gets the shares.
        shares: Seed share and mask-key share, 33 bytes each.
        encapsulate: Draws K.

    Returns:
        KEM ciphertext of 1088 bytes, pair secret of 32 (empty unless the sender is the first of the two), and
        ciphertext of 82, AES-256-GCM (NIST SP 800-38D).
    """
    shared, kem_ciphertext = encapsulate(peer[0])
    key, label = _share_key(share_secret, peer[1], shared, uctx, sender, receiver, kem_ciphertext, peer=receiver)
    pair_secret = b""
    if order((sender, receiver))[0] == sender:
        pair_secret = _pad(shared, uctx, sender, receiver, mask_keys.pair_secret(uctx, sender, receiver))
    return kem_ciphertext, pair_secret, AESGCM(key).encrypt(_NONCE, shares[0] + shares[1], label)


def decrypt_shares(
    share_secret: ShareSecret,
    mask_keys: MaskKeys,
    peer_share_key: bytes,
    uctx: CohortContext,
    sender: str,
    receiver: str,
    dealt: DealtShares,
) -> tuple[bytes, bytes]:
    """Decrypts the two shares from `sender`.

    Returns:
        Seed share and mask-key share, 33 bytes each.

    Raises:
        ShareRefused: The sender did not encrypt two shares for the receiver in this very cohort.
    """
    shared = mask_keys.decapsulate(dealt)
    key, label = _share_key(
        share_secret, peer_share_key, shared, uctx, sender, receiver, dealt.kem_ciphertext, peer=sender
    )
    try:
        plaintext = AESGCM(key).decrypt(_NONCE, dealt.ciphertext, label)
    except InvalidTag:
        raise ShareRefused(sender, f"its ciphertext for {receiver!r} does not decrypt") from None
    seed_share, key_share = plaintext[: shamir.ELEMENT_BYTES], plaintext[shamir.ELEMENT_BYTES :]
    check_share(sender, seed_share)
    check_share(sender, key_share)
    return seed_share, key_share


def check_form(dealer: str, member: str, dealt: DealtShares) -> None:
    """Refuses dealt shares of other lengths than these two members have.

    Raises:
        ShareRefused: A field has another length.
    """
    own, first = dealer == member, order((dealer, member))[0] == dealer
    lengths = (
        0 if own else KEM_CIPHERTEXT_BYTES,
        KEY_BYTES if first and not own else 0,
        0 if own else CIPHERTEXT_BYTES,
        KEY_BYTES,
        KEY_BYTES,
    )
    fields = (dealt.kem_ciphertext, dealt.pair_secret, dealt.ciphertext, dealt.seed_digest, dealt.key_digest)
    if tuple(map(len, fields)) != lengths:
        raise ShareRefused(dealer, f"what it dealt to {member!r} has fields of other lengths than the protocol's")


def check_share(site: str, share: bytes) -> None:
    """Refuses a share that is not an element of the field: 33 bytes, big-endian, below the prime.

    Raises:
        ShareRefused: The share is none. The error names `site`, which it came from.
    """
    try:
        shamir.decode(share)
    except MalformedValue as error:
        raise ShareRefused(site, str(error)) from None


def self_key(seed: Seed, uctx: CohortContext, site: str) -> StreamKey:
    """Returns the key of the self mask, 32 bytes.

    The self mask stays on an upload that arrives after its pairwise masks were recovered. So the upload stays hidden.
    """
    return StreamKey(_derive(seed.expose(), self_label(uctx, site)))


def coefficient_bytes(secret: PolynomialSecret, uctx: CohortContext, kind: ShareKind, size_bytes: int) -> bytes:
    """Returns the `size_bytes` bytes for one Shamir polynomial: AES-256-CTR under a key for this cohort and kind.

    Derived, not drawn: a member that crashed deals the same polynomial again. Two polynomials over one secret in one
    cohort would not be wrong, but their shares would not fit together.
    """
    key = _derive(secret.expose(), polynomial_label(uctx, kind))
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size_bytes))


def signature_holds(signing_key: bytes, signature: bytes, statement: bytes) -> bool:
    """Tells whether an Ed25519 signature (RFC 8032), 64 bytes, is right under the raw public key, 32 bytes."""
    # A key of another length would raise ValueError: here it is one more signature that does not hold.
    if len(signing_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(signing_key).verify(signature, statement)
    except InvalidSignature:
        return False
    return True


def _share_key(
    secret: ShareSecret,
    peer_key: bytes,
    shared: bytes,
    uctx: CohortContext,
    sender: str,
    receiver: str,
    kem_ciphertext: bytes,
    *,
    peer: str,
) -> tuple[bytes, bytes]:
    label = share_label(uctx, sender, receiver, kem_ciphertext)
    private = X25519PrivateKey.from_private_bytes(secret.expose())
    return _derive(_agree(private, peer, peer_key) + shared, label), label


def _pad(shared: bytes, uctx: CohortContext, first: str, second: str, data: bytes) -> bytes:
    """XORs 32 bytes with a one-time pad from K. The inverse of itself."""
    pad = _derive(shared, pair_pad_label(uctx, first, second))
    return bytes(a ^ b for a, b in zip(pad, data, strict=True))


def _agree(private: X25519PrivateKey, peer: str, peer_key: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(peer_key))
    except ValueError:  # the all-zero result: RFC 7748 section 6.1
        raise AdvertisementRefused(peer, "a mask or share key is a point of small order") from None


def _derive(key: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    # No salt, which RFC 5869 (section 3.1) makes optional: `info` names protocol, purpose and cohort, so keys differ.
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(key)
