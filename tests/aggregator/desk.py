"""What tests of enrolment ask of the desk, in a line each."""

from federation.roster import Roster, open_roster
from federation.v1 import enrolment_pb2

from aggregator.sites.enrolment import Enrolment
from aggregator.store import site_rows
from aggregator.store.people import audit_trail


def enroll(desk: Enrolment, host, name: str = "st-mary") -> enrolment_pb2.Credentials:
    request = host.join_request(desk.invite(name, auto_approve=True))
    return desk.join(request).credentials


def roster_of(desk: Enrolment, signed: enrolment_pb2.SignedRoster) -> Roster:
    return open_roster(signed, desk.authority.custodian_key.public_key())


def words_of(desk: Enrolment, name: str = "st-mary") -> str:
    with desk.store.read() as session:
        return site_rows.get(session, name).fingerprint


def audit_of(desk: Enrolment, name: str = "st-mary") -> list[tuple[str | None, str]]:
    with desk.store.read() as session:
        return [(row.before, row.after) for row in reversed(audit_trail(session, f"site:{name}"))]
