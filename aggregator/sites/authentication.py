"""A peer certificate becomes the name of an approved site; the database is asked on every call.

TLS has already proved that the caller holds the certificate's key and that this CA signed it. That is not enough: a
revocation must count from the very next call on, and only a row can say so.
"""

import hashlib
import ssl
from datetime import datetime

from sqlalchemy.orm import Session

from aggregator.errors import NotEnrolled, SiteLeft, SiteRevoked
from aggregator.store import Store, site_rows


def authenticate(store: Store, certificate_pem: bytes | None, now: datetime) -> str:
    """Return the name of the site whose certificate this is, in a transaction of its own; see `authenticate_within`."""
    with store.read() as session:
        return authenticate_within(session, certificate_pem, now)


def authenticate_within(session: Session, certificate_pem: bytes | None, now: datetime) -> str:
    """Return the name of the site whose certificate this is.

    Args:
        session: A new one: a revocation that it does not see must not have been there when the call began.
        certificate_pem: As gRPC's `x509_pem_cert` gives it; None when the caller showed none.
        now: Aware UTC.

    Raises:
        SiteRevoked: When the coordinator revoked the site.
        SiteLeft: When the site has left.
        NotEnrolled: For everything else, in one sentence that does not tell the cases apart.
    """
    # By the whole certificate and not by the name in it: a certificate of before a new enrolment must not count.
    holder = site_rows.holder(session, certificate_fingerprint(certificate_pem))
    if holder is None:
        raise NotEnrolled(_NOT_ENROLLED)
    # Before the expiry: revoking a site lets its certificates expire too, and it is to learn the true reason.
    if holder.revoked_at is not None:
        raise SiteRevoked(f"site {holder.site!r} was revoked; contact the coordinator")
    if holder.left_at is not None:
        raise SiteLeft(
            f"site {holder.site!r} has left; to come back, ask the coordinator for a new invitation", holder.site
        )
    if holder.approved_at is None or holder.expires_at <= now:
        raise NotEnrolled(_NOT_ENROLLED)
    return holder.site


def certificate_fingerprint(certificate_pem: bytes | None) -> bytes:
    """Compute the SHA-256 of the certificate's DER, 32 bytes.

    Raises:
        NotEnrolled: When it is no PEM certificate.
    """
    if not certificate_pem:
        raise NotEnrolled("expected a client certificate, got none; join first")
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem.decode("ascii").strip())).digest()
    except ValueError:
        raise NotEnrolled(_NOT_ENROLLED) from None


_NOT_ENROLLED = "expected the current certificate of an approved site, got another; renew, recover or join again"
