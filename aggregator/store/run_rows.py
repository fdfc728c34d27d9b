"""Rows of runs and of their models."""

from datetime import datetime

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.orm import Session

from aggregator.errors import NotFound, RunInProgress
from aggregator.states import ModelStanding, RunState
from aggregator.store.engine import Change, guarded, record, transition
from aggregator.store.tables import ModelVersion, RollbackRecord, Round, Run

ACTIVE = (RunState.RUNNING, RunState.PAUSED)
NO_STANDING = "no standing"  # in the audit, of a model of a plan without a gate


def subject(run_id: bytes) -> str:
    """Return the audit's name for a run."""
    return f"run:{run_id.hex()}"


def add(session: Session, run: Run, change: Change) -> None:
    """Add a run that begins now, or is queued.

    Raises:
        RunInProgress: While another run is running or paused, unless this one is queued; or when this plan has a run
            already.
    """
    # A site works on one round at a time, so two runs would starve each other.
    running = active(session)
    if running is not None and run.state is not RunState.QUEUED:
        raise RunInProgress(
            f"one run at a time: {running.name} is {running.state}; abort it, let it end first, or add --queue"
        )
    if session.get(Run, run.run_id) is not None:
        raise RunInProgress(f"run {run.run_id.hex()} was begun before; sign a new plan (it gets a new run id)")
    session.add(run)
    session.flush()
    record(session, change, None, run.state.value)


def active(session: Session) -> Run | None:
    """Return the run that is RUNNING or PAUSED, if any."""
    return session.scalars(select(Run).where(Run.state.in_(ACTIVE)).order_by(Run.created_at)).first()


def current(session: Session) -> Run | None:
    """Return the active run, else the newest one that has begun, else None."""
    begun = select(Run).where(Run.run_id.in_(select(Round.run_id))).order_by(Run.created_at.desc()).limit(1)
    return active(session) or session.scalars(begun).first()


def queued(session: Session) -> list[Run]:
    """Return the runs that wait for the one in progress to end, the next one first."""
    return list(session.scalars(_QUEUED))


# Built once: drivers ask twice a second, and every site of a round for its base model.
_QUEUED = select(Run).where(Run.state == RunState.QUEUED).order_by(Run.created_at)
# No round starts from a model that is refused or rolled back.
MAY_BE_STARTED_FROM = or_(
    ModelVersion.standing.is_(None),
    ModelVersion.standing.not_in([ModelStanding.REFUSED, ModelStanding.ROLLED_BACK]),
)
_NEWEST_MODEL = (
    select(ModelVersion)
    .where(ModelVersion.run_id == bindparam("run"), MAY_BE_STARTED_FROM)
    .order_by(ModelVersion.id.desc())
    .limit(1)
)
_BY_DIGEST = (
    select(ModelVersion)
    .where(ModelVersion.run_id == bindparam("run"), ModelVersion.digest == bindparam("model"))
    .order_by(ModelVersion.id)
)


def get(session: Session, run_id: bytes) -> Run:
    """Return a run by its id, 16 bytes.

    Raises:
        NotFound: When there is none.
    """
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound(f"no run {run_id.hex()}; `hemofed-aggregator run list` shows those there are")
    return run


def by_plan(session: Session, plan_digest: bytes) -> Run:
    """Return the run of a plan, by the SHA-256 of the plan.

    Raises:
        NotFound: When there is none.
    """
    run = session.scalars(select(Run).where(Run.plan_digest == plan_digest)).first()
    if run is None:
        raise NotFound(f"no run with plan {plan_digest.hex()[:16]}")
    return run


def all_runs(session: Session) -> list[Run]:
    """Return every run, oldest first."""
    return list(session.scalars(select(Run).order_by(Run.created_at)))


def move(session: Session, run: Run, after: RunState, change: Change, ended_at: datetime | None = None) -> None:
    """Move a run from the state `run` was read in; `change.why` becomes its reason.

    A `run` of this session is read anew afterwards.

    Raises:
        LostRace: When the run has left that state.
    """
    values = {"reason": change.why, "ended_at": ended_at}
    transition(session, Run.state, {Run.run_id: run.run_id}, run.state, after, change, values)
    # The UPDATE went past the session's objects, so `run` still has its old state.
    session.get(Run, run.run_id, populate_existing=True)


def add_model(session: Session, model: ModelVersion) -> None:
    """Keep a model of a run, whose file is a blob already."""
    session.add(model)
    session.flush()


def models(session: Session, run_id: bytes) -> list[ModelVersion]:
    """Return every model of the run, the initial one first."""
    # The order of the primary key is the order in which they were made.
    return list(session.scalars(select(ModelVersion).where(ModelVersion.run_id == run_id).order_by(ModelVersion.id)))


def newest_model(session: Session, run_id: bytes) -> ModelVersion:
    """Return the model that the next round starts from: the newest that is neither refused nor rolled back.

    Raises:
        NotFound: For an unknown run; every other one has its initial model.
    """
    newest = session.scalars(_NEWEST_MODEL, {"run": run_id}).first()
    if newest is None:
        raise NotFound(f"no model of run {run_id.hex()}")
    return newest


def model_by_digest(session: Session, run_id: bytes, digest: bytes) -> ModelVersion:
    """Return a model of a run by its digest (`federation.manifest.model_digest`).

    Raises:
        NotFound: When there is none.
    """
    # The first one: an update of zeros leads to a model with the same digest as its base.
    model = session.scalars(_BY_DIGEST, {"run": run_id, "model": digest}).first()
    if model is None:
        raise NotFound(f"no model {digest.hex()[:16]} in run {run_id.hex()}")
    return model


def change_standing(session: Session, model: ModelVersion, standing: ModelStanding | None, change: Change) -> None:
    """Move a model from the standing that `model` was read with. Nothing happens when it has this one.

    Raises:
        LostRace: When it has another one by now.
    """
    before = model.standing
    if before is standing:
        return
    # `IS NULL` and not `= NULL` for a model without any.
    unchanged = ModelVersion.standing.is_(None) if before is None else ModelVersion.standing == before
    statement = update(ModelVersion).where(ModelVersion.id == model.id, unchanged).values(standing=standing)
    guarded(session, statement, change, before and before.value, NO_STANDING if standing is None else standing.value)
    session.get(ModelVersion, model.id, populate_existing=True)


def rollbacks(session: Session, run_id: bytes) -> list[RollbackRecord]:
    """Return every rollback of the run, the first one first."""
    return list(
        session.scalars(select(RollbackRecord).where(RollbackRecord.run_id == run_id).order_by(RollbackRecord.number))
    )


def add_rollback(session: Session, rollback: RollbackRecord) -> None:
    """Keep a rollback."""
    session.add(rollback)
    session.flush()


def model_blobs(session: Session, digest: bytes) -> list[ModelVersion]:
    """Return the models whose file is the blob `digest`; usually one or none."""
    return list(session.scalars(select(ModelVersion).where(ModelVersion.blob == digest)))
