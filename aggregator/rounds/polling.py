"""The answer to a Poll: a function of the rows, the request and the clock. The aggregator remembers no conversation.

The same rows give the same step. So a lost answer, a restarted site or a restarted aggregator need no special care: the
site polls again and gets the same answer. The answer is found in this order:

1. Close, when the site works on a round that is over or continues without it.
2. The step that its seat is due in the newest round of the active run.
3. Otherwise only when to poll again: seconds after a phase began, minutes after an hour of waiting.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from federation.v1 import rounds_pb2 as pb
from federation.v1.blobs_pb2 import RoundRef
from federation.v1.plan_pb2 import SignedPlan, SignedRollback
from federation.v1.secagg_pb2 import Advertisement, Confirmation, EncryptedShare
from sqlalchemy.orm import Session

from aggregator.config import PacingSettings
from aggregator.context import AppContext
from aggregator.errors import NotFound
from aggregator.rounds.certificates import certificate_of
from aggregator.rounds.cohort import complaints_about
from aggregator.rounds.failures import bad_dealings
from aggregator.rounds.messages import published_sum, round_ref
from aggregator.runs.plans import plan_of
from aggregator.states import MASKING_PHASES, PHASE_SEATS, RoundState, RunState, SeatState
from aggregator.store import masking_rows, round_rows, run_rows
from aggregator.store.tables import ModelVersion, RollbackRecord, Round, Run, Seat
from aggregator.store.traffic import SeatKey

AT_ONCE_MS = 20  # after a step or a close: the site does it, then polls again
HOLD_BELOW_MS = 2_000  # an answer is worth holding when the site would be back this soon anyway
PATIENCE = 8  # a site that has waited for T seconds comes back T / 8 seconds later
READY_PER_PHASE = 4  # a ready site looks at least this often within one phase's time: it must not miss the first
SEATED_WITHIN_S = 2.0  # a driver looks every half second
CHAIN_LINKS_MAX = 16  # a site further behind takes the whole model


@dataclass(frozen=True)
class PollPacing:
    """Settings of pacing, and a source of numbers in [0, 1): one is drawn for each answer, to spread sites out."""

    settings: PacingSettings
    jitter: Callable[[], float]

    def milliseconds(self, seconds: float) -> int:
        """Convert seconds to milliseconds, varied by a quarter up and down."""
        return max(1, round(1000 * seconds * (0.75 + 0.5 * self.jitter())))


@dataclass(frozen=True)
class PollAnswer:
    """The reply, and how the server treats the call."""

    reply: pb.PollReply
    seat: SeatKey | None  # the bytes of the call are counted for it
    hold: bool  # whether holding the call back for a moment may spare the site a second one


def answer(session: Session, site: str, request: pb.PollRequest, now: datetime, pacing: PollPacing) -> PollAnswer:
    """Compute the reply to one Poll. Reads rows, changes none.

    Args:
        session: A session of `Store.read`.
        site: The caller, authenticated.
        request: Its Poll.
        now: Aware UTC.
        pacing: When sites are to poll again.
    """
    position = round_rows.position(session, site)
    answered = _answer(session, site, request, now, pacing, position)
    answered.reply.suspended, answered.reply.aggregator_time_ms = position.is_suspended, round(1000 * now.timestamp())
    return answered


def _answer(
    session: Session,
    site: str,
    request: pb.PollRequest,
    now: datetime,
    pacing: PollPacing,
    position: round_rows.SitePosition,
) -> PollAnswer:
    epoch, run, row, seat = position.epoch, position.run, position.row, position.seat
    if request.HasField("working_on"):
        close, key = _close(session, site, request.working_on, position)
        if close is not None:
            return PollAnswer(pb.PollReply(retry_after_ms=AT_ONCE_MS, roster_epoch=epoch, close=close), key, hold=False)
    # No step, and no close either: when it is resumed while the others still train, it goes on with what it has.
    waits = position.is_suspended and (row is None or row.state is RoundState.TRAINING)
    if waits or run is None or row is None or seat is None or row.state in round_rows.OVER:
        wait_s = pacing.settings.idle_s
        if run is not None and not position.is_suspended:
            # A running run gives a new site its seat, or begins its next round, within moments.
            wait_s = pacing.settings.paused_s if run.state is RunState.PAUSED else min(wait_s, SEATED_WITHIN_S)
        reply = pb.PollReply(retry_after_ms=pacing.milliseconds(wait_s), roster_epoch=epoch)
        return PollAnswer(reply, None, hold=False)
    reply = _step(session, run, row, seat, request, now)
    reply.roster_epoch = epoch
    has_step = reply.WhichOneof("step") is not None
    if row.state is RoundState.TRAINING:
        reply.retry_after_ms = pacing.milliseconds(_training_wait_s(run, row, seat, now, pacing))
    else:
        reply.retry_after_ms = AT_ONCE_MS if has_step else pacing.milliseconds(pacing.settings.masking_s)
    # A site that waits for the others' messages would be back in a moment; the held call answers it sooner.
    concerned = seat.state not in (SeatState.LEFT_OUT, SeatState.DECLINED)
    hold = concerned and not has_step and reply.retry_after_ms <= HOLD_BELOW_MS
    return PollAnswer(reply, SeatKey(row.run_id, row.number, site), hold)


def plan_for(app: AppContext, site: str, plan_digest: bytes) -> tuple[SignedPlan, SeatKey]:
    """Return the signed plan of a run in which the site has a seat, and the seat that its bytes count for.

    Raises:
        NotFound: When there is no such plan, or only in a run without this site.
    """
    with app.store.read() as session:
        run = run_rows.by_plan(session, plan_digest)
        number = round_rows.newest_seat(session, run.run_id, site)
    if number is None:
        raise NotFound("no plan of that digest in a run of this site")
    return SignedPlan.FromString(run.signed_plan), SeatKey(run.run_id, number, site)


# --- 1. the round is over, or continues without the site ---


def _close(
    session: Session, site: str, ref: RoundRef, position: round_rows.SitePosition
) -> tuple[pb.CloseStep | None, SeatKey | None]:
    """Say how the round that the site works on has ended for it, if it has, and return the site's seat in it."""
    run, row, seat = position.run, position.row, position.seat
    if run is None or row is None or (row.run_id, row.number) != (ref.run_id, ref.round):
        try:
            run = run_rows.get(session, ref.run_id)
            row = round_rows.get(session, ref.run_id, ref.round)
        except NotFound:  # of another aggregator, or from before a restored backup
            return pb.CloseStep(round=ref, outcome=pb.CloseStep.RUN_OVER), None
        seat = round_rows.seat(session, row.id, site)
    if seat is None:
        return pb.CloseStep(round=ref, outcome=pb.CloseStep.NOT_IN_COHORT), None
    key = SeatKey(row.run_id, row.number, site)
    outcome = _outcome(run, row, seat)
    if outcome is None:
        return None, key
    close = pb.CloseStep(round=ref, outcome=outcome)
    if outcome in (pb.CloseStep.PUBLISHED, pb.CloseStep.REFUSED):
        close.published.CopyFrom(published_sum(row))
        close.uploaded.extend(round_rows.senders(session, row.id, Seat.upload_claim))
    elif outcome == pb.CloseStep.ABANDONED:
        close.bad_dealings.extend(bad_dealings(session, row))
    return close, key


def _outcome(run: Run, row: Round, seat: Seat) -> pb.CloseStep.Outcome.ValueType | None:
    """Return the outcome of the round for this seat; None while it continues and may still need the site."""
    if seat.state is SeatState.LEFT_OUT:
        return pb.CloseStep.NOT_IN_COHORT
    if row.state is RoundState.PUBLISHED:
        return pb.CloseStep.NOT_IN_COHORT if seat.state is SeatState.DECLINED else pb.CloseStep.PUBLISHED
    if row.state is RoundState.ABANDONED and row.sum_blob is not None and run.state in run_rows.ACTIVE:
        return pb.CloseStep.REFUSED
    if row.state is RoundState.ABANDONED:
        return pb.CloseStep.ABANDONED if run.state in run_rows.ACTIVE else pb.CloseStep.RUN_OVER
    return None


# --- 2. the step that is due ---


def _step(session: Session, run: Run, row: Round, seat: Seat, request: pb.PollRequest, now: datetime) -> pb.PollReply:
    """Return a reply with the step that the seat is due, or without one."""
    reply = pb.PollReply()
    if row.state is RoundState.TRAINING:
        # A member that missed a phase of a failed attempt is offered the round again: it still holds its update, and
        # sends Ready once more if it is back.
        if seat.state in (SeatState.OFFERED, SeatState.MISSED):
            reply.train.CopyFrom(_train(session, run, row, request.model_digest, now))
        return reply
    if row.state not in MASKING_PHASES or seat.state is not PHASE_SEATS[row.state][0]:
        return reply
    ref = round_ref(row)
    match row.state:
        case RoundState.KEYS:
            reply.keys.CopyFrom(pb.KeysStep(round=ref, base_model_digest=row.base_model, roster_epoch=row.roster_epoch))
        case RoundState.SHARES:
            payloads = round_rows.payloads(session, row.id, Seat.advertisement)
            advertisements = [Advertisement.FromString(data) for data in payloads.values()]
            reply.shares.CopyFrom(pb.SharesStep(round=ref, advertisements=advertisements))
        case RoundState.UPLOAD:
            dealt = masking_rows.dealt_to(session, row.id, seat.site)
            shares = [EncryptedShare.FromString(data) for dealer, data in dealt.items() if dealer != seat.site]
            reply.upload.CopyFrom(pb.UploadStep(round=ref, members=list(dealt), shares=shares))
        case RoundState.CONFIRM:
            uploaded = round_rows.senders(session, row.id, Seat.upload_claim)
            complaints = complaints_about(session, row, seat.site)
            reply.confirm.CopyFrom(pb.ConfirmStep(round=ref, uploaded=uploaded, complaints=complaints))
        case RoundState.REVEAL:
            uploaded = round_rows.senders(session, row.id, Seat.upload_claim)
            payloads = round_rows.payloads(session, row.id, Seat.confirmation)
            confirmations = [Confirmation.FromString(data) for data in payloads.values()]
            # Opened shares are for the aggregator. A member needs the signatures alone.
            for confirmation in confirmations:
                confirmation.ClearField("opened")
            reply.reveal.CopyFrom(pb.RevealStep(round=ref, uploaded=uploaded, confirmations=confirmations))
    return reply


def _train(session: Session, run: Run, row: Round, held_model: bytes, now: datetime) -> pb.TrainStep:
    base, plan = run_rows.model_by_digest(session, run.run_id, row.base_model), plan_of(run)
    certificate = certificate_of(session, run, base)
    # Members sign within moments. Where one never does, sums are the only way that needs no other site's word.
    is_late = (now - row.began_at).total_seconds() >= plan.deadlines.phase_s
    rollbacks = run_rows.rollbacks(session, run.run_id)
    chain, initial = _chain(session, run, held_model, base, rollbacks, at_any_cost=certificate is None and is_late)
    return pb.TrainStep(
        round=RoundRef(run_id=row.run_id, round=row.number, attempt=0),
        plan_digest=run.plan_digest,
        base_model_digest=row.base_model,
        predecessor_digest=row.predecessor or b"",
        rollback=SignedRollback.FromString(rollbacks[-1].signed) if rollbacks else None,
        evaluation_only=plan.evaluates_only(row.number),
        whole_model=_blob_of(base),
        chain=chain,
        certificate=certificate,
        initial_model=None if initial is None else _blob_of(initial),
        seconds_left=max(0, math.floor((row.deadline - now).total_seconds())),
    )


def _chain(
    session: Session,
    run: Run,
    held_model: bytes,
    newest: ModelVersion,
    rollbacks: Sequence[RollbackRecord],
    *,
    at_any_cost: bool,
) -> tuple[list[pb.PublishedSum], ModelVersion | None]:
    """Return the sums that lead from a model the site holds to the newest; none when they are longer than it.

    A single sum is returned in any case, and so are sums that lead back from a refused model: nothing else proves that
    it was refused. At any cost, all are: from the initial model, which is then returned too, for a site that holds no
    model of the run. Sums of before the newest rollback lead nowhere: its model is then the first one.
    """
    models = run_rows.models(session, run.run_id)
    root, first = models[0], 0
    if rollbacks:
        root = run_rows.model_by_digest(session, run.run_id, rollbacks[-1].model_digest)
        first = rollbacks[-1].after_round
    holding = [model.round_number for model in models if model.digest == held_model and model.round_number > first]
    if held_model == root.digest:
        holding.append(first)
    if not holding and (newest.digest == root.digest or not at_any_cost):
        return [], None
    first = max(holding, default=first)
    rows = [row for row in round_rows.of_run(session, run.run_id) if row.number > first and _led_on(row)]
    links = [published_sum(row) for row in rows]
    if not links:
        return [], None
    at_any_cost = at_any_cost or any(row.next_model == row.predecessor for row in rows)
    shorter = len(links) <= CHAIN_LINKS_MAX and sum(link.sum.size_bytes for link in links) <= newest.size_bytes
    # A site that holds the model before takes its sum and nothing else, also where the sum is larger than the model.
    if shorter or len(links) == 1 or at_any_cost:
        return links, None if holding else root
    return [], None


def _led_on(row: Round) -> bool:
    return row.state is RoundState.PUBLISHED and row.next_model != row.base_model


def _blob_of(model: ModelVersion) -> pb.BlobRef:
    return pb.BlobRef(digest=model.blob, size_bytes=model.size_bytes)


# --- 3. when to poll again ---


def _training_wait_s(run: Run, row: Round, seat: Seat, now: datetime, pacing: PollPacing) -> float:
    waited_s = max(0.0, (now - row.phase_since).total_seconds())
    wait_s = min(pacing.settings.training_s, max(pacing.settings.masking_s, waited_s / PATIENCE))
    if seat.state is SeatState.READY:
        # Masking may begin any moment, and a member that misses a phase costs all members an attempt.
        return min(wait_s, plan_of(run).deadlines.phase_s / READY_PER_PHASE)
    return wait_s
