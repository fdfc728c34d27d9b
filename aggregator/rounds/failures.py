"""Rounds whose sum led to no model: why, who is to blame, and what follows for the next cohorts."""

from collections.abc import Collection, Iterator

from federation.secagg import SecaggError, Unrecoverable
from federation.v1.secagg_pb2 import BadDealing, EncryptedShare, RevealedShare
from sqlalchemy.orm import Session

from aggregator.errors import AggregatorError, SumRefused
from aggregator.rounds.cohort import answers_of
from aggregator.rounds.decisions import Abandon
from aggregator.rounds.regrouping import RecoveredSum, SumHistory, spoiler_after, suspects_after
from aggregator.rounds.transitions import Step, abandon
from aggregator.sites.roster import in_force
from aggregator.states import FaultKind, RoundState
from aggregator.store import Cause, fault_rows, masking_rows, round_rows
from aggregator.store.tables import Round, Seat


def abandon_aggregation(step: Step, error: SecaggError | AggregatorError, in_a_row_max: int) -> None:
    """Abandon a round in AGGREGATING because of `error`, and hold against a member what is known of it."""
    match error:
        case SumRefused():
            refused = {"sum_blob": error.blob, "sum_size_bytes": error.size_bytes, "members": error.members}
            abandon(step, Abandon(str(error)), in_a_row_max, refused)
        case Unrecoverable():
            cause = step.cause.because("dealt shares of no secret; so many were put together")
            evidence = _evidence_of_bad_dealing(step, error).SerializeToString(deterministic=True)
            fault_rows.add(step.session, step.row, error.about, FaultKind.BAD_DEALING, cause, evidence)
            abandon(step, Abandon(f"no sum was recovered: {error}"), in_a_row_max)
        case _:
            # Members have revealed, and there is no sum to show them, nor a reason why there is none.
            reason = f"no sum was recovered: {error}; begin a new run from another model"
            abandon(step, Abandon(reason, pauses_run=True), in_a_row_max)


def name_the_spoiler(session: Session, row: Round, members: Collection[str], cause: Cause) -> None:
    """Hold refused sums against the one suspect, when the sum of `row`, which was published, is the last that it takes.

    Args:
        session: A session of `Store.write`.
        row: The round.
        members: Of its sum.
        cause: Who publishes it when.
    """
    earlier = _sums_of_run(session, row)
    published = RecoveredSum(frozenset(members), refused=False, vanished=_vanished(session, row, members))
    spoiler = spoiler_after([*earlier, published])
    if spoiler is not None and spoiler_after(earlier) is None:
        why = "is the one that dealt shares for every refused sum, and all others have published without it"
        fault_rows.add(session, row, spoiler, FaultKind.SPOILED_SUM, cause.because(why))


def sum_history(session: Session, row: Round) -> SumHistory:
    """Read what bounds the choice of the round's cohort."""
    earlier = round_rows.over_on_model(session, row.base_model)
    on_this_model = [recovered for over in earlier for recovered in _recovered(session, over)]
    roster = in_force(session) if on_this_model else None
    listed = roster.signing_keys.keys() if roster is not None else ()
    members = frozenset(site for recovered in on_this_model for site in recovered.members)
    return SumHistory(on_this_model, suspects_after(_sums_of_run(session, row)), members.difference(listed))


def bad_dealings(session: Session, row: Round) -> list[BadDealing]:
    """Return the evidence why no sum was recovered in a round: empty unless a dealer is proven guilty."""
    return [
        BadDealing.FromString(fault.evidence)
        for fault in fault_rows.of_round(session, row.id)
        if fault.kind is FaultKind.BAD_DEALING and fault.evidence is not None
    ]


def _sums_of_run(session: Session, row: Round) -> list[RecoveredSum]:
    # Almost every run has none; to read all its rounds at every look of a driver would be a waste.
    if not round_rows.has_refused_sum(session, row.run_id):
        return []
    earlier = [before for before in round_rows.of_run(session, row.run_id) if before.number < row.number]
    return [recovered for before in earlier for recovered in _recovered(session, before)]


def _recovered(session: Session, row: Round) -> Iterator[RecoveredSum]:
    """Yield the sum that members of a round have revealed, if there is one."""
    members = frozenset(round_rows.senders(session, row.id, Seat.upload_claim))
    if row.sum_blob is not None:
        refused = row.state is RoundState.ABANDONED
        led_on = row.state is RoundState.PUBLISHED and row.next_model not in (row.base_model, row.predecessor)
        yield RecoveredSum(members, refused, vanished=_vanished(session, row, members), led_on=led_on)
        return
    guilty = {evidence.dealer for evidence in bad_dealings(session, row)}
    # Only the guilty dealer could recover this sum; with its own part known to it, it is a sum over the others.
    if guilty:
        yield RecoveredSum(members - guilty, refused=False)


def _vanished(session: Session, row: Round, members: Collection[str]) -> frozenset[str]:
    return frozenset(round_rows.senders(session, row.id, Seat.shares_digest)).difference(members)


def _evidence_of_bad_dealing(step: Step, error: Unrecoverable) -> BadDealing:
    uploaded = round_rows.senders(step.session, step.row.id, Seat.upload_claim)
    answers = answers_of(step.session, step.row)
    evidence = BadDealing(
        dealer=error.about, kind=RevealedShare.SEED if error.about in uploaded else RevealedShare.MASK_KEY
    )
    for member in sorted(error.revealers):
        (dealt,) = masking_rows.dealt(step.session, step.row.id, [error.about], [member])
        evidence.dealt.append(EncryptedShare.FromString(dealt))
        evidence.shares.append(answers[member][error.about].share)
    return evidence
