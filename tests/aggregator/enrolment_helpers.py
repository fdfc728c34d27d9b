"""Calls that the tests of enrolment make often, in a line each."""

from federation.roster import Roster, verify_roster
from federation.v1 import enrolment_pb2

from aggregator.sites.enrolment import EnrolmentService
from aggregator.store import site_rows
from aggregator.store.people import audit_trail


def enroll(enrolment: EnrolmentService, host, name: str = "st-mary") -> enrolment_pb2.Credentials:
    request = host.join_request(enrolment.invite(name, auto_approve=True))
    return enrolment.join(request).credentials


def roster_of(enrolment: EnrolmentService, signed: enrolment_pb2.SignedRoster) -> Roster:
    return verify_roster(signed, enrolment.authority.custodian_key.public_key())


def words_of(enrolment: EnrolmentService, name: str = "st-mary") -> str:
    with enrolment.store.read() as session:
        return site_rows.get(session, name).fingerprint


def audit_of(enrolment: EnrolmentService, name: str = "st-mary") -> list[tuple[str | None, str]]:
    with enrolment.store.read() as session:
        return [(row.before, row.after) for row in reversed(audit_trail(session, f"site:{name}"))]
