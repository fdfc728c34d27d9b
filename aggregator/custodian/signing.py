"""Turns a request into a signed file: read in words first, then signed."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from federation.plan import TrainingPlan, sign_plan
from federation.rollback import RunRollback, sign_rollback
from federation.roster import Roster, sign_roster
from federation.signing import Signer
from federation.wire import serialize

from aggregator.custodian.folder import CustodianFolder
from aggregator.custodian.review import next_roster, plan_words, rollback_words, roster_words
from aggregator.errors import RequestRefused
from aggregator.signing_requests import (
    PlanRequest,
    RollbackRequest,
    RosterRequest,
    SignedPlanFile,
    SignedRollbackFile,
    SignedRosterFile,
    read_file,
)


@dataclass(frozen=True)
class Reviewed:
    """A request that was checked: exactly what would be signed, and the same in words."""

    document: Roster | TrainingPlan | RunRollback
    words: str


def review(custodian: CustodianFolder, file: Path, now: datetime) -> Reviewed:
    """Read a request and describe it.

    Raises:
        RequestRefused: When the file is no request.
        CustodianRefused: When the request shows a roster that another custodian signed, or asks for another rollback
            of a number that was signed.
        FederationError: (RosterRefused, PlanRefused, Malformed) when its content is no roster, plan or rollback.
    """
    request = read_file(file)
    if isinstance(request, RosterRequest):
        newest = custodian.newest_roster(request.in_force)
        roster = next_roster(Roster.from_bytes(request.proposed), newest, now)
        return Reviewed(roster, roster_words(roster, newest))
    if isinstance(request, PlanRequest):
        plan = TrainingPlan.from_bytes(request.plan)
        return Reviewed(plan, plan_words(plan, custodian.newest_plan()))
    if isinstance(request, RollbackRequest):
        rollback, plan = RunRollback.from_bytes(request.rollback), TrainingPlan.from_bytes(request.plan)
        if rollback.plan_digest != plan.digest:
            raise RequestRefused(f"{file}: expected the plan of the rollback's run, got another one; export it again")
        custodian.check_rollback(rollback)
        return Reviewed(rollback, rollback_words(rollback, plan, request.passed))
    raise RequestRefused(
        f"{file} is signed already; `roster import`, `run start` or `run import-rollback` takes it at the aggregator"
    )


def sign(
    custodian: CustodianFolder, reviewed: Reviewed, key: Signer
) -> SignedRosterFile | SignedPlanFile | SignedRollbackFile:
    """Sign what was reviewed, and remember it."""
    # Remembered before it is handed out: after a crash no second roster of this epoch is signed.
    if isinstance(reviewed.document, Roster):
        roster = sign_roster(reviewed.document, key, custodian.successions)
        custodian.remember(roster)
        return SignedRosterFile(serialize(roster))
    if isinstance(reviewed.document, RunRollback):
        rollback = sign_rollback(reviewed.document, key)
        custodian.remember(rollback)
        return SignedRollbackFile(serialize(rollback))
    plan = sign_plan(reviewed.document, key)
    custodian.remember(plan)
    return SignedPlanFile(serialize(plan))
