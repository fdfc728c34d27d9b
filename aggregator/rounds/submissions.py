"""What a site may say in a round, and what becomes of it. One function a message, one transaction a call.

Every call is idempotent. The same message again is ACCEPTED again; a message whose phase is over is LATE, which is an
answer and not an error: the site polls and learns what to do. Refused with an error is only what no honest site sends:
a second, different message in the same phase, a forged signature, shares for the wrong peers.

A message is counted only while its round is locked in the phase it belongs to, so the driver never sees half of one.
"""

from collections.abc import Callable
from typing import Literal

from federation import secagg
from federation.advertisement import advertisement_of
from federation.encoding import Layout
from federation.secagg.keys import CIPHERTEXT_BYTES
from federation.v1 import rounds_pb2 as pb
from federation.v1.blobs_pb2 import RoundRef
from federation.v1.secagg_pb2 import ConfirmMessage, KeysMessage, RevealMessage, SharesMessage, UploadMessage
from google.protobuf.message import Message
from sqlalchemy.orm import InstrumentedAttribute, Session

from aggregator.context import AppContext
from aggregator.errors import MessageRefused
from aggregator.rounds import messages
from aggregator.rounds.cohort import MaskingAttempt, attempt_of
from aggregator.runs.plans import plan_of
from aggregator.states import MASKING_PHASES, PHASE_SEATS, RoundState, SeatState
from aggregator.store import Change, round_rows, run_rows
from aggregator.store.tables import Round, Seat

Receipt = Literal["accepted", "late"]
Check = Callable[[Session, Round, MaskingAttempt], None]

DECLINE_REASONS = frozenset({pb.PLAN_REFUSED, pb.POLICY, pb.TOO_FEW_STUDIES, pb.NO_LABELS, pb.TRAINING_FAILED})
_HOLDS_UPDATE = frozenset({SeatState.READY, *(state for pair in PHASE_SEATS.values() for state in pair)})


def accept_ready(app: AppContext, site: str, message: pb.ReadyMessage) -> Receipt:
    """The site holds a trained update for the round."""
    with app.store.write() as session:
        run, row, seat = round_rows.lock(session, message.round.run_id, message.round.round, site)
        if seat.state in _HOLDS_UPDATE and row.state not in round_rows.OVER:
            return "accepted"
        if row.state is not RoundState.TRAINING or seat.state not in (SeatState.OFFERED, SeatState.MISSED):
            return "late"
        change = _change(app, row, site, "holds an update")
        round_rows.move_seat(session, row, site, seat.state, SeatState.READY, change)
        states = round_rows.seat_states(session, row.id)
        enough = plan_of(run).cohort.target
    if len(round_rows.sites_in(states, {SeatState.READY})) >= enough:
        app.work_due.notify()
    return "accepted"


def accept_decline(app: AppContext, site: str, message: pb.DeclineMessage) -> Receipt:
    """The site takes no part in the round. A cohort member that has masked already cannot step back: LATE."""
    if message.reason not in DECLINE_REASONS:
        allowed = ", ".join(sorted(pb.StateReason.Name(reason) for reason in DECLINE_REASONS))
        raise MessageRefused(f"expected one of {allowed} as the reason to decline")
    with app.store.write() as session:
        _run, row, seat = round_rows.lock(session, message.round.run_id, message.round.round, site)
        if seat.state is SeatState.DECLINED:
            return "accepted"
        if row.state is not RoundState.TRAINING or seat.state not in (SeatState.OFFERED, SeatState.READY):
            return "late"
        reason = pb.StateReason.Name(message.reason)
        change = _change(app, row, site, reason)
        round_rows.move_seat(session, row, site, seat.state, SeatState.DECLINED, change, {"decline_reason": reason})
    app.work_due.notify()  # with everybody else ready, nobody has to wait for the deadline
    return "accepted"


def accept_keys(app: AppContext, site: str, message: KeysMessage) -> Receipt:
    """The member's fresh public keys, signed with its roster key."""

    def check(_session: Session, _row: Round, masking: MaskingAttempt) -> None:
        _expect_site(message.advertisement.site, site)
        sent = advertisement_of(message.advertisement)
        secagg.verify_advertisement(masking.ctx, masking.signing_keys, sent)
        secagg.check_distinct([*masking.cohort.advertisements.values(), sent])

    return _accept(app, site, message.round, RoundState.KEYS, Seat.advertisement, message.advertisement, check)


def accept_shares(app: AppContext, site: str, message: SharesMessage) -> Receipt:
    """One ciphertext for every other member of U1, sorted."""

    def check(_session: Session, _row: Round, masking: MaskingAttempt) -> None:
        expected = [(site, other) for other in masking.cohort.members if other != site]
        if [(share.from_site, share.to_site) for share in message.shares] != expected:
            raise MessageRefused(f"expected one share for each of {len(expected)} peers, sorted by site")
        if any(len(share.ciphertext) != CIPHERTEXT_BYTES for share in message.shares):
            raise MessageRefused(f"expected ciphertexts of {CIPHERTEXT_BYTES} bytes")

    return _accept(app, site, message.round, RoundState.SHARES, Seat.shares, message, check)


def accept_upload(app: AppContext, site: str, message: UploadMessage) -> Receipt:
    """The signed digest of the masked words; their blob must be complete."""

    def check(session: Session, row: Round, masking: MaskingAttempt) -> None:
        _expect_site(message.claim.site, site)
        run = run_rows.get(session, row.run_id)
        seat = round_rows.held_seat(session, row.id, site)
        if seat.upload_digest != message.claim.digest:
            raise MessageRefused("expected the digest of the blob offered in this attempt; offer and send it first")
        size = Layout.of_round(plan_of(run), row.number).bytes
        if not app.uploads.offer(message.claim.digest, size).complete:
            raise MessageRefused("expected a complete blob; send the rest of it, then claim it")
        claim, key = message.claim, masking.signing_keys[site]
        secagg.verify_claim(masking.cohort.uctx, site, claim.digest, claim.signature, key)

    return _accept(app, site, message.round, RoundState.UPLOAD, Seat.upload_claim, message.claim, check)


def accept_confirm(app: AppContext, site: str, message: ConfirmMessage) -> Receipt:
    """The member's signature over the set of members whose uploads arrived."""

    def check(session: Session, row: Round, masking: MaskingAttempt) -> None:
        _expect_site(message.confirmation.site, site)
        uploaded = round_rows.senders(session, row.id, Seat.upload_claim)
        signature, key = message.confirmation.signature, masking.signing_keys[site]
        secagg.verify_confirmation(masking.cohort.uctx, site, uploaded, signature, key)

    return _accept(app, site, message.round, RoundState.CONFIRM, Seat.confirmation, message.confirmation, check)


def accept_reveal(app: AppContext, site: str, message: RevealMessage) -> Receipt:
    """One share a member of U2: of the seed if it uploaded, of the mask key if it did not."""

    def check(session: Session, row: Round, masking: MaskingAttempt) -> None:
        shared = round_rows.senders(session, row.id, Seat.shares)
        uploaded = round_rows.senders(session, row.id, Seat.upload_claim)
        if [share.about_site for share in message.shares] != shared:
            raise MessageRefused(f"expected one share about each of {len(shared)} members, sorted by site")
        secagg.verify_answer(masking.cohort, shared, uploaded, site, messages.reveals(message))

    return _accept(app, site, message.round, RoundState.REVEAL, Seat.reveal, message, check)


# --- what the five phases have in common ---


def _accept(
    app: AppContext,
    site: str,
    ref: RoundRef,
    phase: RoundState,
    column: InstrumentedAttribute[bytes | None],
    payload: Message,
    check: Check,
) -> Receipt:
    """Keep `payload` in the seat's `column` and move the seat on, if it is this member's turn in `phase`."""
    data = payload.SerializeToString(deterministic=True)
    before, after = PHASE_SEATS[phase]
    with app.store.write() as session:
        run, row, seat = round_rows.lock(session, ref.run_id, ref.round, site)
        if ref.attempt > row.attempt:
            raise MessageRefused(f"expected attempt {row.attempt} of the round, got {ref.attempt}")
        if ref.attempt < row.attempt:
            return "late"
        kept: bytes | None = getattr(seat, column.key)
        if kept is not None:
            if kept != data:
                raise MessageRefused(f"another message of this member was accepted in phase {phase}; it cannot change")
            return "accepted"
        if row.state is not phase:
            _refuse_early(row, phase)
            return "late"
        if seat.state is not before:
            return "late"
        check(session, row, attempt_of(session, run, row))
        round_rows.move_seat(
            session, row, site, before, after, _change(app, row, site, phase.value), {column.key: data}
        )
        waiting = round_rows.sites_in(round_rows.seat_states(session, row.id), {before})
    if not waiting:
        app.work_due.notify()
    return "accepted"


def _refuse_early(row: Round, phase: RoundState) -> None:
    """A message for a phase that has not begun can only come from a site that does not poll."""
    order = (RoundState.TRAINING, *MASKING_PHASES)
    if row.state in order and order.index(row.state) < order.index(phase):
        raise MessageRefused(f"phase {phase} has not begun; the round is in {row.state}. Poll for what to do")


def _expect_site(named: str, caller: str) -> None:
    if named != caller:
        raise MessageRefused(f"expected a message of {caller}, got one in another site's name")


def _change(app: AppContext, row: Round, site: str, why: str) -> Change:
    return Change(app.clock(), f"site:{site}", round_rows.seat_subject(row, site), why)
