"""A run from its signed plan to its last model: start, pause, resume, abort, and what follows when a round ends.

    start_run -> round 1 -> ... -> round plan.rounds -> evaluation-only round -> COMPLETED

Round numbers are never used twice. An abandoned round is spent: the next number starts from the same base model, and
the run ends after number plan.rounds + 1 whatever became of it, or aborted before it when no training round was
published. Several abandoned in a row pause the run with the reason, so that a federation that cannot work asks for a
person instead of asking hospitals to train in vain.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.manifest import Model, load_model
from federation.plan import TrainingPlan, verify_plan
from federation.v1.plan_pb2 import SignedPlan
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.errors import PlanFileRefused, WrongState
from aggregator.runs.plans import plan_of
from aggregator.sites.roster import eligible
from aggregator.states import RoundState, RunState
from aggregator.store import Change, round_rows, run_rows
from aggregator.store.blobs import StoredBlob
from aggregator.store.tables import ModelVersion, Round, Run

log = structlog.get_logger()

OPERATOR = "operator"


@dataclass(frozen=True)
class Cause:
    """Who ends or changes something, when, and why."""

    at: datetime
    actor: str
    why: str


def start_run(
    app: AppContext, signed: SignedPlan, initial_model: Path, custodian: Ed25519PublicKey, actor: str = OPERATOR
) -> Run:
    """Begin the run of a signed plan with the model file that the plan names; its first round opens at once.

    Raises: FederationError (BadSignature, PlanRefused, Malformed) for a plan that sites would refuse; PlanFileRefused
    when the file holds another model than the plan's; RunInProgress.
    """
    plan = verify_plan(signed, custodian)
    model = load_model(initial_model)
    _expect_initial(plan, model)
    stored = app.blobs.add(initial_model)
    now = app.clock()
    run = Run(
        run_id=plan.run_id,
        name=plan.name,
        signed_plan=signed.SerializeToString(deterministic=True),
        plan_digest=plan.digest,
        state=RunState.RUNNING,
        reason=None,
        created_at=now,
        ended_at=None,
    )
    with app.store.write() as session:
        change = Change(now, actor, run_rows.subject(run.run_id), f"plan {plan.digest.hex()[:16]}")
        run_rows.add(session, run, change)
        run_rows.add_model(session, model_row(run.run_id, 0, model.digest, stored, now))
        _begin_next(session, run, plan, Cause(now, actor, "first round"))
    log.info("run started", run=run.run_id.hex(), name=run.name, parameters=plan.manifest.size, rounds=plan.rounds)
    return run


def pause(app: AppContext, run_id: bytes, why: str = "paused by the coordinator", actor: str = OPERATOR) -> None:
    """The round in progress ends as it would; no new one begins. Raises: NotFound; WrongState unless RUNNING."""
    with app.store.write() as session:
        run = _in_state(session, run_id, "pause", RunState.RUNNING)
        run_rows.move(session, run, RunState.PAUSED, Change(app.clock(), actor, run_rows.subject(run_id), why))
    log.info("run paused", run=run_id.hex())


def resume(app: AppContext, run_id: bytes, why: str = "resumed by the coordinator", actor: str = OPERATOR) -> None:
    """Go on where it paused. Raises: NotFound; WrongState unless PAUSED."""
    ending = Cause(app.clock(), actor, why)
    with app.store.write() as session:
        run = _in_state(session, run_id, "resume", RunState.PAUSED)
        run_rows.move(session, run, RunState.RUNNING, Change(ending.at, actor, run_rows.subject(run_id), why))
        continue_run(session, run, ending)
    app.work_due.notify()
    log.info("run resumed", run=run_id.hex())


def abort(app: AppContext, run_id: bytes, why: str = "aborted by the coordinator", actor: str = OPERATOR) -> None:
    """End the run now; its open round is abandoned, and every site is told to stop and erase.

    Raises: NotFound; WrongState when the run is over.
    """
    now = app.clock()
    with app.store.write() as session:
        run = _in_state(session, run_id, "abort", *run_rows.ACTIVE)
        run_rows.move(session, run, RunState.ABORTED, Change(now, actor, run_rows.subject(run_id), why), ended_at=now)
        row = round_rows.newest(session, run_id)
        if row is not None and row.state not in round_rows.OVER:
            change = Change(now, actor, round_rows.subject(row), why)
            round_rows.move(session, row, RoundState.ABANDONED, change, {"reason": why})
    app.phase_changed.notify()
    app.work_due.notify()
    log.info("run aborted", run=run_id.hex())


def continue_run(session: Session, run: Run, ending: Cause) -> None:
    """Open the next round of a RUNNING run whose last one is over, or end the run. Otherwise do nothing.

    A run whose every training round was abandoned is not completed: it ends ABORTED, with nothing to evaluate.
    """
    last = round_rows.newest(session, run.run_id)
    if run.state is not RunState.RUNNING or (last is not None and last.state not in round_rows.OVER):
        return
    plan, who = plan_of(run), run_rows.subject(run.run_id)
    if last is not None and plan.evaluates_only(last.number):
        change = Change(ending.at, ending.actor, who, "every round of the plan is over")
        run_rows.move(session, run, RunState.COMPLETED, change, ended_at=ending.at)
        return
    if last is not None and last.number >= plan.rounds and len(run_rows.models(session, run.run_id)) == 1:
        change = Change(ending.at, ending.actor, who, f"every round of the plan was abandoned; the last: {last.reason}")
        run_rows.move(session, run, RunState.ABORTED, change, ended_at=ending.at)
        return
    _begin_next(session, run, plan, ending)


def pause_after(session: Session, run: Run, in_a_row_max: int, ending: Cause) -> None:
    """Pause a RUNNING run when its last `in_a_row_max` rounds were abandoned (and again after as many more)."""
    in_a_row = 0
    for row in reversed(round_rows.of_run(session, run.run_id)):
        if row.state is not RoundState.ABANDONED:
            break
        in_a_row += 1
    if run.state is RunState.RUNNING and in_a_row and in_a_row % in_a_row_max == 0:
        why = f"{in_a_row} rounds in a row were abandoned; the last: {ending.why}"
        run_rows.move(session, run, RunState.PAUSED, Change(ending.at, ending.actor, run_rows.subject(run.run_id), why))


def model_row(run_id: bytes, round_number: int, digest: bytes, stored: StoredBlob, now: datetime) -> ModelVersion:
    return ModelVersion(
        run_id=run_id,
        round_number=round_number,
        digest=digest,
        blob=stored.digest,
        size_bytes=stored.size_bytes,
        created_at=now,
    )


def _begin_next(session: Session, run: Run, plan: TrainingPlan, ending: Cause) -> None:
    last = round_rows.newest(session, run.run_id)
    row = Round(
        run_id=run.run_id,
        number=1 if last is None else last.number + 1,
        attempt=1,
        state=RoundState.TRAINING,
        base_model=run_rows.newest_model(session, run.run_id).digest,
        roster_epoch=0,
        began_at=ending.at,
        phase_since=ending.at,
        deadline=ending.at + timedelta(seconds=plan.deadlines.training_s),
    )
    change = Change(ending.at, ending.actor, round_rows.subject(row), "offered to every enrolled site")
    round_rows.begin_round(session, row, eligible(session), change)


def _expect_initial(plan: TrainingPlan, model: Model) -> None:
    if model.manifest.digest != plan.manifest.digest:
        raise PlanFileRefused("the initial model's tensors are not those of the plan's manifest; sign the plan anew")
    if model.digest != plan.initial_model_digest:
        raise PlanFileRefused(
            f"expected the initial model {plan.initial_model_digest.hex()[:16]} of the plan, "
            f"got {model.digest.hex()[:16]}; pass the file the plan was made with"
        )


def _in_state(session: Session, run_id: bytes, verb: str, *states: RunState) -> Run:
    run = run_rows.get(session, run_id)
    if run.state not in states:
        raise WrongState(f"cannot {verb} run {run.name}: it is {run.state}")
    return run
