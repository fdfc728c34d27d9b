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
from tests.aggregator.conftest import Host, StandingClock
from tests.aggregator.enrolment_helpers import audit_of, eligible_of, enroll, roster_of, sign
from tests.custodian import CUSTODIAN

# --- revoke, and authentication on every call ---


def test_a_revocation_counts_from_the_next_call_on(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    credentials = enroll(enrolment, host)
    enroll(enrolment, other_host, "charite")
    assert authenticate(enrolment.store, credentials.certificate_pem, clock()) == "st-mary"
    enrolment.revoke("st-mary")
    with pytest.raises(SiteRevoked):
        authenticate(enrolment.store, credentials.certificate_pem, clock())
    assert eligible_of(enrolment) == ["charite"]  # at once, though the roster in force still lists it
    roster = roster_of(enrolment, sign(enrolment))
    assert (roster.epoch, [entry.site for entry in roster.entries]) == (3, ["charite"])


def test_a_revocation_closes_every_way_back(enrolment: EnrolmentService, host: Host) -> None:
    token = enrolment.invite("st-mary", auto_approve=True)
    enrolment.join(host.join_request(token))
    nonce = enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    enrolment.revoke("st-mary")
    for way in (
        lambda: enrolment.join(host.join_request(token)),
        lambda: enrolment.recover(host.recover_request("st-mary", nonce)),
        lambda: enrolment.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=host.csr())),
    ):
        with pytest.raises(JoinDenied):
            way()


def test_a_revoked_site_that_is_invited_again_starts_over_and_its_old_certificate_stays_dead(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    old = enroll(enrolment, host).certificate_pem
    enrolment.revoke("st-mary")
    clock.advance(minutes=1)
    new = enroll(enrolment, other_host).certificate_pem
    assert authenticate(enrolment.store, new, clock()) == "st-mary"
    with pytest.raises(NotEnrolled):
        authenticate(enrolment.store, old, clock())
    assert roster_of(enrolment, enrolment.roster()).signing_keys == {"st-mary": other_host.signing_public}


def test_revoking_a_pending_host_or_an_invitation_makes_no_roster(enrolment: EnrolmentService, host: Host) -> None:
    enrolment.invite("charite")
    enrolment.revoke("charite")
    assert audit_of(enrolment, "charite") == [(None, "invited"), ("invited", "revoked")]
    request = host.join_request(enrolment.invite("st-mary"))
    enrolment.join(request)
    enrolment.revoke("st-mary")
    with pytest.raises(JoinDenied):
        enrolment.join(request)
    with pytest.raises(NotFound):
        enrolment.roster()


def test_revoking_twice_or_nobody_is_refused(enrolment: EnrolmentService, host: Host) -> None:
    with pytest.raises(NotFound):
        enrolment.revoke("st-mary")
    enroll(enrolment, host)
    enrolment.revoke("st-mary")
    with pytest.raises(WrongState, match="revoked already"):
        enrolment.revoke("st-mary")


# --- leave ---


def test_a_farewell_counts_from_the_next_call_on_and_closes_every_way_back(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    token = enrolment.invite("st-mary", auto_approve=True)
    enrolment.join(host.join_request(token))
    enroll(enrolment, other_host, "charite")
    credentials = enrolment.join(host.join_request(token)).credentials
    nonce = enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    enrolment.leave("st-mary")
    with pytest.raises(SiteLeft, match="new invitation"):
        authenticate(enrolment.store, credentials.certificate_pem, clock())
    assert eligible_of(enrolment) == ["charite"]  # at once, though the roster in force still lists it
    roster = roster_of(enrolment, sign(enrolment))
    assert (roster.epoch, [entry.site for entry in roster.entries]) == (2, ["charite"])
    for way in (
        lambda: enrolment.join(host.join_request(token)),
        lambda: enrolment.recover(host.recover_request("st-mary", nonce)),
        lambda: enrolment.renew("st-mary", enrolment_pb2.RenewRequest(csr_der=host.csr())),
    ):
        with pytest.raises(JoinDenied):
            way()
    assert audit_of(enrolment)[-1] == ("approved", "left")


def test_a_farewell_said_twice_changes_nothing_more(enrolment: EnrolmentService, host: Host) -> None:
    enroll(enrolment, host)
    enrolment.leave("st-mary")
    before = audit_of(enrolment), roster_of(enrolment, enrolment.roster()).epoch
    enrolment.leave("st-mary")
    assert (audit_of(enrolment), roster_of(enrolment, enrolment.roster()).epoch) == before


def test_neither_a_revoked_nor_a_pending_site_leaves(enrolment: EnrolmentService, host: Host, other_host: Host) -> None:
    enroll(enrolment, host)
    enrolment.revoke("st-mary")
    enrolment.join(other_host.join_request(enrolment.invite("charite")))
    for name in ("st-mary", "charite"):
        with pytest.raises(LostRace):
            enrolment.leave(name)


def test_a_site_that_left_is_invited_again_and_starts_over_even_within_the_second(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    old = enroll(enrolment, host).certificate_pem
    enrolment.leave("st-mary")
    with pytest.raises(WrongState, match="has left already"):
        enrolment.revoke("st-mary")
    new = enroll(enrolment, replace(host, tls_key=other_host.tls_key)).certificate_pem
    assert authenticate(enrolment.store, new, clock()) == "st-mary"
    with pytest.raises(NotEnrolled):
        authenticate(enrolment.store, old, clock())
    told = [(None, "invited"), ("invited", "pending"), ("pending", "approved")]
    assert audit_of(enrolment) == [*told, ("approved", "left"), *told]


def test_an_invitation_of_a_site_that_is_out_can_be_withdrawn(enrolment: EnrolmentService, host: Host) -> None:
    enroll(enrolment, host)
    enrolment.leave("st-mary")
    token = enrolment.invite("st-mary")
    enrolment.revoke("st-mary")
    with pytest.raises(JoinDenied, match="no such invitation"):
        enrolment.join(host.join_request(token))
    assert audit_of(enrolment)[-1] == ("invited", "revoked")


def test_a_certificate_that_is_none_foreign_or_expired_is_refused_in_the_same_words(
    enrolment: EnrolmentService, host: Host, other_host: Host, tmp_path: Path, clock: StandingClock
) -> None:
    ours = enroll(enrolment, host).certificate_pem
    foreign = create_authority(tmp_path / "other-ca", clock, CUSTODIAN.public_key())
    forged = foreign.issue_site_certificate("st-mary", other_host.csr(), clock(), clock() + timedelta(days=30)).pem
    told = set()
    for pem in (forged, b"no certificate", b"\xff"):
        with pytest.raises(NotEnrolled) as refused:
            authenticate(enrolment.store, pem, clock())
        told.add(str(refused.value))
    clock.advance(days=30)
    with pytest.raises(NotEnrolled) as refused:
        authenticate(enrolment.store, ours, clock())
    assert {str(refused.value)} == told
    for none in (None, b""):
        with pytest.raises(NotEnrolled, match="got none"):
            authenticate(enrolment.store, none, clock())
