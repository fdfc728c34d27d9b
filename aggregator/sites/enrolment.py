"""Enrolment: a hospital becomes a site, stays one, and leaves. Protobuf messages in and out; no gRPC here.

    invite    the coordinator makes a one-time token, bound to a name
    join      the host proves that it holds the token and its keys; the first request that does so takes the token
    approve   the coordinator has compared six words by telephone: a certificate, once the custodian has signed a roster
              with the site in it (`sites.roster`)
    renew     at two thirds of a certificate's life, over mutual TLS
    challenge, recover   after weeks offline: the signing key vouches for the site whose certificate has expired
    suspend   no new round takes the site until it is resumed; everything else goes on
    rekey     an approved site whose host is lost joins again; its old keys stay until the new ones are approved
    rename    the same under another name: the old one is revoked when the new one is approved
    revoke    the site is refused from its next call on; the next roster has one site less
    leave     the same, at the site's own request

Every use case is one transaction with its audit row. Refusals to an unauthenticated caller say little: they must not
tell which names exist.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from federation.fingerprint import six_words
from federation.limits import check_site_name
from federation.token import Token
from federation.v1 import enrolment_pb2
from federation.wire import parse, serialize
from sqlalchemy.orm import Session

from aggregator import config
from aggregator.errors import JoinDenied, LostRace, NotFound, WrongState
from aggregator.sites.authority import Authority, SiteCertificate, read_csr
from aggregator.sites.proofs import (
    CHALLENGE_REFUSED,
    KEY_OF_NOBODY,
    challenge_ends_at,
    check_join,
    check_recovery,
    hashed,
    make_challenge,
)
from aggregator.sites.roster import is_listed
from aggregator.states import SITE_TRANSITIONS
from aggregator.store import OPERATOR, Cause, Change, Store, record, site_rows
from aggregator.store.tables import Candidate, Certificate, Challenge, Invitation, Site


@dataclass(frozen=True)
class EnrolmentService:
    """All use cases of enrolment. It remembers nothing between calls, so any number may serve one database."""

    store: Store
    authority: Authority
    settings: config.EnrolmentSettings
    clock: Callable[[], datetime]
    random: Callable[[int], bytes]
    actor: str = OPERATOR  # who invites, approves, suspends and revokes, for the audit

    def invite(self, site: str, *, auto_approve: bool = False, replaces: str | None = None) -> Token:
        """Make a token that lets one host join as `site`; it replaces an older invitation of that name.

        Args:
            site: The name that the token is bound to.
            auto_approve: Approve the host when it joins, without comparing words.
            replaces: A site that goes when the host is approved: `site` itself, which gets new keys, or one that has
                another name from then on. Until then it goes on.

        Returns:
            The token. It exists only here; the row holds a hash.

        Raises:
            federation.errors.TokenRefused: When `site` is no site's name.
            NotFound: When there is no site to replace.
            WrongState: When the site is approved and is not to be replaced: two hosts would answer to one name; or when
                the one to replace is not approved.
        """
        now = self.clock()
        token = Token.new(check_site_name(site), self.authority.fingerprint, self.random)
        with self.store.write() as session:
            joined = site_rows.find(session, site)
            if joined is not None and site_rows.standing(joined) in site_rows.MEMBERS and replaces != site:
                raise WrongState(f"site {site!r} is approved already; `site rekey {site}` gives it new keys")
            if replaces is not None:
                _member(session, replaces)
            # Only the hash: who copies the database must not be able to join with it.
            row = Invitation(
                site=site,
                secret_hash=hashed(token.secret),
                expires_at=now + timedelta(hours=self.settings.invitation_hours),
                used_by=None,
                auto_approve=auto_approve,
                replaces=replaces,
            )
            site_rows.put_invitation(session, row)
            why = "invited, approved on joining" if auto_approve else "invited"
            if replaces is not None:
                why += " with new keys" if replaces == site else f" in the place of {replaces}"
            record(session, self._cause(now, why).of(f"site:{site}"), None, "invited")
        return token

    def join(self, request: enrolment_pb2.JoinRequest) -> enrolment_pb2.JoinReply:
        """Answer "pending" until the site is approved and in the roster, then credentials.

        The same bytes again get the same answer.

        An invitation expires only while it is unused: a host that waits for the telephone call may wait longer.

        Raises:
            JoinDenied: For a token that is wrong, expired, or was used by another request, and for keys that do not
                prove possession.
            federation.errors.TokenRefused: When the name is no site's name.
        """
        check_join(request)
        # Of the whole request: the token is bound to the keys of the host that used it first.
        digest, now = hashed(serialize(request)), self.clock()
        # Twice: a stranger does not get the lock of the writers, and a token may be withdrawn before its owner gets it.
        with self.store.read() as session:
            _invited(session, request)
        with self.store.write() as session:
            invitation = _invited(session, request)
            if invitation.used_by is None:
                if invitation.expires_at <= now:
                    raise JoinDenied("this token has expired; ask the coordinator for a new one")
                if site_rows.claim_invitation(session, request.site, invitation.secret_hash, digest):
                    self._admit(session, request, invitation, now)
                # Else another process claimed it a moment ago; the row says for which request.
                session.refresh(invitation)
            if invitation.used_by != digest:
                raise JoinDenied("this token was used by another host; if that was not you, tell the coordinator now")
            return self._join_reply(session, site_rows.get(session, request.site), request.signing_key)

    def approve(self, site: str, fingerprint: str) -> None:
        """Approve the pending site, or the new keys of a site, whose six words are `fingerprint`.

        Raises:
            NotFound: When no such site has joined.
            WrongState: When it is not pending, and no new keys of it are; or when it is a second new name of one site.
            LostRace: When a host with other keys has joined under this name since the words were read.
        """
        # A certificate holds whole seconds. The row gets the same time, so that `_first` can make the same bytes again.
        now = self.clock().replace(microsecond=0)
        with self.store.write() as session:
            row, change = site_rows.get(session, site), self._cause(now, "six words compared").of(f"site:{site}")
            candidate = site_rows.candidate(session, site)
            if candidate is not None and candidate.fingerprint == fingerprint:
                self._rekey(session, candidate, change)
                return
            if site_rows.standing(row) != site_rows.PENDING:
                raise WrongState(f"expected a pending site, got {site!r}: {site_rows.standing(row)}")
            self._approve(session, row, fingerprint, change)

    def suspend(self, site: str, why: str = "suspended by the coordinator") -> None:
        """Let no new round take a site.

        Raises:
            NotFound: When no such site has joined.
            WrongState: When it is not approved, or is suspended already.
        """
        with self.store.write() as session:
            standing = site_rows.standing(site_rows.get(session, site))
            if standing is not site_rows.APPROVED:
                raise WrongState(f"expected an approved site, got {site!r}: {standing}")
            site_rows.suspend(session, site, self._cause(self.clock(), why).of(f"site:{site}"))

    def resume(self, site: str, why: str = "resumed by the coordinator") -> None:
        """Let rounds take a suspended site again.

        Raises:
            NotFound: When no such site has joined.
            WrongState: When it is not suspended.
        """
        with self.store.write() as session:
            standing = site_rows.standing(site_rows.get(session, site))
            if standing is not site_rows.SUSPENDED:
                raise WrongState(f"expected a suspended site, got {site!r}: {standing}")
            site_rows.resume(session, site, self._cause(self.clock(), why).of(f"site:{site}"))

    def revoke(self, site: str) -> None:
        """Refuse a site from its next call on. An invitation is withdrawn, a pending host refused.

        Raises:
            NotFound: When there is neither site nor invitation.
            WrongState: When it was revoked, or has left, already.
        """
        now = self.clock()
        change = self._cause(now, "revoked by the coordinator").of(f"site:{site}")
        with self.store.write() as session:
            # In every case: an unused invitation would let the site in again.
            withdrawn = site_rows.withdraw_invitation(session, site)
            site_rows.withdraw_candidate(session, site)
            row = site_rows.find(session, site)
            if row is None and not withdrawn:
                raise NotFound(f"no site and no invitation {site!r}; `site list` shows those there are")
            before = None if row is None else site_rows.standing(row)
            if before is not None and site_rows.REVOKED in SITE_TRANSITIONS[before]:
                site_rows.revoke(session, site, before, change)
                self._shut_out(session, site, now)
            elif withdrawn:
                record(session, change, "invited", site_rows.REVOKED)
            else:
                raise WrongState(f"site {site!r} {'has left' if before is site_rows.LEFT else 'is revoked'} already")

    def leave(self, site: str) -> None:
        """Let an authenticated site leave for good. A second call, after a lost answer, changes nothing.

        Raises:
            LostRace: When the coordinator has revoked it a moment ago.
        """
        now = self.clock()
        with self.store.write() as session:
            before = site_rows.standing(site_rows.get(session, site))
            if before is site_rows.LEFT:
                return
            site_rows.leave(session, site, before, _own(site, now, "left for good"))
            site_rows.withdraw_invitation(session, site)
            site_rows.withdraw_candidate(session, site)
            self._shut_out(session, site, now)

    def challenge(self, request: enrolment_pb2.ChallengeRequest) -> enrolment_pb2.ChallengeReply:
        """Make a nonce for a site whose certificate has expired. Every name gets one; no row is read or written."""
        nonce = make_challenge(self.authority.challenge_key, request.site, self.clock(), self.random)
        return enrolment_pb2.ChallengeReply(nonce=nonce)

    def recover(self, request: enrolment_pb2.RecoverRequest) -> enrolment_pb2.Credentials:
        """Issue credentials for a challenge that the enrolled key has signed. A nonce serves once, a site a few times.

        Raises:
            JoinDenied: For a nonce that is not ours, expired or used, a wrong signature, or when no recovery is left. A
                wrong signature spends neither nonce nor recovery.
        """
        read_csr(request.csr_der)
        ends_at = challenge_ends_at(self.authority.challenge_key, request.site, request.nonce)
        now = self.clock().replace(microsecond=0)
        # Strangers know names, and get nonces for the asking. So before the signature is checked nothing is spent, and
        # they do not get the lock of the writers.
        with self.store.read() as session:
            site = site_rows.find(session, request.site)
        # Checked for an unknown name, too: neither the answer nor its time tells which names exist.
        is_active = site is not None and site_rows.standing(site) in site_rows.MEMBERS
        check_recovery(site.signing_key if site is not None and is_active else KEY_OF_NOBODY, request)
        if ends_at <= self.clock():
            raise JoinDenied(CHALLENGE_REFUSED)
        with self.store.write() as session:
            site = _active_site(session, request.site)
            # Once more: a host with other keys may have joined under this name in between.
            check_recovery(site.signing_key, request)
            try:
                row = Challenge(nonce=request.nonce, site=site.name, expires_at=ends_at)
                site_rows.use_challenge(session, row, self.clock())
            except LostRace:
                raise JoinDenied(CHALLENGE_REFUSED) from None
            try:
                site_rows.spend_recovery(session, site.name, _own(site.name, now, "answered a challenge"))
            except LostRace:
                raise JoinDenied("no recovery is left; ask the coordinator to revoke and invite this site") from None
            return self._credentials(session, self._issue(session, site.name, request.csr_der, now))

    def renew(self, site: str, request: enrolment_pb2.RenewRequest) -> enrolment_pb2.Credentials:
        """Issue the next certificate of an authenticated site; the one before stays good until it expires.

        Raises:
            JoinDenied: For a malformed request, or when the site was revoked in between.
        """
        read_csr(request.csr_der)
        now = self.clock().replace(microsecond=0)
        with self.store.write() as session:
            # Once more, in this transaction: the coordinator may have revoked it since the call was authenticated.
            _active_site(session, site)
            issued = self._issue(session, site, request.csr_der, now)
            record(session, _own(site, now, "certificate renewed"), None, "renewed")
            return self._credentials(session, issued)

    def roster(self) -> enrolment_pb2.SignedRoster:
        """Return the roster in force.

        Raises:
            NotFound: Before the first site is approved.
        """
        with self.store.read() as session:
            return _newest_roster(session)

    def _admit(
        self, session: Session, request: enrolment_pb2.JoinRequest, invitation: Invitation, now: datetime
    ) -> None:
        # One host under two names would count twice toward the minimum of a cohort.
        others = [site for site in site_rows.all_sites(session) if site.name != request.site]
        others = [site for site in others if site.name != invitation.replaces]
        if any(site.signing_key == request.signing_key or site.sealing_key == request.sealing_key for site in others):
            raise JoinDenied("these keys belong to another site already; make new ones on this host")
        now = now.replace(microsecond=0)
        keys = {
            "csr_der": request.csr_der,
            "signing_key": request.signing_key,
            "sealing_key": request.sealing_key,
            "fingerprint": six_words(request.csr_der, request.signing_key, request.sealing_key),
        }
        change = self._cause(now, "invited with automatic approval").of(f"site:{request.site}")
        joined = site_rows.find(session, request.site)
        if joined is not None and site_rows.standing(joined) in site_rows.MEMBERS:
            # The keys in force stay so until a person has compared the words: the token alone shuts nobody out.
            candidate = Candidate(site=request.site, joined_at=now, **keys)
            site_rows.put_candidate(session, candidate)
            record(session, _own(request.site, now, "joined with its token"), "invited", "new keys")
            session.flush()
            if invitation.auto_approve:
                self._rekey(session, candidate, change)
            return
        # A new row over an old one: a site that comes back after it was revoked begins as pending, with its new keys.
        times = {"approved_at": None, "revoked_at": None, "left_at": None, "suspended_at": None}
        row = Site(name=request.site, joined_at=now, recoveries_left=self.settings.recoveries, **times, **keys)
        site_rows.put_site(session, row)
        record(session, _own(request.site, now, "joined with its token"), "invited", site_rows.PENDING)
        session.flush()
        if invitation.auto_approve:
            self._approve(session, site_rows.get(session, request.site), row.fingerprint, change)

    def _rekey(self, session: Session, candidate: Candidate, change: Change) -> None:
        """Put new keys into force here. Rounds take the site again once a roster of the custodian's holds them."""
        # First: a certificate of before must not outlive the keys that it came with.
        self._shut_out(session, candidate.site, change.at)
        site_rows.rekey(session, candidate, self.settings.recoveries, change)
        self._issue(session, candidate.site, candidate.csr_der, change.at)

    def _approve(self, session: Session, site: Site, fingerprint: str, change: Change) -> None:
        self._expect_no_other_name(session, site.name)
        site_rows.approve(session, site.name, fingerprint, change)
        session.refresh(site)
        self._issue(session, site.name, site.csr_der, change.at)
        invitation = site_rows.invitation(session, site.name)
        if invitation is None or invitation.replaces in (None, site.name):
            return
        replaced = site_rows.get(session, invitation.replaces)
        before = site_rows.standing(replaced)
        if before in site_rows.MEMBERS:
            if before is site_rows.SUSPENDED:
                # The suspension is the hospital's; another name does not end it.
                site_rows.suspend(session, site.name, change)
            gone = Cause(change.at, change.actor, f"has the name {site.name} now").of(f"site:{invitation.replaces}")
            site_rows.revoke(session, invitation.replaces, before, gone)
            # Either would let the old name in again.
            site_rows.withdraw_invitation(session, invitation.replaces)
            site_rows.withdraw_candidate(session, invitation.replaces)
            self._shut_out(session, invitation.replaces, change.at)

    def _expect_no_other_name(self, session: Session, name: str) -> None:
        """Refuse a second new name of one site: it would count twice.

        Raises:
            WrongState: When another site that was approved has taken the place of the same one.
        """
        invitation = site_rows.invitation(session, name)
        if invitation is None or invitation.replaces in (None, name):
            return
        for other in site_rows.invitations(session):
            if other.site in (name, other.replaces) or other.replaces != invitation.replaces:
                continue
            taken = site_rows.find(session, other.site)
            if taken is not None and site_rows.standing(taken) in site_rows.MEMBERS:
                raise WrongState(
                    f"expected one new name of {invitation.replaces}, got {name} beside {other.site}, which is "
                    "approved; `site revoke` the one that is wrong"
                )

    def _issue(self, session: Session, site: str, csr_der: bytes, now: datetime) -> SiteCertificate:
        expires_at = now + timedelta(days=self.settings.certificate_days)
        issued = self.authority.issue_site_certificate(site, csr_der, now, expires_at)
        row = Certificate(fingerprint=issued.fingerprint, site=site, issued_at=now, expires_at=expires_at)
        site_rows.add_certificate(session, row)
        return issued

    def _shut_out(self, session: Session, site: str, now: datetime) -> None:
        """Void everything that the site holds. No round takes it any more, whatever roster is in force."""
        site_rows.end_certificates(session, site, now)

    def _cause(self, at: datetime, why: str) -> Cause:
        return Cause(at, self.actor, why)

    def _join_reply(self, session: Session, site: Site, signing_key: bytes) -> enrolment_pb2.JoinReply:
        """Answer the host whose keys those are; for a site with other keys in force it waits as a candidate."""
        is_own = site.signing_key == signing_key and is_listed(session, site)
        match site_rows.standing(site):
            case site_rows.APPROVED | site_rows.SUSPENDED if is_own:
                return enrolment_pb2.JoinReply(credentials=self._credentials(session, self._first(session, site)))
            # An approved site waits, too: without a roster that holds its keys it could verify nothing.
            case site_rows.PENDING | site_rows.APPROVED | site_rows.SUSPENDED:
                pending = enrolment_pb2.Pending(retry_after_s=self.settings.retry_after_s)
                return enrolment_pb2.JoinReply(pending=pending)
            case _:
                raise JoinDenied(_UNKNOWN)

    def _first(self, session: Session, site: Site) -> SiteCertificate:
        """Make the certificate of the approval once more: its row holds the dates, and the rest follows from them."""
        # approve() sets approved_at and adds the certificate's row in one transaction, and standing() saw approved_at.
        assert site.approved_at is not None
        # By its time: a renewed certificate of the site has another, and a repeated Join must not get that one.
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


def _own(site: str, at: datetime, why: str) -> Change:
    """A change that a site makes to its own row."""
    return Cause(at, f"site:{site}", why).of(f"site:{site}")


def _invited(session: Session, request: enrolment_pb2.JoinRequest) -> Invitation:
    """Return the invitation whose secret the host holds."""
    invitation = site_rows.invitation(session, request.site)
    # Constant time, and one sentence for all cases: the caller may be guessing names or secrets.
    if invitation is None or not hmac.compare_digest(invitation.secret_hash, hashed(request.secret)):
        raise JoinDenied(_UNKNOWN)
    return invitation


def _active_site(session: Session, name: str) -> Site:
    # One sentence for a name that never joined and for one that is out: the caller may be a stranger.
    site = site_rows.find(session, name)
    if site is None or site_rows.standing(site) not in site_rows.MEMBERS:
        raise JoinDenied("no active site of that name; ask the coordinator for an invitation")
    return site


def _member(session: Session, name: str) -> Site:
    """Return the site of that name whose keys are in force.

    Raises:
        NotFound: When no such site has joined.
        WrongState: When its keys are not in force.
    """
    site = site_rows.get(session, name)
    if site_rows.standing(site) not in site_rows.MEMBERS:
        raise WrongState(f"expected an approved site, got {name!r}: {site_rows.standing(site)}; `site invite` it")
    return site


def _newest_roster(session: Session) -> enrolment_pb2.SignedRoster:
    row = site_rows.newest_roster(session)
    if row is None:
        raise NotFound("no roster yet: no site has been approved")
    return parse(enrolment_pb2.SignedRoster, row.signed)


_UNKNOWN = "no such invitation: the token is unknown, withdrawn or replaced; ask the coordinator for a new one"
