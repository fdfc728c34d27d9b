"""What tests of enrolment ask of the desk, in a line each."""

from federation.roster import Roster, verify_roster
from federation.v1 import enrolment_pb2

from aggregator.sites.enrolment import EnrolmentService
from aggregator.store import site_rows
from aggregator.store.people import audit_trail


def enroll(desk: EnrolmentService, host, name: str = "st-mary") -> enrolment_pb2.Credentials:
    request = host.join_request(desk.invite(name, auto_approve=True))
    return desk.join(request).credentials


def roster_of(desk: EnrolmentService, signed: enrolment_pb2.SignedRoster) -> Roster:
    return verify_roster(signed, desk.authority.custodian_key.public_key())


def words_of(desk: EnrolmentService, name: str = "st-mary") -> str:
    with desk.store.read() as session:
        return site_rows.get(session, name).fingerprint


def audit_of(desk: EnrolmentService, name: str = "st-mary") -> list[tuple[str | None, str]]:
    with desk.store.read() as session:
        return [(row.before, row.after) for row in reversed(audit_trail(session, f"site:{name}"))]
