"""The TLS certificate through its life: renewed at two thirds, recovered after weeks offline, never begged for.

This machine's clock decides when to ask. A clock that is far ahead makes a fresh certificate look expired; then the
aggregator's word counts, the certificate is used, and nothing is spent on asking again before two thirds of its life
have passed on this same clock. Recoveries are few, and a wrong clock must not use them up.
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
    """Keeps the identity's certificate good. `egress` is the mutual-TLS way; `desk` opens the enrolment listener's."""

    def __init__(
        self,
        identity: SiteIdentity,
        egress: Egress,
        desk: Callable[[], AbstractContextManager[Egress]],
        clock: Callable[[], datetime],
    ) -> None:
        self._identity, self._egress, self._desk, self._clock = identity, egress, desk, clock
        self._ask_again_at: datetime | None = None
        self.notice = ""  # what a person here should know about the clock

    def keep(self) -> bool:
        """Asks for a new certificate when it is time; True when there is one, and the connection must be made anew.

        Errors: SiteError and FederationError, once the certificate has run out; before that a failure is only logged.
        """
        now = self._clock()
        if self._ask_again_at is not None and now < self._ask_again_at:
            return False
        expired = now >= self._identity.expires_at
        if not expired and now < self._identity.renewal_due():
            return False
        try:
            self._recover() if expired else self._renew()
        except (SiteError, FederationError) as error:
            if expired:
                raise
            _log.warning("certificate_not_renewed", why=str(error), expires_at=self._identity.expires_at.isoformat())
            return False
        self._look_at_clock(now)
        _log.info("certificate_renewed", expires_at=self._identity.expires_at.isoformat())
        return True

    def _renew(self) -> None:
        request = keys.request_certificate(self._identity.site)
        self._identity.accept_certificate(
            request, self._egress.send(RENEW, enrolment_pb2.RenewRequest(csr_der=request.csr_der))
        )

    def _recover(self) -> None:
        """After an outage longer than the certificate: the signing key answers a challenge. Errors: IdentityRefused."""
        site = self._identity.site
        with self._desk() as egress:
            request = keys.request_certificate(site)
            nonce = egress.send(CHALLENGE, enrolment_pb2.ChallengeRequest(site=site)).nonce
            if len(nonce) != NONCE_BYTES:
                raise IdentityRefused(
                    f"expected a challenge of {NONCE_BYTES} bytes, got {len(nonce)}; nothing was signed"
                )
            signature = keys.answer_challenge(self._identity.keys, nonce, request.csr_der)
            message = enrolment_pb2.RecoverRequest(site=site, nonce=nonce, csr_der=request.csr_der, signature=signature)
            credentials = egress.send(RECOVER, message)
        self._identity.accept_certificate(request, credentials)

    def _look_at_clock(self, now: datetime) -> None:
        """Compares this machine's clock with the dates of a certificate made a moment ago."""
        begins, ends = self._identity.valid_from, self._identity.expires_at
        self._ask_again_at, self.notice = None, ""
        if now >= self._identity.renewal_due():
            self._ask_again_at = now + (ends - begins) * (2 / 3)
            self.notice = f"this machine's clock is ahead, perhaps by {(now - begins).days} days; set it (NTP)"
        elif now < begins:
            self.notice = (
                f"this machine's clock is behind by {int((begins - now).total_seconds())} s or more; set it (NTP)"
            )
        if self.notice:
            _log.warning("clock_is_wrong", why=self.notice)
