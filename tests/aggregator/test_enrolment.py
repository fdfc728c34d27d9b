"""Enrolment: each call works, for the wrong caller, in the wrong state, twice; and the races."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from federation.errors import FederationError
from federation.fingerprint import six_words
from federation.token import Token
from federation.v1 import enrolment_pb2

from aggregator import config
from aggregator.errors import JoinDenied, LostRace, NotEnrolled, NotFound, WrongState
from aggregator.sites.authentication import authenticate
from aggregator.sites.authority import create_authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.store import open_store, site_rows
from aggregator.store.tables import Challenge, Invitation
from tests.aggregator.conftest import Host, StandingClock
from tests.aggregator.enrolment_helpers import audit_of, enroll, roster_of, sign, words_of
from tests.custodian import CUSTODIAN

# --- invite ---


def test_an_invitation_keeps_only_a_hash_of_the_secret(enrolment: EnrolmentService, tmp_path: Path) -> None:
    token = enrolment.invite("st-mary")
    assert token.ca_fingerprint == enrolment.authority.fingerprint
    with enrolment.store.read() as session:
        row = session.get(Invitation, "st-mary")
        assert row is not None
        assert row.secret_hash == sha256(token.secret).digest()
    held = b"".join(path.read_bytes() for path in tmp_path.glob("hub.sqlite*"))
    assert token.secret not in held
    assert sha256(token.secret).digest() in held


def test_the_printed_token_reads_back_and_a_typo_in_it_does_not(enrolment: EnrolmentService) -> None:
    text = enrolment.invite("st-mary").text()
    assert Token.parse(text).site == "st-mary"
    for index in (4, 12, 70, len(text) - 1):
        typo = text[:index] + ("a" if text[index] != "a" else "b") + text[index + 1 :]
        with pytest.raises(FederationError):
            Token.parse(typo)


@pytest.mark.parametrize("name", ["", "St-Mary", "a b", "../etc", "-mary", "x" * 33, "märy"])
def test_a_name_that_is_none_is_not_invited(enrolment: EnrolmentService, name: str) -> None:
    with pytest.raises(FederationError):
        enrolment.invite(name)


def test_an_approved_site_is_not_invited_again(enrolment: EnrolmentService, host: Host) -> None:
    enroll(enrolment, host)
    with pytest.raises(WrongState, match="rekey"):
        enrolment.invite("st-mary")


def test_a_second_invitation_replaces_the_first(enrolment: EnrolmentService, host: Host) -> None:
    first, second = enrolment.invite("st-mary"), enrolment.invite("st-mary")
    with pytest.raises(JoinDenied, match="no such invitation"):
        enrolment.join(host.join_request(first))
    assert enrolment.join(host.join_request(second)).HasField("pending")


# --- join ---


def test_a_host_is_pending_until_approved_and_then_gets_what_it_needs(
    enrolment: EnrolmentService, host: Host, clock: StandingClock
) -> None:
    request = host.join_request(enrolment.invite("st-mary"))
    assert enrolment.join(request).pending.retry_after_s == enrolment.settings.retry_after_s
    assert words_of(enrolment) == six_words(request.csr_der, request.signing_key, request.sealing_key)
    clock.advance(hours=1)
    enrolment.approve("st-mary", words_of(enrolment))
    assert enrolment.join(request).HasField("pending")  # the custodian has not signed yet
    sign(enrolment)
    credentials = enrolment.join(request).credentials
    certificate = x509.load_pem_x509_certificate(credentials.certificate_pem)
    assert certificate.public_key() == host.tls_key.public_key()
    assert credentials.ca_certificate_pem == enrolment.authority.certificate_pem
    assert [entry.site for entry in roster_of(enrolment, credentials.roster).entries] == ["st-mary"]
    assert authenticate(enrolment.store, credentials.certificate_pem, clock()) == "st-mary"
    assert audit_of(enrolment) == [(None, "invited"), ("invited", "pending"), ("pending", "approved")]


def test_the_same_join_again_gets_the_same_bytes_even_days_later(
    enrolment: EnrolmentService, host: Host, clock: StandingClock
) -> None:
    request = host.join_request(enrolment.invite("st-mary"))
    enrolment.join(request)
    clock.advance(days=3)  # longer than the token lives: it was used in time
    assert enrolment.join(request).HasField("pending")
    enrolment.approve("st-mary", words_of(enrolment))
    sign(enrolment)
    first = enrolment.join(request)
    clock.advance(days=2)
    assert enrolment.join(request) == first
    assert authenticate(enrolment.store, first.credentials.certificate_pem, clock()) == "st-mary"


def test_a_renewal_in_between_does_not_change_what_joining_again_returns(
    enrolment: EnrolmentService, host: Host, clock: StandingClock
) -> None:
    request = host.join_request(enrolment.invite("st-mary", auto_approve=True))
    enrolment.join(request)
    sign(enrolment)
    first = enrolment.join(request)
    clock.advance(days=20)
    enrolment.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=host.csr()))
    assert enrolment.join(request).credentials.certificate_pem == first.credentials.certificate_pem


def test_a_used_token_is_refused_to_another_host(enrolment: EnrolmentService, host: Host, other_host: Host) -> None:
    token = enrolment.invite("st-mary")
    enrolment.join(host.join_request(token))
    with pytest.raises(JoinDenied, match="used by another host"):
        enrolment.join(other_host.join_request(token))
    assert words_of(enrolment) == six_words(host.csr(), host.signing_public, host.sealing_key)


def test_a_token_expires_after_a_day_unused(enrolment: EnrolmentService, host: Host, clock: StandingClock) -> None:
    token = enrolment.invite("st-mary")
    clock.advance(hours=24)
    with pytest.raises(JoinDenied, match="expired"):
        enrolment.join(host.join_request(token))
    with enrolment.store.read() as session:
        assert site_rows.find(session, "st-mary") is None


def test_a_token_is_good_until_its_last_second(enrolment: EnrolmentService, host: Host, clock: StandingClock) -> None:
    token = enrolment.invite("st-mary")
    clock.advance(hours=23, minutes=59, seconds=59)
    assert enrolment.join(host.join_request(token)).HasField("pending")


def test_a_token_is_bound_to_its_name(enrolment: EnrolmentService, host: Host) -> None:
    token = enrolment.invite("st-mary")
    enrolment.invite("charite")
    for name in ("charite", "nobody"):
        with pytest.raises(JoinDenied, match="no such invitation"):
            enrolment.join(host.join_request(replace(token, site=name)))


def test_a_guessed_secret_is_refused_and_leaves_the_invitation_usable(enrolment: EnrolmentService, host: Host) -> None:
    token = enrolment.invite("st-mary")
    with pytest.raises(JoinDenied):
        enrolment.join(host.join_request(replace(token, secret=bytes(32))))
    assert enrolment.join(host.join_request(token)).HasField("pending")


def test_a_token_of_another_consortium_is_refused(
    enrolment: EnrolmentService, host: Host, tmp_path: Path, clock: StandingClock
) -> None:
    foreign = create_authority(tmp_path / "other-ca", clock, CUSTODIAN.public_key())
    token = Token.new("st-mary", foreign.fingerprint, os.urandom)
    assert token.ca_fingerprint != enrolment.authority.fingerprint  # the host sees that before it sends anything
    ours = enrolment.invite("st-mary")
    with pytest.raises(JoinDenied, match="no such invitation"):
        enrolment.join(host.join_request(token))
    assert enrolment.join(host.join_request(ours)).HasField("pending")


def test_keys_that_belong_to_another_site_are_refused(enrolment: EnrolmentService, host: Host) -> None:
    enroll(enrolment, host)
    with pytest.raises(JoinDenied, match="another site"):
        enrolment.join(host.join_request(enrolment.invite("charite")))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda request, other: request.ClearField("possession"),
        lambda request, other: setattr(request, "possession", bytes(64)),
        lambda request, other: setattr(request, "csr_der", other.csr()),
        lambda request, other: setattr(request, "sealing_key", other.sealing_key),
        lambda request, other: setattr(request, "signing_key", other.signing_public),
        lambda request, other: setattr(request, "sealing_key", bytes(1215)),
        lambda request, other: setattr(request, "signing_key", bytes(31)),
        lambda request, other: setattr(request, "secret", b""),
        lambda request, other: setattr(request, "csr_der", b"no request"),
    ],
    ids=["no proof", "zeros", "csr", "sealing", "signing", "short sealing", "short signing", "no secret", "no csr"],
)
def test_a_request_that_does_not_prove_its_keys_is_refused_and_spends_nothing(
    enrolment: EnrolmentService, host: Host, other_host: Host, spoil: Callable[[enrolment_pb2.JoinRequest, Host], None]
) -> None:
    token = enrolment.invite("st-mary")
    request = host.join_request(token)
    spoil(request, other_host)
    with pytest.raises(JoinDenied):
        enrolment.join(request)
    assert enrolment.join(host.join_request(token)).HasField("pending")


def test_of_two_joins_racing_for_one_token_exactly_one_is_admitted(
    enrolment: EnrolmentService, host: Host, other_host: Host, tmp_path: Path
) -> None:
    """Two threads with a connection each, a barrier, and the same token; the loser is told so."""
    for attempt in range(5):
        name = f"site-{attempt}"
        token, barrier = enrolment.invite(name), threading.Barrier(2)
        outcomes: list[str] = []

        def join(
            machine: Host,
            token: Token = token,
            barrier: threading.Barrier = barrier,
            outcomes: list[str] = outcomes,
        ) -> None:
            mine = replace(enrolment, store=open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}"))
            request = machine.join_request(token)
            barrier.wait()
            try:
                mine.join(request)
                outcomes.append("pending")
            except JoinDenied:
                outcomes.append("denied")
            finally:
                mine.store.close()

        threads = [threading.Thread(target=join, args=(machine,)) for machine in (host, other_host)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["denied", "pending"]
        assert audit_of(enrolment, name) == [(None, "invited"), ("invited", "pending")]
        enrolment.revoke(name)
        host, other_host = type(host)(), type(other_host)()


# --- approve ---


def test_a_signed_roster_has_the_sites_approved_until_then(
    enrolment: EnrolmentService, host: Host, other_host: Host
) -> None:
    with pytest.raises(NotFound):
        enrolment.roster()
    enroll(enrolment, host)
    enroll(enrolment, other_host, "charite")
    roster = roster_of(enrolment, enrolment.roster())
    assert (roster.epoch, [entry.site for entry in roster.entries]) == (2, ["charite", "st-mary"])
    assert roster.signing_keys["st-mary"] == host.signing_public


def test_approving_words_that_changed_meanwhile_is_refused(
    enrolment: EnrolmentService, host: Host, other_host: Host
) -> None:
    """The coordinator read the words, then a second invitation let another host take the pending place."""
    enrolment.join(host.join_request(enrolment.invite("st-mary")))
    read_aloud = words_of(enrolment)
    enrolment.join(other_host.join_request(enrolment.invite("st-mary")))
    with pytest.raises(LostRace):
        enrolment.approve("st-mary", read_aloud)
    with pytest.raises(NotFound):
        enrolment.roster()


def test_approving_twice_nobody_or_a_revoked_site_is_refused(enrolment: EnrolmentService, host: Host) -> None:
    with pytest.raises(NotFound):
        enrolment.approve("st-mary", "words")
    enroll(enrolment, host)
    with pytest.raises(WrongState, match="approved"):
        enrolment.approve("st-mary", words_of(enrolment))
    enrolment.revoke("st-mary")
    with pytest.raises(WrongState, match="revoked"):
        enrolment.approve("st-mary", words_of(enrolment))


# --- renew ---


def test_a_renewed_certificate_works_beside_the_old_one(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    old = enroll(enrolment, host).certificate_pem
    clock.advance(days=20)
    # A new key is fine: what counts is who asks.
    new = enrolment.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=other_host.csr())).certificate_pem
    assert authenticate(enrolment.store, old, clock()) == authenticate(enrolment.store, new, clock()) == "st-mary"
    clock.advance(days=15)
    assert authenticate(enrolment.store, new, clock()) == "st-mary"
    with pytest.raises(NotEnrolled):
        authenticate(enrolment.store, old, clock())


def test_renewing_twice_at_once_gives_one_certificate(
    enrolment: EnrolmentService, host: Host, clock: StandingClock
) -> None:
    enroll(enrolment, host)
    clock.advance(days=20)
    request = enrolment_pb2.RenewRequest(csr_der=host.csr())
    assert enrolment.renew("st-mary", request) == enrolment.renew("st-mary", request)


def test_a_bad_request_or_a_pending_site_is_not_renewed(enrolment: EnrolmentService, host: Host) -> None:
    enroll(enrolment, host)
    with pytest.raises(JoinDenied):
        enrolment.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=b"junk"))
    enrolment.join(type(host)().join_request(enrolment.invite("charite")))
    with pytest.raises(JoinDenied):
        enrolment.renew("charite", enrolment_pb2.RenewRequest(csr_der=host.csr()))


# --- challenge and recover ---


def test_a_site_comes_back_after_seven_weeks_off(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    old = enroll(enrolment, host).certificate_pem
    enroll(enrolment, other_host, "charite")  # the roster grew meanwhile
    clock.advance(weeks=7)
    with pytest.raises(NotEnrolled):
        authenticate(enrolment.store, old, clock())
    nonce = enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    clock.advance(minutes=4)
    credentials = enrolment.recover(host.recover_request("st-mary", nonce))
    assert authenticate(enrolment.store, credentials.certificate_pem, clock()) == "st-mary"
    assert roster_of(enrolment, credentials.roster).epoch == 2
    assert audit_of(enrolment)[-1] == (None, "recovered")


def test_a_challenge_serves_once_for_one_site_and_five_minutes(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    enroll(enrolment, host)
    enroll(enrolment, other_host, "charite")
    nonce = enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    with pytest.raises(JoinDenied):  # somebody else's challenge
        enrolment.recover(other_host.recover_request("charite", nonce))
    enrolment.recover(host.recover_request("st-mary", nonce))
    with pytest.raises(JoinDenied, match="used"):
        enrolment.recover(host.recover_request("st-mary", nonce))
    late = enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    clock.advance(minutes=5)
    with pytest.raises(JoinDenied, match="5 minutes"):
        enrolment.recover(host.recover_request("st-mary", late))


def test_a_wrong_signature_spends_neither_challenge_nor_recovery(
    enrolment: EnrolmentService, host: Host, other_host: Host
) -> None:
    enroll(enrolment, host)
    nonce = enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    with pytest.raises(JoinDenied, match="signature"):
        enrolment.recover(other_host.recover_request("st-mary", nonce))
    moved = host.recover_request("st-mary", nonce)
    moved.csr_der = other_host.csr()  # the signature covers the request, so another key cannot be slipped in
    with pytest.raises(JoinDenied, match="signature"):
        enrolment.recover(moved)
    assert enrolment.recover(host.recover_request("st-mary", nonce)).certificate_pem
    with enrolment.store.read() as session:
        assert site_rows.get(session, "st-mary").recoveries_left == enrolment.settings.recoveries - 1


def test_recoveries_are_limited(enrolment: EnrolmentService, host: Host) -> None:
    scarce = replace(enrolment, settings=config.EnrolmentSettings(recoveries=2))
    enroll(scarce, host)
    for _ in range(2):
        nonce = scarce.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
        scarce.recover(host.recover_request("st-mary", nonce))
    nonce = scarce.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    with pytest.raises(JoinDenied, match="no recovery is left"):
        scarce.recover(host.recover_request("st-mary", nonce))


def test_a_challenge_tells_nothing_of_a_name_and_no_name_recovers_with_anothers_key(
    enrolment: EnrolmentService, host: Host, other_host: Host
) -> None:
    """Known, pending and unknown names: the same shape of nonce, and the same refusal of a signature."""
    enroll(enrolment, host)
    enrolment.join(other_host.join_request(enrolment.invite("charite")))
    refusals = set()
    for name in ("st-mary", "charite", "nobody"):
        nonce = enrolment.challenge(enrolment_pb2.ChallengeRequest(site=name)).nonce
        assert len(nonce) == 32
        with pytest.raises(JoinDenied) as refused:
            enrolment.recover(type(host)().recover_request(name, nonce))
        refusals.add(str(refused.value))
    assert len(refusals) == 1


def test_challenges_write_no_row_and_a_flood_of_them_displaces_none(enrolment: EnrolmentService, host: Host) -> None:
    enroll(enrolment, host)
    first = enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    # A writer holds the lock: a challenge that wrote would wait for it.
    with enrolment.store.write():
        nonces = [enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce for _ in range(1000)]
    assert len({first, *nonces}) == 1001
    with enrolment.store.read() as session:
        assert session.query(Challenge).count() == 0
    for nonce in (nonces[500], first):
        assert enrolment.recover(host.recover_request("st-mary", nonce)).certificate_pem


def test_answered_challenges_are_forgotten_when_their_time_is_over(
    enrolment: EnrolmentService, host: Host, clock: StandingClock
) -> None:
    enroll(enrolment, host)
    for _ in range(2):
        nonce = enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
        enrolment.recover(host.recover_request("st-mary", nonce))
        clock.advance(minutes=6)
    with enrolment.store.read() as session:
        assert session.query(Challenge).count() == 1


@pytest.mark.parametrize("changed", [0, 7, 8, 15, 16, 31])
def test_a_challenge_that_was_changed_or_made_up_is_refused(
    enrolment: EnrolmentService, host: Host, changed: int
) -> None:
    enroll(enrolment, host)
    nonce = bytearray(enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce)
    nonce[changed] ^= 1
    for made_up in (bytes(nonce), b"", bytes(32), bytes(1000)):
        with pytest.raises(JoinDenied, match="this challenge is unknown"):
            enrolment.recover(host.recover_request("st-mary", made_up))
