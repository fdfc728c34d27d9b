"""Turns a request into a signed file: read in words first, then signed."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from federation.plan import TrainingPlan, sign_plan
from federation.roster import Roster, sign_roster
from federation.signing import Signer
from federation.wire import serialize

from aggregator.custodian.folder import CustodianFolder
from aggregator.custodian.review import next_roster, plan_words, roster_words
from aggregator.errors import RequestRefused
from aggregator.signing_requests import PlanRequest, RosterRequest, SignedPlanFile, SignedRosterFile, read_file


@dataclass(frozen=True)
class Reviewed:
    """A request that was checked: exactly what would be signed, and the same in words."""

    document: Roster | TrainingPlan
    words: str


def review(custodian: CustodianFolder, file: Path, now: datetime) -> Reviewed:
    """Read a request and describe it.

    Raises:
        RequestRefused: When the file is no request.
        CustodianRefused: When the request shows a roster that another custodian signed.
        FederationError: (RosterRefused, PlanRefused, Malformed) when its content is no roster or plan.
    """
    request = read_file(file)
    if isinstance(request, RosterRequest):
        newest = custodian.newest_roster(request.in_force)
        roster = next_roster(Roster.from_bytes(request.proposed), newest, now)
        return Reviewed(roster, roster_words(roster, newest))
    if isinstance(request, PlanRequest):
        plan = TrainingPlan.from_bytes(request.plan)
        return Reviewed(plan, plan_words(plan, custodian.newest_plan()))
    raise RequestRefused(f"{file} is signed already; `roster import` or `run start` takes it at the aggregator")


def sign(custodian: CustodianFolder, reviewed: Reviewed, key: Signer) -> SignedRosterFile | SignedPlanFile:
    """Sign what was reviewed, and remember it."""
    # Remembered before it is handed out: after a crash no second roster of this epoch is signed.
    if isinstance(reviewed.document, Roster):
        roster = sign_roster(reviewed.document, key, custodian.successions)
        custodian.remember(roster)
        return SignedRosterFile(serialize(roster))
    plan = sign_plan(reviewed.document, key)
    custodian.remember(plan)
    return SignedPlanFile(serialize(plan))
