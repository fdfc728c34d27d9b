"""What a Poll is answered. A function of the rows, the request and the clock: the aggregator remembers no conversation.

The same rows give the same step, so a lost answer, a restarted site or a restarted aggregator need no special care:
the site polls again and is told the same. The order of the questions asked here:

1. Does the site still work on something that is over, or that goes on without it? Then Close.
2. Is it a seat's turn in the newest round of the active run? Then that step.
3. Otherwise nothing, and how long to stay away: seconds after a phase began, minutes after an hour of waiting.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from federation.v1 import rounds_pb2 as pb
from federation.v1.blobs_pb2 import RoundRef
from federation.v1.plan_pb2 import SignedPlan
from federation.v1.secagg_pb2 import Advertisement, Confirmation, EncryptedShare, SharesMessage
from sqlalchemy.orm import Session

from aggregator.config import PacingSettings
from aggregator.context import AppContext
from aggregator.errors import NotFound
from aggregator.rounds.messages import published_sum, round_ref
from aggregator.runs.plans import plan_of
from aggregator.states import MASKING_PHASES, PHASE_SEATS, RoundState, RunState, SeatState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import ModelVersion, Round, Run, Seat
from aggregator.store.traffic import SeatKey

AT_ONCE_MS = 20  # after a step or a close: do it, then ask again
HOLD_BELOW_MS = 2_000  # an answer is worth holding when the site would be back this soon anyway
PATIENCE = 8  # a site that has waited for T seconds comes back T / 8 seconds later
READY_PER_PHASE = 4  # a ready site looks at least this often within one phase's time: it must not miss the first
SEATED_WITHIN_S = 2.0  # a driver looks every half second
CHAIN_LINKS_MAX = 16  # a site further behind takes the whole model


@dataclass(frozen=True)
class PollPacing:
    """Settings of pacing, and a number in [0, 1) drawn anew for each answer to spread sites out."""

    settings: PacingSettings
    jitter: Callable[[], float]

    def milliseconds(self, seconds: float) -> int:
        """`seconds`, varied by a quarter up and down."""
        return max(1, round(1000 * seconds * (0.75 + 0.5 * self.jitter())))


@dataclass(frozen=True)
class PollAnswer:
    """`seat`: whose bytes the call's are. `hold`: whether holding the call back is useful."""

    reply: pb.PollReply
    seat: SeatKey | None
    hold: bool


def answer(session: Session, site: str, request: pb.PollRequest, now: datetime, pace: PollPacing) -> PollAnswer:
    """The reply to one Poll. Reads rows, changes none."""
    here = round_rows.position(session, site)
    epoch, run, row, seat = here.epoch, here.run, here.row, here.seat
    if request.HasField("working_on"):
        close, key = _close(session, site, request.working_on, here)
        if close is not None:
            return PollAnswer(pb.PollReply(retry_after_ms=AT_ONCE_MS, roster_epoch=epoch, close=close), key, hold=False)
    if run is None or row is None or seat is None or row.state in round_rows.OVER:
        reply = pb.PollReply(retry_after_ms=pace.milliseconds(_idle_wait_s(run, pace)), roster_epoch=epoch)
        return PollAnswer(reply, None, hold=False)
    reply = _step(session, run, row, seat, request, now)
    reply.roster_epoch = epoch
    reply.retry_after_ms = _retry_after_ms(reply, run, row, seat, now, pace)
    return PollAnswer(reply, SeatKey(row.run_id, row.number, site), _is_worth_holding(reply, seat))


def plan_for(app: AppContext, site: str, plan_digest: bytes) -> tuple[SignedPlan, SeatKey]:
    """The signed plan of a run in which the site has a seat. Raises: NotFound."""
    with app.store.read() as session:
        run = run_rows.by_plan(session, plan_digest)
        number = round_rows.newest_seat(session, run.run_id, site)
    if number is None:
        raise NotFound("no plan of that digest in a run of this site")
    return SignedPlan.FromString(run.signed_plan), SeatKey(run.run_id, number, site)


# --- 1. what is over ---


def _close(
    session: Session, site: str, ref: RoundRef, here: round_rows.SitePosition
) -> tuple[pb.CloseStep | None, SeatKey | None]:
    """How the round the site works on has ended for it, if it has; and its seat there, if it has one."""
    run, row, seat = here.run, here.row, here.seat
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
    opened = published_sum(row) if outcome == pb.CloseStep.PUBLISHED else None
    return pb.CloseStep(round=ref, outcome=outcome, published=opened), key


def _outcome(run: Run, row: Round, seat: Seat) -> pb.CloseStep.Outcome.ValueType | None:
    """None while the round goes on and may still need this site."""
    if seat.state is SeatState.LEFT_OUT:
        return pb.CloseStep.NOT_IN_COHORT
    if row.state is RoundState.PUBLISHED:
        return pb.CloseStep.NOT_IN_COHORT if seat.state is SeatState.DECLINED else pb.CloseStep.PUBLISHED
    if row.state is RoundState.ABANDONED:
        return pb.CloseStep.ABANDONED if run.state in run_rows.ACTIVE else pb.CloseStep.RUN_OVER
    return None


# --- 2. whose turn it is ---


def _step(session: Session, run: Run, row: Round, seat: Seat, request: pb.PollRequest, now: datetime) -> pb.PollReply:
    """A reply with the step the seat is due, or without one."""
    reply = pb.PollReply()
    if row.state is RoundState.TRAINING:
        # A member that missed a phase of a failed attempt is offered the round again: it still holds its update and
        # says Ready anew if it is back.
        if seat.state in (SeatState.OFFERED, SeatState.MISSED):
            reply.train.CopyFrom(_train(session, run, row, request.model_digest, now))
        return reply
    if row.state not in MASKING_PHASES or seat.state is not PHASE_SEATS[row.state][0]:
        return reply
    ref = round_ref(row)
    if row.state is RoundState.KEYS:
        reply.keys.CopyFrom(pb.KeysStep(round=ref, base_model_digest=row.base_model, roster_epoch=row.roster_epoch))
        return reply
    if row.state is RoundState.SHARES:
        reply.shares.CopyFrom(pb.SharesStep(round=ref, advertisements=_advertisements(session, row)))
    elif row.state is RoundState.UPLOAD:
        members = round_rows.senders(session, row.id, Seat.shares)
        reply.upload.CopyFrom(pb.UploadStep(round=ref, members=members, shares=_shares_for(session, row, seat.site)))
    elif row.state is RoundState.CONFIRM:
        reply.confirm.CopyFrom(pb.ConfirmStep(round=ref, uploaded=_uploaded(session, row)))
    else:
        confirmations = _confirmations(session, row)
        reply.reveal.CopyFrom(pb.RevealStep(round=ref, uploaded=_uploaded(session, row), confirmations=confirmations))
    return reply


def _train(session: Session, run: Run, row: Round, held_model: bytes, now: datetime) -> pb.TrainStep:
    base = run_rows.model_by_digest(session, run.run_id, row.base_model)
    return pb.TrainStep(
        round=RoundRef(run_id=row.run_id, round=row.number, attempt=0),
        plan_digest=run.plan_digest,
        base_model_digest=row.base_model,
        evaluation_only=plan_of(run).evaluates_only(row.number),
        whole_model=pb.BlobRef(digest=base.blob, size_bytes=base.size_bytes),
        chain=_chain(session, run, held_model, base),
        seconds_left=max(0, math.floor((row.deadline - now).total_seconds())),
    )


def _chain(session: Session, run: Run, held_model: bytes, newest: ModelVersion) -> list[pb.PublishedSum]:
    """The sums from the model the site holds to the newest; none when the whole model is the shorter way."""
    if held_model == newest.digest:
        return []
    models = run_rows.models(session, run.run_id)
    held = [model.round_number for model in models if model.digest == held_model]
    if not held:
        return []
    made_by = {model.round_number for model in models if model.round_number > held[-1]}
    links = [published_sum(row) for row in round_rows.of_run(session, run.run_id) if row.number in made_by]
    shorter = len(links) <= CHAIN_LINKS_MAX and sum(link.sum.size_bytes for link in links) <= newest.size_bytes
    return links if shorter else []


def _advertisements(session: Session, row: Round) -> list[Advertisement]:
    return [
        Advertisement.FromString(sent) for sent in round_rows.payloads(session, row.id, Seat.advertisement).values()
    ]


def _shares_for(session: Session, row: Round, site: str) -> list[EncryptedShare]:
    messages = (SharesMessage.FromString(sent) for sent in round_rows.payloads(session, row.id, Seat.shares).values())
    return [share for message in messages for share in message.shares if share.to_site == site]


def _uploaded(session: Session, row: Round) -> list[str]:
    return round_rows.senders(session, row.id, Seat.upload_claim)


def _confirmations(session: Session, row: Round) -> list[Confirmation]:
    return [Confirmation.FromString(sent) for sent in round_rows.payloads(session, row.id, Seat.confirmation).values()]


# --- 3. how long to stay away ---


def _retry_after_ms(reply: pb.PollReply, run: Run, row: Round, seat: Seat, now: datetime, pace: PollPacing) -> int:
    if row.state is RoundState.TRAINING:
        return pace.milliseconds(_training_wait_s(run, row, seat, now, pace))
    return pace.milliseconds(pace.settings.masking_s) if reply.WhichOneof("step") is None else AT_ONCE_MS


def _is_worth_holding(reply: pb.PollReply, seat: Seat) -> bool:
    """Whether the site waits for something that the others may bring about any moment."""
    concerned = seat.state not in (SeatState.LEFT_OUT, SeatState.DECLINED)
    return concerned and reply.WhichOneof("step") is None and reply.retry_after_ms <= HOLD_BELOW_MS


def _idle_wait_s(run: Run | None, pace: PollPacing) -> float:
    """Without a run nothing is near; a running one seats a new site, or opens its next round, within moments."""
    if run is None:
        return pace.settings.idle_s
    return pace.settings.paused_s if run.state is RunState.PAUSED else min(pace.settings.idle_s, SEATED_WITHIN_S)


def _training_wait_s(run: Run, row: Round, seat: Seat, now: datetime, pace: PollPacing) -> float:
    waited_s = max(0.0, (now - row.phase_since).total_seconds())
    wait_s = min(pace.settings.training_s, max(pace.settings.masking_s, waited_s / PATIENCE))
    if seat.state is SeatState.READY:
        return min(wait_s, plan_of(run).deadlines.phase_s / READY_PER_PHASE)
    return wait_s
