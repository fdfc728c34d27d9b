"""How a hospital becomes a site, stays one, and stops being one. Protobuf messages in and out; no gRPC here.

    invite    the coordinator makes a one-time token, bound to a name
    join      the host proves that it holds the token and its keys; the first request that does so takes the token
    approve   the coordinator compared six words by telephone: certificate, and a roster with one site more
    renew     at two thirds of a certificate's life, over mutual TLS
    challenge, recover   after weeks offline: the signing key answers for the certificate that ran out
    revoke    a row; counts from the next call on; a roster with one site less
    leave     the same, by the site's own word

Every use case is one transaction with its audit row. Refusals to an unauthenticated caller say little: they must not
tell which names exist.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from federation.fingerprint import six_words
from federation.limits import check_site_name
from federation.roster import Roster, RosterEntry, sign_roster
from federation.token import Token
from federation.v1 import enrolment_pb2
from federation.wire import parse, serialize
from sqlalchemy.orm import Session

from aggregator import config
from aggregator.errors import JoinDenied, LostRace, NotFound, WrongState
from aggregator.sites.authority import Authority, SiteCertificate, read_csr
from aggregator.sites.proofs import check_join, check_recovery, hashed
from aggregator.states import SITE_TRANSITIONS, SiteStanding
from aggregator.store import Change, Store, record, site_rows
from aggregator.store.tables import Certificate, Challenge, Invitation, RosterEpoch, Site

CHALLENGE_LIFE = timedelta(minutes=5)
CHALLENGES_OUTSTANDING_MAX = 64
NONCE_BYTES = 32


@dataclass(frozen=True)
class EnrolmentService:
    """The enrolment desk: everything it needs, nothing it remembers."""

    store: Store
    authority: Authority
    settings: config.EnrolmentSettings
    clock: Callable[[], datetime]
    random: Callable[[int], bytes]

    def invite(self, site: str, *, auto_approve: bool = False) -> Token:
        """A token that lets one host join as `site`. It exists only in the answer; the row holds a hash.

        Inviting again replaces an older invitation. Raises: federation.errors.TokenRefused for a name that is none;
        WrongState when the site is approved: revoke it first, so that never two hosts answer to one name.
        """
        now = self.clock()
        token = Token.new(check_site_name(site), self.authority.fingerprint, self.random)
        with self.store.write() as session:
            joined = site_rows.find(session, site)
            if joined is not None and site_rows.standing(joined) == site_rows.APPROVED:
                raise WrongState(f"site {site!r} is approved already; `site revoke {site}` before inviting it anew")
            row = Invitation(
                site=site,
                secret_hash=hashed(token.secret),
                expires_at=now + timedelta(hours=self.settings.invitation_hours),
                used_by=None,
                auto_approve=auto_approve,
            )
            site_rows.put_invitation(session, row)
            why = "invited, approved on joining" if auto_approve else "invited"
            record(session, Change(now, "operator", f"site:{site}", why), None, "invited")
        return token

    def join(self, request: enrolment_pb2.JoinRequest) -> enrolment_pb2.JoinReply:
        """Pending until approved, then credentials; the same bytes again get the same answer.

        An invitation runs out only while unused: a host that waits for a telephone call may wait longer.

        Raises: JoinDenied for a token that is wrong, expired, or was used by another request, and for keys that do not
        prove possession.
        """
        check_join(request)
        digest, now = hashed(serialize(request)), self.clock()
        with self.store.write() as session:
            invitation = site_rows.invitation(session, request.site)
            if invitation is None or not hmac.compare_digest(invitation.secret_hash, hashed(request.secret)):
                raise JoinDenied(_UNKNOWN)
            if invitation.used_by is None:
                if invitation.expires_at <= now:
                    raise JoinDenied("this token has expired; ask the coordinator for a new one")
                if site_rows.claim_invitation(session, request.site, invitation.secret_hash, digest):
                    self._admit(session, request, now, auto_approve=invitation.auto_approve)
                # else another process claimed it a moment ago; what it wrote is seen below
                session.refresh(invitation)
            if invitation.used_by != digest:
                raise JoinDenied("this token was used by another host; if that was not you, tell the coordinator now")
            return self._join_reply(session, site_rows.get(session, request.site))

    def approve(self, site: str, fingerprint: str) -> None:
        """Let a pending site in, the one whose six words are `fingerprint`.

        Raises: NotFound; WrongState when it is not pending; LostRace when other keys stand there by now.
        """
        now = self.clock().replace(microsecond=0)
        with self.store.write() as session:
            row = site_rows.get(session, site)
            if site_rows.standing(row) != site_rows.PENDING:
                raise WrongState(f"expected a pending site, got {site!r}: {site_rows.standing(row)}")
            self._approve(session, row, fingerprint, Change(now, "operator", f"site:{site}", "six words compared"))

    def revoke(self, site: str) -> None:
        """Shut a site out from its next call on; also withdraws an invitation and refuses a pending host.

        Raises: NotFound when there is neither site nor invitation; WrongState when it is out already.
        """
        now = self.clock()
        change = Change(now, "operator", f"site:{site}", "revoked by the coordinator")
        with self.store.write() as session:
            withdrawn = site_rows.withdraw_invitation(session, site)
            row = site_rows.find(session, site)
            if row is None and not withdrawn:
                raise NotFound(f"no site and no invitation {site!r}; `site list` shows those there are")
            before = None if row is None else site_rows.standing(row)
            if before is not None and site_rows.REVOKED in SITE_TRANSITIONS[before]:
                site_rows.revoke(session, site, before, change)
                self._shut_out(session, site, before, now)
            elif withdrawn:
                record(session, change, "invited", site_rows.REVOKED)
            else:
                raise WrongState(f"site {site!r} {'has left' if before is site_rows.LEFT else 'is revoked'} already")

    def leave(self, site: str) -> None:
        """`site`, whom `auth` has just authenticated, is gone for good; again, after a lost answer, changes nothing.

        Raises: LostRace when the coordinator revoked it a moment ago.
        """
        now = self.clock()
        with self.store.write() as session:
            before = site_rows.standing(site_rows.get(session, site))
            if before is site_rows.LEFT:
                return
            site_rows.leave(session, site, Change(now, f"site:{site}", f"site:{site}", "left for good"))
            site_rows.withdraw_invitation(session, site)
            self._shut_out(session, site, before, now)

    def challenge(self, request: enrolment_pb2.ChallengeRequest) -> enrolment_pb2.ChallengeReply:
        """A nonce for a site whose certificate has run out. Raises: JoinDenied when no active site has that name."""
        nonce, now = self.random(NONCE_BYTES), self.clock()
        with self.store.write() as session:
            _active_site(session, request.site)
            row = Challenge(nonce=nonce, site=request.site, expires_at=now + CHALLENGE_LIFE)
            site_rows.add_challenge(session, row, now, CHALLENGES_OUTSTANDING_MAX)
        return enrolment_pb2.ChallengeReply(nonce=nonce)

    def recover(self, request: enrolment_pb2.RecoverRequest) -> enrolment_pb2.Credentials:
        """Credentials for a challenge signed by the enrolled key; a nonce serves once, a site only so often.

        Raises: JoinDenied; nothing is spent unless the signature is right.
        """
        read_csr(request.csr_der)
        now = self.clock().replace(microsecond=0)
        with self.store.write() as session:
            site = _active_site(session, request.site)
            nonce = site_rows.challenge(session, request.nonce)
            if nonce is None or nonce.site != site.name or nonce.expires_at <= now:
                raise JoinDenied("this challenge is unknown, used or older than 5 minutes; ask for another")
            check_recovery(site.signing_key, request)
            if not site_rows.use_challenge(session, request.nonce):
                raise JoinDenied("this challenge was used a moment ago; ask for another")
            change = Change(now, f"site:{site.name}", f"site:{site.name}", "answered a challenge")
            try:
                site_rows.spend_recovery(session, site.name, change)
            except LostRace:
                raise JoinDenied("no recovery is left; ask the coordinator to revoke and invite this site") from None
            return self._credentials(session, self._issue(session, site.name, request.csr_der, now))

    def renew(self, site: str, request: enrolment_pb2.RenewRequest) -> enrolment_pb2.Credentials:
        """A new certificate for `site`, whom `auth` has just authenticated; the old one stays good until it ends.

        Raises: JoinDenied for a malformed request, or when the site was revoked in between.
        """
        read_csr(request.csr_der)
        now = self.clock().replace(microsecond=0)
        with self.store.write() as session:
            _active_site(session, site)
            issued = self._issue(session, site, request.csr_der, now)
            record(session, Change(now, f"site:{site}", f"site:{site}", "certificate renewed"), None, "renewed")
            return self._credentials(session, issued)

    def roster(self) -> enrolment_pb2.SignedRoster:
        """The newest. Raises: NotFound before the first site was approved."""
        with self.store.read() as session:
            return _newest_roster(session)

    def _admit(
        self, session: Session, request: enrolment_pb2.JoinRequest, now: datetime, *, auto_approve: bool
    ) -> None:
        taken = [site for site in site_rows.everyone(session) if site.name != request.site]
        if any(site.signing_key == request.signing_key or site.sealing_key == request.sealing_key for site in taken):
            raise JoinDenied("these keys belong to another site already; make new ones on this host")
        now = now.replace(microsecond=0)
        row = Site(
            name=request.site,
            csr_der=request.csr_der,
            signing_key=request.signing_key,
            sealing_key=request.sealing_key,
            fingerprint=six_words(request.csr_der, request.signing_key, request.sealing_key),
            joined_at=now,
            approved_at=None,
            revoked_at=None,
            left_at=None,
            recoveries_left=self.settings.recoveries,
        )
        site_rows.put_site(session, row)
        actor = f"site:{request.site}"
        record(session, Change(now, actor, actor, "joined with its token"), "invited", site_rows.PENDING)
        session.flush()
        if auto_approve:
            change = Change(now, "operator", actor, "invited with automatic approval")
            self._approve(session, site_rows.get(session, request.site), row.fingerprint, change)

    def _approve(self, session: Session, site: Site, fingerprint: str, change: Change) -> None:
        site_rows.approve(session, site.name, fingerprint, change)
        session.refresh(site)
        self._issue(session, site.name, site.csr_der, change.at)
        self._next_roster(session, change.at)

    def _issue(self, session: Session, site: str, csr_der: bytes, now: datetime) -> SiteCertificate:
        expires_at = now + timedelta(days=self.settings.certificate_days)
        issued = self.authority.issue_site_certificate(site, csr_der, now, expires_at)
        row = Certificate(fingerprint=issued.fingerprint, site=site, issued_at=now, expires_at=expires_at)
        site_rows.add_certificate(session, row)
        return issued

    def _shut_out(self, session: Session, site: str, before: SiteStanding, now: datetime) -> None:
        """Nothing that it holds opens a door any more, and no later roster names it."""
        site_rows.drop_challenges(session, site)
        site_rows.end_certificates(session, site, now)
        if before is site_rows.APPROVED:
            self._next_roster(session, now)

    def _next_roster(self, session: Session, now: datetime) -> None:
        # The epoch before the sites: whatever another process commits in between then collides on the epoch, instead of
        # being left out of a newer roster.
        epoch = site_rows.newest_epoch(session) + 1
        entries = tuple(
            RosterEntry(site.name, site.signing_key, site.sealing_key) for site in site_rows.active(session)
        )
        roster = Roster(epoch, entries)
        signed = serialize(sign_roster(roster, self.authority.custodian_key))
        site_rows.add_roster(session, RosterEpoch(epoch=roster.epoch, signed=signed, created_at=now))

    def _join_reply(self, session: Session, site: Site) -> enrolment_pb2.JoinReply:
        match site_rows.standing(site):
            case site_rows.PENDING:
                pending = enrolment_pb2.Pending(retry_after_s=self.settings.retry_after_s)
                return enrolment_pb2.JoinReply(pending=pending)
            case site_rows.APPROVED:
                return enrolment_pb2.JoinReply(credentials=self._credentials(session, self._first(session, site)))
            case _:
                raise JoinDenied(_UNKNOWN)

    def _first(self, session: Session, site: Site) -> SiteCertificate:
        """The certificate made on approval, once more: its row holds the dates, and the rest follows from them."""
        # approve() sets approved_at and adds the certificate's row in one transaction, and standing() saw approved_at.
        assert site.approved_at is not None
        row = site_rows.certificate_issued_at(session, site.name, site.approved_at)
        if row is None:
            raise NotFound(f"site {site.name!r} has no certificate from its approval; revoke and invite it again")
        return self.authority.issue_site_certificate(site.name, site.csr_der, row.issued_at, row.expires_at)

    def _credentials(self, session: Session, issued: SiteCertificate) -> enrolment_pb2.Credentials:
        return enrolment_pb2.Credentials(
            certificate_pem=issued.pem,
            ca_certificate_pem=self.authority.certificate_pem,
            custodian_certificate_pem=self.authority.custodian_certificate_pem,
            roster=_newest_roster(session),
        )


def _active_site(session: Session, name: str) -> Site:
    site = site_rows.find(session, name)
    if site is None or site_rows.standing(site) != site_rows.APPROVED:
        raise JoinDenied("no active site of that name; ask the coordinator for an invitation")
    return site


def _newest_roster(session: Session) -> enrolment_pb2.SignedRoster:
    row = site_rows.newest_roster(session)
    if row is None:
        raise NotFound("no roster yet: no site has been approved")
    return parse(enrolment_pb2.SignedRoster, row.signed)


_UNKNOWN = "no such invitation: the token is unknown, withdrawn or replaced; ask the coordinator for a new one"
