"""A hospital's host is lost, or the hospital has another name: it joins again, and is not revoked for that."""

import pytest
from federation.v1 import enrolment_pb2

from aggregator.errors import JoinDenied, LostRace, NotEnrolled, NotFound, SiteRevoked, WrongState
from aggregator.signing_requests import RosterChange
from aggregator.sites.authentication import authenticate
from aggregator.sites.enrolment import EnrolmentService
from aggregator.sites.roster import awaited_change
from aggregator.store import site_rows
from tests.aggregator.conftest import Host, StandingClock
from tests.aggregator.enrolment_helpers import audit_of, eligible_of, enroll, roster_of, sign


def new_words(enrolment: EnrolmentService, name: str = "st-mary") -> str:
    with enrolment.store.read() as session:
        candidate = site_rows.candidate(session, name)
    assert candidate is not None
    return candidate.fingerprint


def awaited(enrolment: EnrolmentService) -> RosterChange:
    with enrolment.store.read() as session:
        return awaited_change(session)


def test_the_old_keys_stay_in_force_until_the_words_of_the_new_ones_are_compared(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    old = enroll(enrolment, host).certificate_pem
    clock.advance(minutes=1)
    request = other_host.join_request(enrolment.invite("st-mary", replaces="st-mary"))
    assert enrolment.join(request).HasField("pending")
    assert authenticate(enrolment.store, old, clock()) == "st-mary"
    assert eligible_of(enrolment) == ["st-mary"]
    assert not awaited(enrolment)
    enrolment.approve("st-mary", new_words(enrolment))
    with pytest.raises(NotEnrolled):
        authenticate(enrolment.store, old, clock())


def test_new_keys_take_part_once_the_custodian_has_signed_a_roster_with_them(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    enroll(enrolment, host)
    clock.advance(minutes=1)
    request = other_host.join_request(enrolment.invite("st-mary", replaces="st-mary"))
    enrolment.join(request)
    enrolment.approve("st-mary", new_words(enrolment))
    assert enrolment.join(request).HasField("pending")
    assert eligible_of(enrolment) == []
    [(before, after)] = awaited(enrolment).renewed
    assert (before.signing_key, after.signing_key) == (host.signing_public, other_host.signing_public)
    assert roster_of(enrolment, sign(enrolment)).signing_keys == {"st-mary": other_host.signing_public}
    new = enrolment.join(request).credentials.certificate_pem
    assert authenticate(enrolment.store, new, clock()) == "st-mary"
    assert eligible_of(enrolment) == ["st-mary"]
    assert audit_of(enrolment)[-3:] == [(None, "invited"), ("invited", "new keys"), (None, "rekeyed")]


def test_a_stolen_token_shuts_nobody_out_and_other_words_approve_nothing(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    old = enroll(enrolment, host).certificate_pem
    enrolment.join(other_host.join_request(enrolment.invite("st-mary", replaces="st-mary")))
    with pytest.raises(WrongState, match="approved"):
        enrolment.approve("st-mary", "one two three four five six")
    stale = new_words(enrolment)
    enrolment.join(Host().join_request(enrolment.invite("st-mary", replaces="st-mary")))
    with pytest.raises((LostRace, WrongState)):
        enrolment.approve("st-mary", stale)
    assert authenticate(enrolment.store, old, clock()) == "st-mary"
    enrolment.revoke("st-mary")
    with enrolment.store.read() as session:
        assert site_rows.candidates(session) == []


def test_keys_of_another_site_are_refused_also_for_a_site_that_gets_new_ones(
    enrolment: EnrolmentService, host: Host, other_host: Host
) -> None:
    enroll(enrolment, host)
    enroll(enrolment, other_host, "charite")
    with pytest.raises(JoinDenied, match="another site"):
        enrolment.join(other_host.join_request(enrolment.invite("st-mary", replaces="st-mary")))


def test_only_an_approved_site_gets_new_keys_or_a_new_name(enrolment: EnrolmentService, host: Host) -> None:
    with pytest.raises(NotFound):
        enrolment.invite("st-mary", replaces="st-mary")
    enrolment.join(host.join_request(enrolment.invite("st-mary")))
    for name in ("st-mary", "st-anna"):
        with pytest.raises(WrongState, match="expected an approved site"):
            enrolment.invite(name, replaces="st-mary")


def test_a_suspended_site_with_new_keys_stays_suspended(
    enrolment: EnrolmentService, host: Host, other_host: Host, clock: StandingClock
) -> None:
    enroll(enrolment, host)
    enrolment.suspend("st-mary")
    clock.advance(minutes=1)
    request = other_host.join_request(enrolment.invite("st-mary", replaces="st-mary", auto_approve=True))
    enrolment.join(request)
    sign(enrolment)
    assert enrolment.join(request).HasField("credentials")
    assert eligible_of(enrolment) == []


@pytest.mark.parametrize("keeps_its_keys", [True, False])
def test_a_renamed_hospital_goes_on_under_one_name_at_a_time(
    enrolment: EnrolmentService, host: Host, clock: StandingClock, keeps_its_keys: bool
) -> None:
    old = enroll(enrolment, host).certificate_pem
    joining = host if keeps_its_keys else Host()
    request = joining.join_request(enrolment.invite("st-anna", replaces="st-mary"))
    enrolment.join(request)
    assert eligible_of(enrolment) == ["st-mary"]
    with enrolment.store.read() as session:
        words = site_rows.get(session, "st-anna").fingerprint
    enrolment.approve("st-anna", words)
    with pytest.raises(SiteRevoked):
        authenticate(enrolment.store, old, clock())
    assert roster_of(enrolment, sign(enrolment)).signing_keys == {"st-anna": joining.signing_public}
    assert eligible_of(enrolment) == ["st-anna"]
    assert enrolment.join(request).HasField("credentials")


def test_after_a_rename_no_token_of_the_old_name_lets_a_host_in(enrolment: EnrolmentService, host: Host) -> None:
    enroll(enrolment, host)
    waiting = Host().join_request(enrolment.invite("st-mary", replaces="st-mary"))
    enrolment.join(waiting)
    enrolment.join(Host().join_request(enrolment.invite("st-anna", replaces="st-mary", auto_approve=True)))
    with pytest.raises(JoinDenied):
        enrolment.join(waiting)
    with enrolment.store.read() as session:
        assert site_rows.candidates(session) == []


def test_a_hospital_that_got_two_new_names_is_let_in_under_one(enrolment: EnrolmentService, host: Host) -> None:
    enroll(enrolment, host)
    for name in ("st-anna", "st-ann"):
        enrolment.join(Host().join_request(enrolment.invite(name, replaces="st-mary")))
    words = {}
    with enrolment.store.read() as session:
        for name in ("st-anna", "st-ann"):
            words[name] = site_rows.get(session, name).fingerprint
    enrolment.approve("st-anna", words["st-anna"])
    with pytest.raises(WrongState, match="one new name of st-mary, got st-ann beside st-anna"):
        enrolment.approve("st-ann", words["st-ann"])
    enrolment.revoke("st-anna")
    enrolment.approve("st-ann", words["st-ann"])
    assert list(roster_of(enrolment, sign(enrolment)).signing_keys) == ["st-ann"]


def test_another_name_does_not_end_a_suspension(enrolment: EnrolmentService, host: Host) -> None:
    enroll(enrolment, host)
    enrolment.suspend("st-mary")
    request = Host().join_request(enrolment.invite("st-anna", replaces="st-mary", auto_approve=True))
    enrolment.join(request)
    sign(enrolment)
    assert enrolment.join(request).HasField("credentials")
    assert eligible_of(enrolment) == []
    enrolment.resume("st-anna")
    assert eligible_of(enrolment) == ["st-anna"]


def test_a_rekeyed_site_recovers_with_its_new_signing_key_only(
    enrolment: EnrolmentService, host: Host, other_host: Host
) -> None:
    enroll(enrolment, host)
    request = other_host.join_request(enrolment.invite("st-mary", replaces="st-mary", auto_approve=True))
    enrolment.join(request)
    nonce = enrolment.challenge(enrolment_pb2.ChallengeRequest(site="st-mary")).nonce
    with pytest.raises(JoinDenied):
        enrolment.recover(host.recover_request("st-mary", nonce))
    assert enrolment.recover(other_host.recover_request("st-mary", nonce)).certificate_pem
