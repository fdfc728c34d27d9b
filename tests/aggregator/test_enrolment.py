"""Enrolment: each call works, for the wrong caller, in the wrong state, twice; and the races."""

import os
import threading
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
from aggregator.errors import Denied, JoinDenied, LostRace, NotEnrolled, NotFound, WrongState
from aggregator.sites.authentication import authenticate
from aggregator.sites.authority import create_authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.store import open_store, site_rows
from aggregator.store.tables import Invitation
from tests.aggregator.desk import audit_of, enroll, roster_of, words_of

# --- invite ---


def test_an_invitation_keeps_only_a_hash_of_the_secret(desk: EnrolmentService, tmp_path: Path) -> None:
    token = desk.invite("st-mary")
    assert token.ca_fingerprint == desk.authority.fingerprint
    with desk.store.read() as session:
        row = session.get(Invitation, "st-mary")
        assert row is not None
        assert row.secret_hash == sha256(token.secret).digest()
    held = b"".join(path.read_bytes() for path in tmp_path.glob("hub.sqlite*"))
    assert token.secret not in held
    assert sha256(token.secret).digest() in held


def test_the_printed_token_reads_back_and_a_typo_in_it_does_not(desk: EnrolmentService) -> None:
    text = desk.invite("st-mary").text()
    assert Token.parse(text).site == "st-mary"
    for index in (4, 12, 70, len(text) - 1):
        typo = text[:index] + ("a" if text[index] != "a" else "b") + text[index + 1 :]
        with pytest.raises(FederationError):
            Token.parse(typo)


@pytest.mark.parametrize("name", ["", "St-Mary", "a b", "../etc", "-mary", "x" * 33, "märy"])
def test_a_name_that_is_none_is_not_invited(desk: EnrolmentService, name: str) -> None:
    with pytest.raises(FederationError):
        desk.invite(name)


def test_an_approved_site_is_not_invited_again(desk: EnrolmentService, host) -> None:
    enroll(desk, host)
    with pytest.raises(WrongState, match="revoke"):
        desk.invite("st-mary")


def test_a_second_invitation_replaces_the_first(desk: EnrolmentService, host) -> None:
    first, second = desk.invite("st-mary"), desk.invite("st-mary")
    with pytest.raises(JoinDenied, match="no such invitation"):
        desk.join(host.join_request(first))
    assert desk.join(host.join_request(second)).HasField("pending")


# --- join ---


def test_a_host_is_pending_until_approved_and_then_gets_what_it_needs(desk: EnrolmentService, host, clock) -> None:
    request = host.join_request(desk.invite("st-mary"))
    assert desk.join(request).pending.retry_after_s == desk.settings.retry_after_s
    assert words_of(desk) == six_words(request.csr_der, request.signing_key, request.sealing_key)
    clock.advance(hours=1)
    desk.approve("st-mary", words_of(desk))
    credentials = desk.join(request).credentials
    certificate = x509.load_pem_x509_certificate(credentials.certificate_pem)
    assert certificate.public_key() == host.tls_key.public_key()
    assert credentials.ca_certificate_pem == desk.authority.certificate_pem
    assert [entry.site for entry in roster_of(desk, credentials.roster).entries] == ["st-mary"]
    assert authenticate(desk.store, credentials.certificate_pem, clock()) == "st-mary"
    assert audit_of(desk) == [(None, "invited"), ("invited", "pending"), ("pending", "approved")]


def test_the_same_join_again_gets_the_same_bytes_even_days_later(desk: EnrolmentService, host, clock) -> None:
    request = host.join_request(desk.invite("st-mary"))
    desk.join(request)
    clock.advance(days=3)  # longer than the token lives: it was used in time
    assert desk.join(request).HasField("pending")
    desk.approve("st-mary", words_of(desk))
    first = desk.join(request)
    clock.advance(days=2)
    assert desk.join(request) == first
    assert authenticate(desk.store, first.credentials.certificate_pem, clock()) == "st-mary"


def test_a_renewal_in_between_does_not_change_what_joining_again_returns(desk: EnrolmentService, host, clock) -> None:
    request = host.join_request(desk.invite("st-mary", auto_approve=True))
    first = desk.join(request)
    clock.advance(days=20)
    desk.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=host.csr()))
    assert desk.join(request).credentials.certificate_pem == first.credentials.certificate_pem


def test_a_used_token_is_refused_to_another_host(desk: EnrolmentService, host, other_host) -> None:
    token = desk.invite("st-mary")
    desk.join(host.join_request(token))
    with pytest.raises(JoinDenied, match="used by another host"):
        desk.join(other_host.join_request(token))
    assert words_of(desk) == six_words(host.csr(), host.signing_public, host.sealing_key)


def test_a_token_expires_after_a_day_unused(desk: EnrolmentService, host, clock) -> None:
    token = desk.invite("st-mary")
    clock.advance(hours=24)
    with pytest.raises(JoinDenied, match="expired"):
        desk.join(host.join_request(token))
    with desk.store.read() as session:
        assert site_rows.find(session, "st-mary") is None


def test_a_token_is_good_until_its_last_second(desk: EnrolmentService, host, clock) -> None:
    token = desk.invite("st-mary")
    clock.advance(hours=23, minutes=59, seconds=59)
    assert desk.join(host.join_request(token)).HasField("pending")


def test_a_token_is_bound_to_its_name(desk: EnrolmentService, host) -> None:
    token = desk.invite("st-mary")
    desk.invite("charite")
    for name in ("charite", "nobody"):
        with pytest.raises(JoinDenied, match="no such invitation"):
            desk.join(host.join_request(replace(token, site=name)))


def test_a_guessed_secret_is_refused_and_leaves_the_invitation_usable(desk: EnrolmentService, host) -> None:
    token = desk.invite("st-mary")
    with pytest.raises(JoinDenied):
        desk.join(host.join_request(replace(token, secret=bytes(32))))
    assert desk.join(host.join_request(token)).HasField("pending")


def test_a_token_of_another_consortium_is_refused(desk: EnrolmentService, host, tmp_path: Path, clock) -> None:
    foreign = create_authority(tmp_path / "other-ca", clock)
    token = Token.new("st-mary", foreign.fingerprint, os.urandom)
    assert token.ca_fingerprint != desk.authority.fingerprint  # the host sees that before it sends anything
    ours = desk.invite("st-mary")
    with pytest.raises(JoinDenied, match="no such invitation"):
        desk.join(host.join_request(token))
    assert desk.join(host.join_request(ours)).HasField("pending")


def test_keys_that_belong_to_another_site_are_refused(desk: EnrolmentService, host) -> None:
    enroll(desk, host)
    with pytest.raises(JoinDenied, match="another site"):
        desk.join(host.join_request(desk.invite("charite")))


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
    desk: EnrolmentService, host, other_host, spoil
) -> None:
    token = desk.invite("st-mary")
    request = host.join_request(token)
    spoil(request, other_host)
    with pytest.raises(JoinDenied):
        desk.join(request)
    assert desk.join(host.join_request(token)).HasField("pending")


def test_of_two_joins_racing_for_one_token_exactly_one_is_admitted(
    desk: EnrolmentService, host, other_host, tmp_path: Path
):
    """Two threads with a connection each, a barrier, and the same token; the loser is told so."""
    for attempt in range(5):
        name = f"site-{attempt}"
        token, barrier, outcomes = desk.invite(name), threading.Barrier(2), []

        def join(machine, token=token, barrier=barrier, outcomes=outcomes) -> None:
            mine = replace(desk, store=open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}"))
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
        assert audit_of(desk, name) == [(None, "invited"), ("invited", "pending")]
        desk.revoke(name)
        host, other_host = type(host)(), type(other_host)()


# --- approve ---


def test_approving_makes_a_roster_epoch_with_one_site_more(desk: EnrolmentService, host, other_host) -> None:
    with pytest.raises(NotFound):
        desk.roster()
    enroll(desk, host)
    enroll(desk, other_host, "charite")
    roster = roster_of(desk, desk.roster())
    assert (roster.epoch, [entry.site for entry in roster.entries]) == (2, ["charite", "st-mary"])
    assert roster.signing_keys["st-mary"] == host.signing_public


def test_approving_words_that_changed_meanwhile_is_refused(desk: EnrolmentService, host, other_host) -> None:
    """The coordinator read the words, then a second invitation let another host take the pending place."""
    desk.join(host.join_request(desk.invite("st-mary")))
    read_aloud = words_of(desk)
    desk.join(other_host.join_request(desk.invite("st-mary")))
    with pytest.raises(LostRace):
        desk.approve("st-mary", read_aloud)
    with pytest.raises(NotFound):
        desk.roster()


def test_approving_twice_nobody_or_a_revoked_site_is_refused(desk: EnrolmentService, host) -> None:
    with pytest.raises(NotFound):
        desk.approve("st-mary", "words")
    enroll(desk, host)
    with pytest.raises(WrongState, match="approved"):
        desk.approve("st-mary", words_of(desk))
    desk.revoke("st-mary")
    with pytest.raises(WrongState, match="revoked"):
        desk.approve("st-mary", words_of(desk))


# --- renew ---


def test_a_renewed_certificate_works_beside_the_old_one(desk: EnrolmentService, host, other_host, clock) -> None:
    old = enroll(desk, host).certificate_pem
    clock.advance(days=20)
    # A new key is fine: what counts is who asks.
    new = desk.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=other_host.csr())).certificate_pem
    assert authenticate(desk.store, old, clock()) == authenticate(desk.store, new, clock()) == "st-mary"
    clock.advance(days=15)
    assert authenticate(desk.store, new, clock()) == "st-mary"
    with pytest.raises(NotEnrolled):
        authenticate(desk.store, old, clock())


def test_renewing_twice_at_once_gives_one_certificate(desk: EnrolmentService, host, clock) -> None:
    enroll(desk, host)
    clock.advance(days=20)
    request = enrolment_pb2.RenewRequest(csr_der=host.csr())
    assert desk.renew("st-mary", request) == desk.renew("st-mary", request)


def test_a_bad_request_or_a_pending_site_is_not_renewed(desk: EnrolmentService, host) -> None:
    enroll(desk, host)
    with pytest.raises(JoinDenied):
        desk.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=b"junk"))
    desk.join(type(host)().join_request(desk.invite("charite")))
    with pytest.raises(JoinDenied):
        desk.renew("charite", enrolment_pb2.RenewRequest(csr_der=host.csr()))


# --- challenge and recover ---


def test_a_site_comes_back_after_seven_weeks_off(desk: EnrolmentService, host, other_host, clock) -> None:
    old = enroll(desk, host).certificate_pem
    enroll(desk, other_host, "charite")  # the roster grew meanwhile
    clock.advance(weeks=7)
    with pytest.raises(NotEnrolled):
        authenticate(desk.store, old, clock())
    nonce = desk.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    clock.advance(minutes=4)
    credentials = desk.recover(host.recover_request("st-mary", nonce))
    assert authenticate(desk.store, credentials.certificate_pem, clock()) == "st-mary"
    assert roster_of(desk, credentials.roster).epoch == 2
    assert audit_of(desk)[-1] == (None, "recovered")


def test_a_challenge_serves_once_for_one_site_and_five_minutes(desk: EnrolmentService, host, other_host, clock) -> None:
    enroll(desk, host)
    enroll(desk, other_host, "charite")
    nonce = desk.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    with pytest.raises(JoinDenied):  # somebody else's challenge
        desk.recover(other_host.recover_request("charite", nonce))
    desk.recover(host.recover_request("st-mary", nonce))
    with pytest.raises(JoinDenied, match="used"):
        desk.recover(host.recover_request("st-mary", nonce))
    late = desk.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    clock.advance(minutes=5)
    with pytest.raises(JoinDenied, match="5 minutes"):
        desk.recover(host.recover_request("st-mary", late))


def test_a_wrong_signature_spends_neither_challenge_nor_recovery(desk: EnrolmentService, host, other_host) -> None:
    enroll(desk, host)
    nonce = desk.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    with pytest.raises(JoinDenied, match="signature"):
        desk.recover(other_host.recover_request("st-mary", nonce))
    moved = host.recover_request("st-mary", nonce)
    moved.csr_der = other_host.csr()  # the signature covers the request, so another key cannot be slipped in
    with pytest.raises(JoinDenied, match="signature"):
        desk.recover(moved)
    assert desk.recover(host.recover_request("st-mary", nonce)).certificate_pem
    with desk.store.read() as session:
        assert site_rows.get(session, "st-mary").recoveries_left == desk.settings.recoveries - 1


def test_recoveries_are_limited(desk: EnrolmentService, host) -> None:
    scarce = replace(desk, settings=config.EnrolmentSettings(recoveries=2))
    enroll(scarce, host)
    for _ in range(2):
        nonce = scarce.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
        scarce.recover(host.recover_request("st-mary", nonce))
    nonce = scarce.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    with pytest.raises(JoinDenied, match="no recovery is left"):
        scarce.recover(host.recover_request("st-mary", nonce))


def test_nobody_unknown_or_pending_gets_a_challenge(desk: EnrolmentService, host) -> None:
    desk.join(host.join_request(desk.invite("st-mary")))
    for name in ("st-mary", "nobody", ""):
        with pytest.raises(Denied, match="no active site"):
            desk.challenge(enrolment_pb2.ChallengeRequest(site=name))


def test_a_flood_of_challenges_leaves_few_rows_and_the_newest_good(desk: EnrolmentService, host) -> None:
    enroll(desk, host)
    nonces = [desk.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce for _ in range(70)]
    with desk.store.read() as session:
        assert sum(site_rows.challenge(session, nonce) is not None for nonce in nonces) == 64
    assert desk.recover(host.recover_request("st-mary", nonces[-1])).certificate_pem
