"""A run from its signed plan to its last model: start, pause, resume, abort, and what follows when a round ends.

    start_run -> round 1 -> ... -> round plan.rounds -> evaluation-only round -> COMPLETED

A run that is QUEUED has its round 1 when no other run is active.

Round numbers are never used twice. An abandoned round is spent: the next number starts from the same base model.
Numbers past plan.rounds only evaluate. The run ends with the first of these that is published, or after EVALUATIONS_MAX
abandoned ones with a reason that says that there is no evaluation. It is aborted before them when no training round was
published. Several abandoned rounds in a row pause the run with the reason, so that a federation that cannot work asks
for a person instead of asking hospitals to train in vain.
"""

from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.manifest import Model, load_description, load_model
from federation.plan import TrainingPlan, verify_plan
from federation.v1.plan_pb2 import SignedPlan
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.errors import PlanFileRefused, WrongState
from aggregator.runs import run_blobs
from aggregator.runs.faults import offered_to
from aggregator.runs.plans import plan_of
from aggregator.states import ModelStanding, RoundState, RunState, SeatState
from aggregator.store import OPERATOR, Cause, round_rows, run_rows
from aggregator.store.tables import ModelVersion, Round, Run

log = structlog.get_logger()

EVALUATIONS_MAX: Final = 3  # evaluation-only rounds of a run that may be abandoned; then it ends without one


def start_run(
    app: AppContext,
    signed: SignedPlan,
    initial_model: Path,
    custodian: Ed25519PublicKey,
    actor: str = OPERATOR,
    *,
    queue: bool = False,
) -> Run:
    """Begin the run of a signed plan, and its first round.

    Args:
        app: Where the run is stored.
        signed: The plan.
        initial_model: The model file that the plan names, safetensors.
        custodian: The key that has signed the plan.
        actor: Who starts it, for the audit.
        queue: While another run is active, let this one wait for its end instead of refusing it.

    Raises:
        FederationError: (BadSignature, PlanRefused, Malformed) for a plan that sites would refuse.
        PlanFileRefused: When the file holds another model than the plan's.
        RunInProgress: While another run is running or paused, unless `queue`.
    """
    plan, model = verified(signed, initial_model, custodian)
    description = load_description(initial_model)
    # The file before the rows: a crash in between leaves a blob without a row, which costs nothing but its bytes.
    if plan.release is not None:
        app.content_keys.make()
    # Written anew: sites exchange models without a description, and the plan holds the origin that was in it.
    stored = run_blobs.store_model(app, plan, model)
    cause = Cause(app.clock(), actor, "first round")
    run = Run(
        run_id=plan.run_id,
        name=plan.name,
        signed_plan=signed.SerializeToString(deterministic=True),  # handed to sites, who check the signature
        plan_digest=plan.digest,
        state=RunState.RUNNING,
        reason=None,
        created_at=cause.at,
        ended_at=None,
        parts=None if description is None else description.parts or None,
    )
    first = ModelVersion(
        run_id=run.run_id,
        round_number=0,
        digest=model.digest,
        blob=stored.digest,
        size_bytes=stored.size_bytes,
        created_at=cause.at,
        standing=None if plan.gate is None else ModelStanding.ACCEPTED,
    )
    with app.store.write() as session:
        if queue and (run_rows.active(session) or run_rows.queued(session)):
            run.state = RunState.QUEUED
        run_rows.add(session, run, cause.because(f"plan {plan.digest.hex()[:16]}").of(run_rows.subject(run.run_id)))
        run_rows.add_model(session, first)
        if run.state is RunState.RUNNING:
            _begin_next(session, run, plan, cause)
    facts = {"run": run.run_id.hex(), "name": run.name, "parameters": plan.manifest.size, "rounds": plan.rounds}
    if run.state is RunState.QUEUED:
        log.info("run queued", **facts)
    else:
        log.info("run started", **facts)
    return run


def begin_queued(session: Session, cause: Cause) -> Run | None:
    """Begin the queued run that waited longest, if no run is active; return it.

    Raises:
        LostRace: When another driver has begun it a moment ago.
    """
    waiting = run_rows.queued(session)
    if not waiting or run_rows.active(session) is not None:
        return None
    run = waiting[0]
    because = cause.because("the run before it is over")
    run_rows.move(session, run, RunState.RUNNING, because.of(run_rows.subject(run.run_id)))
    _begin_next(session, run, plan_of(run), cause)
    return run


def verified(signed: SignedPlan, initial_model: Path, custodian: Ed25519PublicKey) -> tuple[TrainingPlan, Model]:
    """Verify a signed plan and the model file that it names, as `start_run` does.

    Raises:
        FederationError: (BadSignature, PlanRefused, Malformed) for a plan that sites would refuse.
        PlanFileRefused: When the file holds another model than the plan's.
    """
    # As every site will check it: a run that sites refuse must not begin.
    plan = verify_plan(signed, custodian)
    model = load_model(initial_model)
    if model.manifest.digest != plan.manifest.digest:
        raise PlanFileRefused("the initial model's tensors are not those of the plan's manifest; sign the plan anew")
    if model.digest != plan.initial_model_digest:
        raise PlanFileRefused(
            f"expected the initial model {plan.initial_model_digest.hex()[:16]} of the plan, "
            f"got {model.digest.hex()[:16]}; pass the file the plan was made with"
        )
    return plan, model


def pause(app: AppContext, run_id: bytes, why: str = "paused by the coordinator", actor: str = OPERATOR) -> None:
    """Begin no further round; the round in progress ends as usual.

    Raises:
        NotFound: When there is no such run.
        WrongState: Unless it is RUNNING.
    """
    cause = Cause(app.clock(), actor, why)
    with app.store.write() as session:
        run = _in_state(session, run_id, "pause", RunState.RUNNING)
        run_rows.move(session, run, RunState.PAUSED, cause.of(run_rows.subject(run_id)))
    log.info("run paused", run=run_id.hex())


def resume(app: AppContext, run_id: bytes, why: str = "resumed by the coordinator", actor: str = OPERATOR) -> None:
    """Continue a paused run; its next round begins at once if the last one is over.

    Raises:
        NotFound: When there is no such run.
        WrongState: Unless it is PAUSED.
    """
    cause = Cause(app.clock(), actor, why)
    with app.store.write() as session:
        run = _in_state(session, run_id, "resume", RunState.PAUSED)
        run_rows.move(session, run, RunState.RUNNING, cause.of(run_rows.subject(run_id)))
        continue_run(session, run, cause)
    app.work_due.notify()
    log.info("run resumed", run=run_id.hex())


def close_now(
    app: AppContext,
    run_id: bytes,
    why: str = "training closed by the coordinator",
    actor: str = OPERATOR,
    round_number: int | None = None,
) -> None:
    """End the training of the round in progress now, as its deadline would: the cohort is of the sites that are ready.

    Args:
        app: The aggregator.
        run_id: Of the run.
        why: For the audit.
        actor: Who closes it, for the audit.
        round_number: The round that the person has seen; None for the one in progress, whichever it is.

    Raises:
        NotFound: When there is no such run.
        WrongState: When it is over, its round is not in training or another one, or fewer sites are ready than its plan
            asks for.
    """
    cause = Cause(app.clock(), actor, why)
    with app.store.write() as session:
        run = _in_state(session, run_id, "close", *run_rows.ACTIVE)
        row = round_rows.newest(session, run_id)
        if row is None or row.state is not RoundState.TRAINING:
            state = "no round" if row is None else f"round {row.number} in {row.state}"
            raise WrongState(f"expected a round in training, got {state}; see `run status`")
        if round_number not in (None, row.number):
            raise WrongState(f"expected round {round_number} in training, got round {row.number}; look at it again")
        least = plan_of(run).cohort.minimum
        # As the driver counts: of a site that was suspended or revoked since it was ready, no cohort is formed.
        able = offered_to(session, run_id, row.number, least)
        seats = round_rows.seat_states(session, row.id)
        ready = [seats.get(site) for site in able].count(SeatState.READY)
        if ready < least:
            raise WrongState(f"expected {least} ready hospitals at least, got {ready}; wait for them, or abort the run")
        round_rows.end_training(session, row, cause.of(round_rows.subject(row)))
    app.work_due.notify()
    log.info("training closed", run=run_id.hex(), round=row.number)


def abort(app: AppContext, run_id: bytes, why: str = "aborted by the coordinator", actor: str = OPERATOR) -> None:
    """End the run now. Its unfinished round is abandoned, and every site is told to stop and erase.

    Raises:
        NotFound: When there is no such run.
        WrongState: When it is over.
    """
    cause = Cause(app.clock(), actor, why)
    with app.store.write() as session:
        run = _in_state(session, run_id, "abort", *run_rows.ACTIVE, RunState.QUEUED)
        run_rows.move(session, run, RunState.ABORTED, cause.of(run_rows.subject(run_id)), ended_at=cause.at)
        row = round_rows.newest(session, run_id)
        if row is not None and row.state not in round_rows.OVER:
            change = cause.of(round_rows.subject(row))
            round_rows.move(session, row, RoundState.ABANDONED, change, {"reason": why})
    # Held polls answer at once, so that members stop masking; the driver lets go of the round.
    app.phase_changed.notify()
    app.work_due.notify()
    log.info("run aborted", run=run_id.hex())


def continue_run(session: Session, run: Run, cause: Cause) -> None:
    """Begin the next round of a RUNNING run whose last one is over, or end the run. Otherwise do nothing.

    A run whose every training round was abandoned ends ABORTED: there is nothing to evaluate.
    """
    # In the caller's transaction: the end of a round and the begin of the next one are written together, so no crash
    # leaves a run between two rounds.
    last = round_rows.newest(session, run.run_id)
    if run.state is not RunState.RUNNING or (last is not None and last.state not in round_rows.OVER):
        return
    plan, subject = plan_of(run), run_rows.subject(run.run_id)
    if last is not None and plan.evaluates_only(last.number):
        why = "every round of the plan is over"
        if last.state is RoundState.ABANDONED:
            why = f"{why}, but nothing evaluates the last model: its evaluation was abandoned; the last: {last.reason}"
        if last.state is RoundState.PUBLISHED or _gives_up_evaluation(session, run, plan):
            run_rows.move(session, run, RunState.COMPLETED, cause.because(why).of(subject), ended_at=cause.at)
            return
    # One model is the initial one: no training round has been published.
    if last is not None and last.number >= plan.rounds and len(run_rows.models(session, run.run_id)) == 1:
        why = f"every round of the plan was abandoned; the last: {last.reason}"
        run_rows.move(session, run, RunState.ABORTED, cause.because(why).of(subject), ended_at=cause.at)
        return
    _begin_next(session, run, plan, cause)


def pause_after(session: Session, run: Run, in_a_row_max: int, cause: Cause) -> None:
    """Pause a RUNNING run when its last `in_a_row_max` rounds were abandoned, and again after as many more."""
    in_a_row = 0
    for row in reversed(round_rows.of_run(session, run.run_id)):
        if row.state is not RoundState.ABANDONED:
            break
        in_a_row += 1
    # Each multiple pauses, not every round beyond the limit: a person who resumes gets as many tries again.
    if _gives_up_evaluation(session, run, plan_of(run)):
        return  # the run ends
    if run.state is RunState.RUNNING and in_a_row and in_a_row % in_a_row_max == 0:
        why = f"{in_a_row} rounds in a row were abandoned; the last: {cause.why}"
        run_rows.move(session, run, RunState.PAUSED, cause.because(why).of(run_rows.subject(run.run_id)))


def judge_base(session: Session, run: Run, row: Round, *, refused: bool, cause: Cause) -> None:
    """Accept or refuse the base model of a round that is over, and pause the run at the second refusal in a row.

    Args:
        session: A session of `Store.write`.
        run: Of the round.
        row: The round; its base model is a candidate.
        refused: The verdict.
        cause: `cause.why` is the verdict in words.
    """
    judged = run_rows.model_by_digest(session, run.run_id, row.base_model)
    standing = ModelStanding.REFUSED if refused else ModelStanding.ACCEPTED
    run_rows.change_standing(session, judged, standing, cause.of(round_rows.subject(row)))
    before = [model for model in run_rows.models(session, run.run_id) if model.id < judged.id]
    others = [model for model in before if model.standing is not ModelStanding.ROLLED_BACK]
    if refused and others[-1].standing is ModelStanding.REFUSED:
        why = f"two models in a row were refused; the last, of round {judged.round_number}, was {cause.why}"
        pause_because(session, run, cause.because(why))


def pause_because(session: Session, run: Run, cause: Cause) -> None:
    """Pause a RUNNING run in the caller's transaction: only a person can help. `cause.why` says with what."""
    if run.state is RunState.RUNNING:
        run_rows.move(session, run, RunState.PAUSED, cause.of(run_rows.subject(run.run_id)))


def _gives_up_evaluation(session: Session, run: Run, plan: TrainingPlan) -> bool:
    rounds = [row for row in round_rows.of_run(session, run.run_id) if plan.evaluates_only(row.number)]
    return [row.state for row in rounds].count(RoundState.ABANDONED) >= EVALUATIONS_MAX


def _begin_next(session: Session, run: Run, plan: TrainingPlan, cause: Cause) -> None:
    last, base = round_rows.newest(session, run.run_id), run_rows.newest_model(session, run.run_id)
    row = Round(
        run_id=run.run_id,
        number=1 if last is None else last.number + 1,
        attempt=1,
        state=RoundState.TRAINING,
        base_model=base.digest,
        predecessor=_predecessor(session, base),
        roster_epoch=0,  # frozen with the cohort: a site approved meanwhile may still take part
        began_at=cause.at,
        phase_since=cause.at,
        deadline=cause.at + timedelta(seconds=plan.deadlines.training_s),
    )
    change = cause.because("offered to every enrolled site that sits nothing out").of(round_rows.subject(row))
    sites = offered_to(session, run.run_id, row.number, plan.cohort.minimum)
    round_rows.begin_round(session, row, sites, change)


def _predecessor(session: Session, base: ModelVersion) -> bytes | None:
    """Return the digest of the model that a candidate is to be judged against; None for a model that is none."""
    if base.standing is not ModelStanding.CANDIDATE:
        return None
    made_from = round_rows.get(session, base.run_id, base.round_number).base_model
    return None if made_from == base.digest else made_from


def _in_state(session: Session, run_id: bytes, verb: str, *states: RunState) -> Run:
    run = run_rows.get(session, run_id)
    if run.state not in states:
        raise WrongState(f"cannot {verb} run {run.name}: it is {run.state}")
    return run
