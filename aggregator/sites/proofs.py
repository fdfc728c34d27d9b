"""Proofs that a host gives before enrolment reads a row. Pure: nothing here knows any site."""

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.limits import check_site_name
from federation.roster import SEALING_KEY_BYTES, SIGNING_KEY_BYTES
from federation.token import SECRET_BYTES
from federation.v1 import enrolment_pb2

from aggregator.errors import JoinDenied
from aggregator.sites.authority import read_csr

# One domain a purpose: a signature that was made for one call is none for the other.
JOIN_DOMAIN = b"hemofed join v1\x00"
RECOVER_DOMAIN = b"hemofed recover v1\x00"


def check_join(request: enrolment_pb2.JoinRequest) -> None:
    """Check the shape of the request, and that the host holds its keys.

    Raises:
        TokenRefused: when the name is no site's name.
        JoinDenied: for anything else.
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
    _verify(request.signing_key, request.possession, JOIN_DOMAIN + digests)


def check_recovery(signing_key: bytes, request: enrolment_pb2.RecoverRequest) -> None:
    """Check that the enrolled key signed this nonce and this certificate request.

    Raises:
        JoinDenied: when it did not.
    """
    _verify(signing_key, request.signature, RECOVER_DOMAIN + request.nonce + hashed(request.csr_der))


def hashed(data: bytes) -> bytes:
    """Compute SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()


def _verify(signing_key: bytes, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(signing_key).verify(signature, message)
    except (InvalidSignature, ValueError):  # ValueError: the bytes are no point of the curve
        raise JoinDenied("the signature is not one of the signing key over these bytes") from None
