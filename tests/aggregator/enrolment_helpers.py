"""Calls that the tests of enrolment make often, in a line each."""

from federation.roster import Roster, verify_roster
from federation.v1 import enrolment_pb2

from aggregator.sites.enrolment import EnrolmentService
from aggregator.sites.roster import eligible
from aggregator.store import site_rows
from aggregator.store.people import audit_trail
from tests.aggregator.conftest import Host
from tests.custodian import CUSTODIAN, sign_pending


def enroll(enrolment: EnrolmentService, host: Host, name: str = "st-mary") -> enrolment_pb2.Credentials:
    """A host joins, and the custodian signs a roster with it."""
    request = host.join_request(enrolment.invite(name, auto_approve=True))
    enrolment.join(request)
    sign(enrolment)
    return enrolment.join(request).credentials


def sign(enrolment: EnrolmentService) -> enrolment_pb2.SignedRoster:
    """The custodian signs a roster of all active sites."""
    return sign_pending(enrolment.store, enrolment.authority, enrolment.clock())


def roster_of(enrolment: EnrolmentService, signed: enrolment_pb2.SignedRoster) -> Roster:
    return verify_roster(signed, CUSTODIAN.public_key())


def eligible_of(enrolment: EnrolmentService) -> list[str]:
    with enrolment.store.read() as session:
        return eligible(session)


def words_of(enrolment: EnrolmentService, name: str = "st-mary") -> str:
    with enrolment.store.read() as session:
        return site_rows.get(session, name).fingerprint


def audit_of(enrolment: EnrolmentService, name: str = "st-mary") -> list[tuple[str | None, str]]:
    with enrolment.store.read() as session:
        return [(row.before, row.after) for row in reversed(audit_trail(session, f"site:{name}"))]
