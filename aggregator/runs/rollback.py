"""A run goes back to one of its models: the request for the custodian's signature, and what follows from it.

The run is paused, and its last round over: the signature names that round, so that it cannot be put off and used after
later ones. The model's earlier sum stays: the next round is of the very same members (decision 0028).
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from federation.rollback import RunRollback, verify_rollback
from federation.v1.plan_pb2 import SignedRollback
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.errors import WrongState
from aggregator.states import ModelStanding, RunState
from aggregator.store import OPERATOR, Cause, record, round_rows, run_rows
from aggregator.store.tables import ModelVersion, RollbackRecord, Run


def request_rollback(session: Session, run: Run, model: ModelVersion) -> RunRollback:
    """Return what the custodian is to sign.

    It may be the very model that the next round would begin from: after a restored backup sites hold a newer one.

    Raises:
        WrongState: When the run is not paused, or a round is in progress.
    """
    return RunRollback(
        plan_digest=run.plan_digest,
        number=len(run_rows.rollbacks(session, run.run_id)) + 1,
        after_round=_last_round(session, run),
        model_digest=model.digest,
        model_round=model.round_number,
    )


def passed(session: Session, run: Run, model: ModelVersion) -> list[str]:
    """Describe the models that a rollback to `model` leaves, one line each."""
    return [
        f"the model of round {later.round_number}, {later.digest.hex()[:16]}"
        + ("" if later.standing is None else f", {later.standing.value}")
        for later in run_rows.models(session, run.run_id)
        if later.id > model.id
    ]


def import_rollback(
    app: AppContext, signed: SignedRollback, custodian: Ed25519PublicKey, actor: str = OPERATOR
) -> tuple[Run, RunRollback]:
    """Let a paused run go on from the model that the custodian has signed; `resume` begins the next round.

    Raises:
        BadSignature: When the custodian did not sign it.
        Malformed: When it is no rollback.
        NotFound: When there is no run of that plan, or no such model in it.
        WrongState: When the run is not paused, or has gone on since the rollback was requested.
    """
    rollback = verify_rollback(signed, custodian)
    with app.store.write() as session:
        run = run_rows.by_plan(session, rollback.plan_digest)
        model = run_rows.model_by_digest(session, run.run_id, rollback.model_digest)
        if rollback != request_rollback(session, run, model):
            raise WrongState(
                f"the rollback was signed for after round {rollback.after_round} as number {rollback.number}, and run "
                f"{run.name} has gone on since; request another one"
            )
        why = (
            f"to the model of round {model.round_number}, {model.digest.hex()[:16]}, after round {rollback.after_round}"
        )
        cause = Cause(app.clock(), actor, f"rolled back by the custodian {why}")
        change = cause.of(run_rows.subject(run.run_id))
        for later in run_rows.models(session, run.run_id):
            if later.id > model.id and later.standing is not ModelStanding.REFUSED:
                run_rows.change_standing(session, later, ModelStanding.ROLLED_BACK, change)
        # A plan without a gate gives its models no standing.
        has_gate = run_rows.models(session, run.run_id)[0].standing is not None
        run_rows.change_standing(session, model, ModelStanding.ACCEPTED if has_gate else None, change)
        row = RollbackRecord(
            run_id=run.run_id,
            number=rollback.number,
            after_round=rollback.after_round,
            model_digest=rollback.model_digest,
            signed=signed.SerializeToString(deterministic=True),  # handed to sites, who check the signature
            created_at=cause.at,
        )
        run_rows.add_rollback(session, row)
        record(session, change, None, "rolled back")
    return run, rollback


def _last_round(session: Session, run: Run) -> int:
    """Return the number of the last round, which is over.

    Raises:
        WrongState: When the run is not paused, or its round is in progress.
    """
    last = round_rows.newest(session, run.run_id)
    if run.state is not RunState.PAUSED:
        raise WrongState(f"expected a paused run, got {run.name}, which is {run.state}; `run pause` first")
    if last is None or last.state not in round_rows.OVER:
        raise WrongState(f"expected run {run.name} between two rounds, got one in progress; wait for its end")
    return last.number
