"""How a site's membership ends, by the coordinator's word or its own, and what its certificate is worth afterwards."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from federation.v1 import enrolment_pb2

from aggregator.errors import JoinDenied, LostRace, NotEnrolled, NotFound, SiteLeft, SiteRevoked, WrongState
from aggregator.sites.authentication import authenticate
from aggregator.sites.authority import create_authority
from aggregator.sites.enrolment import EnrolmentService
from tests.aggregator.desk import audit_of, enroll, roster_of

# --- revoke, and authentication on every call ---


def test_a_revocation_counts_from_the_next_call_on(desk: EnrolmentService, host, other_host, clock) -> None:
    credentials = enroll(desk, host)
    enroll(desk, other_host, "charite")
    assert authenticate(desk.store, credentials.certificate_pem, clock()) == "st-mary"
    desk.revoke("st-mary")
    with pytest.raises(SiteRevoked):
        authenticate(desk.store, credentials.certificate_pem, clock())
    roster = roster_of(desk, desk.roster())
    assert (roster.epoch, [entry.site for entry in roster.entries]) == (3, ["charite"])


def test_a_revocation_closes_every_way_back(desk: EnrolmentService, host) -> None:
    token = desk.invite("st-mary", auto_approve=True)
    desk.join(host.join_request(token))
    nonce = desk.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    desk.revoke("st-mary")
    for way in (
        lambda: desk.join(host.join_request(token)),
        lambda: desk.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")),
        lambda: desk.recover(host.recover_request("st-mary", nonce)),
        lambda: desk.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=host.csr())),
    ):
        with pytest.raises(JoinDenied):
            way()


def test_a_revoked_site_that_is_invited_again_starts_over_and_its_old_certificate_stays_dead(
    desk: EnrolmentService, host, other_host, clock
) -> None:
    old = enroll(desk, host).certificate_pem
    desk.revoke("st-mary")
    clock.advance(minutes=1)
    new = enroll(desk, other_host).certificate_pem
    assert authenticate(desk.store, new, clock()) == "st-mary"
    with pytest.raises(NotEnrolled):
        authenticate(desk.store, old, clock())
    assert roster_of(desk, desk.roster()).signing_keys == {"st-mary": other_host.signing_public}


def test_revoking_a_pending_host_or_an_invitation_makes_no_roster(desk: EnrolmentService, host) -> None:
    desk.invite("charite")
    desk.revoke("charite")
    assert audit_of(desk, "charite") == [(None, "invited"), ("invited", "revoked")]
    request = host.join_request(desk.invite("st-mary"))
    desk.join(request)
    desk.revoke("st-mary")
    with pytest.raises(JoinDenied):
        desk.join(request)
    with pytest.raises(NotFound):
        desk.roster()


def test_revoking_twice_or_nobody_is_refused(desk: EnrolmentService, host) -> None:
    with pytest.raises(NotFound):
        desk.revoke("st-mary")
    enroll(desk, host)
    desk.revoke("st-mary")
    with pytest.raises(WrongState, match="revoked already"):
        desk.revoke("st-mary")


# --- leave ---


def test_a_farewell_counts_from_the_next_call_on_and_closes_every_way_back(
    desk: EnrolmentService, host, other_host, clock
) -> None:
    token = desk.invite("st-mary", auto_approve=True)
    credentials = desk.join(host.join_request(token)).credentials
    enroll(desk, other_host, "charite")
    nonce = desk.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    desk.leave("st-mary")
    with pytest.raises(SiteLeft, match="new invitation"):
        authenticate(desk.store, credentials.certificate_pem, clock())
    roster = roster_of(desk, desk.roster())
    assert (roster.epoch, [entry.site for entry in roster.entries]) == (3, ["charite"])
    for way in (
        lambda: desk.join(host.join_request(token)),
        lambda: desk.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")),
        lambda: desk.recover(host.recover_request("st-mary", nonce)),
        lambda: desk.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=host.csr())),
    ):
        with pytest.raises(JoinDenied):
            way()
    assert audit_of(desk)[-1] == ("approved", "left")


def test_a_farewell_said_twice_changes_nothing_more(desk: EnrolmentService, host) -> None:
    enroll(desk, host)
    desk.leave("st-mary")
    before = audit_of(desk), roster_of(desk, desk.roster()).epoch
    desk.leave("st-mary")
    assert (audit_of(desk), roster_of(desk, desk.roster()).epoch) == before


def test_neither_a_revoked_nor_a_pending_site_leaves(desk: EnrolmentService, host, other_host) -> None:
    enroll(desk, host)
    desk.revoke("st-mary")
    desk.join(other_host.join_request(desk.invite("charite")))
    for name in ("st-mary", "charite"):
        with pytest.raises(LostRace):
            desk.leave(name)


def test_a_site_that_left_is_invited_again_and_starts_over_even_within_the_second(
    desk: EnrolmentService, host, other_host, clock
) -> None:
    old = enroll(desk, host).certificate_pem
    desk.leave("st-mary")
    with pytest.raises(WrongState, match="has left already"):
        desk.revoke("st-mary")
    new = enroll(desk, replace(host, tls_key=other_host.tls_key)).certificate_pem
    assert authenticate(desk.store, new, clock()) == "st-mary"
    with pytest.raises(NotEnrolled):
        authenticate(desk.store, old, clock())
    told = [(None, "invited"), ("invited", "pending"), ("pending", "approved")]
    assert audit_of(desk) == [*told, ("approved", "left"), *told]


def test_an_invitation_of_a_site_that_is_out_can_be_withdrawn(desk: EnrolmentService, host) -> None:
    enroll(desk, host)
    desk.leave("st-mary")
    token = desk.invite("st-mary")
    desk.revoke("st-mary")
    with pytest.raises(JoinDenied, match="no such invitation"):
        desk.join(host.join_request(token))
    assert audit_of(desk)[-1] == ("invited", "revoked")


def test_a_certificate_that_is_none_foreign_or_expired_is_refused_in_the_same_words(
    desk: EnrolmentService, host, other_host, tmp_path: Path, clock
) -> None:
    ours = enroll(desk, host).certificate_pem
    foreign = create_authority(tmp_path / "other-ca", clock)
    forged = foreign.issue_site_certificate("st-mary", other_host.csr(), clock(), clock() + timedelta(days=30)).pem
    told = set()
    for pem in (forged, b"no certificate", b"\xff"):
        with pytest.raises(NotEnrolled) as refused:
            authenticate(desk.store, pem, clock())
        told.add(str(refused.value))
    clock.advance(days=30)
    with pytest.raises(NotEnrolled) as refused:
        authenticate(desk.store, ours, clock())
    assert {str(refused.value)} == told
    for none in (None, b""):
        with pytest.raises(NotEnrolled, match="got none"):
            authenticate(desk.store, none, clock())
