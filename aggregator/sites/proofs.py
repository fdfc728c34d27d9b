"""Proofs that a host gives before enrolment reads a row. Pure: nothing here knows any site."""

import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from federation.hpke import SEALING_KEY_BYTES
from federation.limits import check_site_name
from federation.roster import SIGNING_KEY_BYTES
from federation.token import SECRET_BYTES
from federation.v1 import enrolment_pb2

from aggregator.errors import JoinDenied
from aggregator.sites.authority import read_csr

# One domain a purpose: a signature that was made for one call is none for the other.
JOIN_DOMAIN = b"hemofed join v1\x00"
RECOVER_DOMAIN = b"hemofed recover v1\x00"
CHALLENGE_DOMAIN = b"hemofed challenge v1\x00"

CHALLENGE_LIFE = timedelta(minutes=5)
# A key to check signatures against where a name has none. Made anew and its private half dropped, so that no caller can
# sign with it; the private half of a constant such as the curve's base point would be known.
KEY_OF_NOBODY = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
_TIME_BYTES, _RANDOM_BYTES, _MAC_BYTES = 8, 8, 16  # of a challenge: 32 in all

CHALLENGE_REFUSED = "this challenge is unknown, used or older than 5 minutes; ask for another"


def check_join(request: enrolment_pb2.JoinRequest) -> None:
    """Check the shape of the request, and that the host holds its keys.

    Raises:
        TokenRefused: When the name is no site's name.
        JoinDenied: For anything else.
    """
    check_site_name(request.site)
    for name, value, size in (
        ("secret", request.secret, SECRET_BYTES),
        ("signing key", request.signing_key, SIGNING_KEY_BYTES),
        ("sealing key", request.sealing_key, SEALING_KEY_BYTES),
    ):
        if len(value) != size:
            raise JoinDenied(f"expected a {name} of {size} bytes, got {len(value)}")
    read_csr(request.csr_der)
    # The signature covers all keys, so none of them can be exchanged for another one on the way.
    digests = hashed(request.csr_der) + hashed(request.sealing_key)
    refusal = "the signature is not one of the signing key over these bytes"
    _verify(request.signing_key, request.possession, JOIN_DOMAIN + digests, refusal)


def make_challenge(key: bytes, site: str, now: datetime, random: Callable[[int], bytes]) -> bytes:
    """Make a challenge for a name, whether a site has it or not. Nothing is remembered: the challenge says it all.

    Args:
        key: A secret that all aggregators of this consortium share.
        site: The name that has to answer.
        now: Aware UTC.
        random: Tells challenges of one moment apart.

    Returns:
        The time, random bytes, and a MAC over both and the name: 32 bytes.
    """
    content = int(now.timestamp() * 1000).to_bytes(_TIME_BYTES) + random(_RANDOM_BYTES)
    return content + _challenge_mac(key, site, content)


def challenge_ends_at(key: bytes, site: str, nonce: bytes) -> datetime:
    """Return the end of a challenge's life.

    Raises:
        JoinDenied: When it was not made for this name with this key.
    """
    content, mac = nonce[:-_MAC_BYTES], nonce[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _challenge_mac(key, site, content)):
        raise JoinDenied(CHALLENGE_REFUSED)
    made_at = datetime.fromtimestamp(int.from_bytes(content[:_TIME_BYTES]) / 1000, UTC)
    return made_at + CHALLENGE_LIFE


def check_recovery(signing_key: bytes, request: enrolment_pb2.RecoverRequest) -> None:
    """Check that the enrolled key signed this nonce and this certificate request.

    Raises:
        JoinDenied: When it did not, in the sentence for a name that no active site has.
    """
    _verify(
        signing_key,
        request.signature,
        RECOVER_DOMAIN + request.nonce + hashed(request.csr_der),
        "no active site of that name has made this signature; ask the coordinator for an invitation",
    )


def hashed(data: bytes) -> bytes:
    """Compute SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()


def _challenge_mac(key: bytes, site: str, content: bytes) -> bytes:
    return hmac.digest(key, CHALLENGE_DOMAIN + content + site.encode(), "sha256")[:_MAC_BYTES]


def _verify(signing_key: bytes, signature: bytes, message: bytes, refusal: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(signing_key).verify(signature, message)
    except (InvalidSignature, ValueError):  # ValueError: the bytes are no point of the curve
        raise JoinDenied(refusal) from None
