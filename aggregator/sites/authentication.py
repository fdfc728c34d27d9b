"""Who calls: a peer certificate becomes an approved site that is still in. Asked of the database on every call.

TLS has already proved that the caller holds the certificate's key and that our CA signed it. That is not enough: a
revocation must count from the very next call on, and only a row can say so.
"""

import hashlib
import ssl
from datetime import datetime

from aggregator.errors import NotEnrolled, SiteLeft, SiteRevoked
from aggregator.store import Store, site_rows


def authenticate(store: Store, certificate_pem: bytes | None, now: datetime) -> str:
    """The name of the site whose certificate this is.

    Args: `certificate_pem` as gRPC's `x509_pem_cert` gives it; None when the caller showed none.
    Raises: SiteRevoked; SiteLeft; NotEnrolled for everything else, in one sentence that does not tell the cases apart.
    """
    fingerprint = certificate_fingerprint(certificate_pem)
    with store.read() as session:
        held = site_rows.holder(session, fingerprint)
    if held is None:
        raise NotEnrolled(_NOT_ENROLLED)
    if held.revoked_at is not None:
        raise SiteRevoked(f"site {held.site!r} was revoked; contact the coordinator")
    if held.left_at is not None:
        raise SiteLeft(f"site {held.site!r} has left; to come back, ask the coordinator for a new invitation")
    if held.approved_at is None or held.expires_at <= now:
        raise NotEnrolled(_NOT_ENROLLED)
    return held.site


def certificate_fingerprint(certificate_pem: bytes | None) -> bytes:
    """SHA-256 of the DER. Raises: NotEnrolled when it is no PEM certificate."""
    if not certificate_pem:
        raise NotEnrolled("expected a client certificate, got none; join first")
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem.decode("ascii").strip())).digest()
    except ValueError:
        raise NotEnrolled(_NOT_ENROLLED) from None


_NOT_ENROLLED = "expected the current certificate of an approved site, got another; renew, recover or join again"
