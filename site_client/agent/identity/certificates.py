"""The TLS certificate through its life: renewed at two thirds of it, recovered after weeks offline.

This machine's clock decides when to request a new one. A clock that is far ahead makes a fresh certificate look
expired. Then the certificate is used all the same, because the aggregator has just issued it, and the next request
waits until two thirds of its life have passed on this same clock. The aggregator grants few recoveries, and a wrong
clock must not use them up.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime

import structlog
from federation.errors import FederationError
from federation.v1 import enrolment_pb2

from site_client.agent.egress.calls import CHALLENGE, RECOVER, RENEW
from site_client.agent.egress.egress import Egress
from site_client.agent.identity import keys
from site_client.agent.identity.identity import SiteIdentity
from site_client.errors import IdentityRefused, SiteError

_log = structlog.get_logger()
NONCE_BYTES = 32


class Certificates:
    """Keeps the identity's certificate valid."""

    def __init__(
        self,
        identity: SiteIdentity,
        egress: Egress,
        enrolment: Callable[[], AbstractContextManager[Egress]],
        clock: Callable[[], datetime],
    ) -> None:
        """Take the two ways to the aggregator.

        Args:
            identity: Whose certificate is kept.
            egress: To the listener for sites, which accepts a valid certificate.
            enrolment: Connects to the enrolment listener, which needs none.
            clock: Of this machine.
        """
        self._identity, self._egress, self._enrolment, self._clock = identity, egress, enrolment, clock
        self._request_again_at: datetime | None = None
        self._damage_logged = ""
        self.notice = ""  # for a person here: the clock is wrong

    def keep(self) -> bool:
        """Request a new certificate when it is time.

        Returns:
            Whether there is a new one, so that the connection has to be made anew.

        Raises:
            SiteError, FederationError: The request failed, and the certificate has expired. Before it expires a
                failure is only logged.
        """
        now = self._clock()
        if self._request_again_at is not None and now < self._request_again_at:
            return False
        # Expired by this clock: the listener for sites would refuse the connection, so only recovery is left.
        expired = now >= self._identity.expires_at
        if self._identity.tls_damage not in ("", self._damage_logged):
            _log.warning("certificate damaged", why=self._identity.tls_damage, way_on="a new one is requested")
        self._damage_logged = self._identity.tls_damage
        if not expired and now < self._identity.renewal_due():
            return False
        try:
            if expired:
                self._recover()
            else:
                request = keys.request_certificate(self._identity.site)
                credentials = self._egress.send(RENEW, enrolment_pb2.RenewRequest(csr_der=request.csr_der))
                self._identity.accept_certificate(request, credentials)
        except (SiteError, FederationError) as error:
            if expired:
                raise
            _log.warning("certificate not renewed", why=str(error), expires_at=self._identity.expires_at.isoformat())
            return False
        self._check_clock(now)
        _log.info("certificate renewed", expires_at=self._identity.expires_at.isoformat())
        return True

    def _recover(self) -> None:
        """Replace an expired certificate, after a long outage: the signing key answers a challenge."""
        site = self._identity.site
        with self._enrolment() as egress:
            request = keys.request_certificate(site)
            # The aggregator draws the nonce, so a recorded recovery cannot be replayed.
            nonce = egress.send(CHALLENGE, enrolment_pb2.ChallengeRequest(site=site)).nonce
            # The signing key signs nothing that is not a nonce.
            if len(nonce) != NONCE_BYTES:
                raise IdentityRefused(
                    f"expected a challenge of {NONCE_BYTES} bytes, got {len(nonce)}; nothing was signed"
                )
            signature = keys.answer_challenge(self._identity.keys, nonce, request.csr_der)
            message = enrolment_pb2.RecoverRequest(site=site, nonce=nonce, csr_der=request.csr_der, signature=signature)
            credentials = egress.send(RECOVER, message)
        self._identity.accept_certificate(request, credentials)

    def _check_clock(self, now: datetime) -> None:
        """Compare this machine's clock with the dates of a certificate that was issued a moment ago."""
        begins, ends = self._identity.valid_from, self._identity.expires_at
        self._request_again_at, self.notice = None, ""
        if now >= self._identity.renewal_due():
            # Without this, a clock that is ahead would request a certificate at every turn.
            self._request_again_at = now + (ends - begins) * (2 / 3)
            self.notice = f"this machine's clock is ahead, perhaps by {(now - begins).days} days; set it (NTP)"
        elif now < begins:
            self.notice = (
                f"this machine's clock is behind by {int((begins - now).total_seconds())} s or more; set it (NTP)"
            )
        if self.notice:
            _log.warning("wrong clock noticed", why=self.notice)
