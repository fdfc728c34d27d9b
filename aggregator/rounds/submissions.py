"""The messages that a site may send in a round. One function a message, one transaction a call.

Every call is idempotent. The same message again is ACCEPTED again; a message whose phase is over is LATE, which is an
answer and not an error: the site polls and learns what to do. An error is only for messages that no honest site sends:
a second, different message in the same phase, a forged signature, shares for the wrong peers.

A message counts only while its round is locked in the phase it belongs to, so the driver never sees half of one.
"""

import hashlib
from collections.abc import Callable
from typing import Literal

from federation import secagg
from federation.encoding import Layout
from federation.masking_messages import advertisement_of, dealt_of, opened_of
from federation.v1 import rounds_pb2 as pb
from federation.v1.blobs_pb2 import RoundRef
from federation.v1.secagg_pb2 import (
    ComplaintMessage,
    ConfirmMessage,
    EncryptedShare,
    KeysMessage,
    RevealMessage,
    SharesMessage,
    UploadMessage,
)
from federation.vocabulary import DECLINE_REASONS
from google.protobuf.message import Message
from sqlalchemy.orm import InstrumentedAttribute, Session

from aggregator.context import AppContext
from aggregator.errors import MessageRefused
from aggregator.rounds import messages
from aggregator.rounds.cohort import MaskingAttempt, attempt_of, complaints_of
from aggregator.runs.plans import plan_of
from aggregator.states import MASKING_PHASES, PHASE_SEATS, RoundState, SeatState
from aggregator.store import Change, masking_rows, record, round_rows, run_rows
from aggregator.store.tables import Round, Seat

Receipt = Literal["accepted", "late"]
Check = Callable[[Session, Round, MaskingAttempt], None]

_HOLDS_UPDATE = frozenset({SeatState.READY, *(state for pair in PHASE_SEATS.values() for state in pair)})


def accept_ready(app: AppContext, site: str, message: pb.ReadyMessage) -> Receipt:
    """Accept that the site holds a trained update for the round.

    Raises:
        NotFound: When the site has no seat in the round; so do all functions here.
    """
    with app.store.write() as session:
        run, row, seat = round_rows.lock(session, message.round.run_id, message.round.round, site)
        # Also past READY: the answer was lost, and the cohort may have been frozen since.
        if seat.state in _HOLDS_UPDATE and row.state not in round_rows.OVER:
            return "accepted"
        if row.state is not RoundState.TRAINING or seat.state not in (SeatState.OFFERED, SeatState.MISSED):
            return "late"
        change = _change(app, row, site, "holds an update")
        round_rows.move_seat(session, row, site, seat.state, SeatState.READY, change)
        states = list(round_rows.seat_states(session, row.id).values())
        target = plan_of(run).cohort.target
    # Below the target a driver's look would find nothing: it waits for the deadline, or for every other site.
    if states.count(SeatState.READY) >= target:
        app.work_due.notify()
    return "accepted"


def accept_decline(app: AppContext, site: str, message: pb.DeclineMessage) -> Receipt:
    """Accept that the site takes no part in the round. A member of the cohort is LATE: it may have masked already.

    Raises:
        MessageRefused: For a reason with which no site may decline.
    """
    reasons = {reason.number: reason for reason in DECLINE_REASONS}
    reason = reasons.get(message.reason)
    if reason is None:
        raise MessageRefused(f"expected one of {', '.join(sorted(DECLINE_REASONS))} as the reason to decline")
    with app.store.write() as session:
        _run, row, seat = round_rows.lock(session, message.round.run_id, message.round.round, site)
        if seat.state is SeatState.DECLINED:
            return "accepted"
        if row.state is not RoundState.TRAINING or seat.state not in (SeatState.OFFERED, SeatState.READY):
            return "late"
        change = _change(app, row, site, reason.value)
        values = {"decline_reason": reason.value}
        round_rows.move_seat(session, row, site, seat.state, SeatState.DECLINED, change, values)
    app.work_due.notify()  # when all others are ready, the round need not wait for its deadline
    return "accepted"


def accept_keys(app: AppContext, site: str, message: KeysMessage) -> Receipt:
    """Accept the member's fresh public keys, signed with its roster key.

    Raises:
        SecaggError: For a forged signature or weak keys, or when another member has the same keys.
        MessageRefused: For keys in another site's name; and see `_accept`.
    """

    def check(_session: Session, _row: Round, masking: MaskingAttempt) -> None:
        _expect_site(message.advertisement.site, site)
        advertisement = advertisement_of(message.advertisement)
        secagg.verify_advertisement(masking.ctx, masking.signing_keys, advertisement)
        # Two members with one key would have the same masks with every third member.
        secagg.check_distinct([*masking.cohort.advertisements.values(), advertisement])

    return _accept(
        app, site, message.round, RoundState.KEYS, Seat.advertisement, _bytes_of(message.advertisement), check
    )


def accept_shares(app: AppContext, site: str, message: SharesMessage) -> Receipt:
    """Accept the shares for every member of U1, the dealer included, sorted by site. Each is signed by the dealer.

    Raises:
        MessageRefused: For shares for other members; and see `_accept`.
        SecaggError: For a forged signature, or a field of another size.
    """

    def check(session: Session, row: Round, masking: MaskingAttempt) -> None:
        # All members or none: one without its share could not help to recover this one's masks.
        expected = [(site, member) for member in masking.cohort.members]
        if [(share.from_site, share.to_site) for share in message.shares] != expected:
            raise MessageRefused(f"expected shares for each of {len(expected)} members, sorted by site")
        # The aggregator cannot read a share. The signature keeps the dealer to it: what a member finds in it, a share
        # or garbage, is the dealer's doing.
        for share in message.shares:
            key = masking.signing_keys[site]
            secagg.verify_dealt(masking.cohort.uctx, site, share.to_site, dealt_of(share), key)
        dealt = {share.to_site: _bytes_of(share) for share in message.shares}
        masking_rows.add_dealt(session, row.id, site, dealt)

    # The seat keeps a digest only: the shares of a large cohort are megabytes, and are kept by member.
    digest = hashlib.sha256(_bytes_of(message)).digest()
    return _accept(app, site, message.round, RoundState.SHARES, Seat.shares_digest, digest, check)


def accept_complaints(app: AppContext, site: str, message: ComplaintMessage) -> Receipt:
    """Accept that shares which dealers signed for this member are none. It comes before the upload, or not at all.

    Raises:
        MessageRefused: For a second message that differs, complaints in another site's name, unsorted or repeated, or
            more than an honest member has.
        SecaggError: For a complaint that is not signed over what the dealer dealt.
    """
    data = _bytes_of(message)
    dealers = [complaint.dealer for complaint in message.complaints]
    if not dealers or dealers != sorted(set(dealers)):
        raise MessageRefused("expected one complaint or more, one about each dealer, sorted by dealer")
    with app.store.write() as session:
        run, row, seat = round_rows.lock(session, message.round.run_id, message.round.round, site)
        if message.round.attempt > row.attempt:
            raise MessageRefused(f"expected attempt {row.attempt} of the round, got {message.round.attempt}")
        if seat.complaints is not None and message.round.attempt == row.attempt:
            if seat.complaints != data:
                raise MessageRefused("other complaints of this member were accepted; they cannot change")
            return "accepted"
        is_due = row.state is RoundState.UPLOAD and seat.state is SeatState.SHARED
        if message.round.attempt < row.attempt or not is_due:
            return "late"
        masking = attempt_of(session, run, row)
        most = secagg.complaints_max(len(masking.cohort.members))
        if len(dealers) > most:
            raise MessageRefused(f"expected complaints about {most} dealers at most, as many as may be corrupt")
        shared = masking_rows.dealt_to(session, row.id, site)
        for complaint in message.complaints:
            _expect_site(complaint.site, site)
            if complaint.dealer not in shared or complaint.dealer == site:
                raise MessageRefused("expected complaints about other members that dealt shares, got another")
            dealt = dealt_of(EncryptedShare.FromString(shared[complaint.dealer]))
            key = masking.signing_keys[site]
            secagg.verify_complaint(masking.cohort.uctx, site, complaint.dealer, dealt, complaint.signature, key)
        masking_rows.keep_complaints(session, row.id, site, data)
        for dealer in dealers:
            record(session, _change(app, row, site, f"the shares of {dealer} are none"), None, "complained")
    app.work_due.notify()  # with enough complaints the attempt starts over without the dealer
    return "accepted"


def accept_upload(app: AppContext, site: str, message: UploadMessage) -> Receipt:
    """Accept the signed digest of the masked words, whose blob must be complete.

    Raises:
        MessageRefused: For a digest that was not offered, or a blob that is not complete; and see `_accept`.
        SecaggError: For a forged signature.
    """

    def check(session: Session, row: Round, masking: MaskingAttempt) -> None:
        _expect_site(message.claim.site, site)
        run = run_rows.get(session, row.run_id)
        seat = round_rows.held_seat(session, row.id, site)
        if seat.upload_digest != message.claim.digest:
            raise MessageRefused("expected the digest of the blob offered in this attempt; offer and send it first")
        # A claim without its bytes would count toward the threshold and could not be summed.
        size_bytes = Layout.of_round(plan_of(run), row.number).bytes
        if not app.uploads.offer(message.claim.digest, size_bytes).complete:
            raise MessageRefused("expected a complete blob; send the rest of it, then claim it")
        claim, key = message.claim, masking.signing_keys[site]
        secagg.verify_claim(masking.cohort.uctx, site, claim.digest, claim.signature, key)

    return _accept(app, site, message.round, RoundState.UPLOAD, Seat.upload_claim, _bytes_of(message.claim), check)


def accept_confirm(app: AppContext, site: str, message: ConfirmMessage) -> Receipt:
    """Accept the member's signature over the set of members whose uploads arrived (U3).

    A member that was complained about opens the shares in question with it.

    Raises:
        SecaggError: For a forged signature, or one over another set, or opened shares that are not those it dealt.
        MessageRefused: For a confirmation in another site's name, or without the shares that it has to open; and see
            `_accept`.
    """

    def check(session: Session, row: Round, masking: MaskingAttempt) -> None:
        _expect_site(message.confirmation.site, site)
        uploaded = round_rows.senders(session, row.id, Seat.upload_claim)
        signature, key = message.confirmation.signature, masking.signing_keys[site]
        secagg.verify_confirmation(masking.cohort.uctx, site, uploaded, signature, key)
        accusers = complaints_of(session, row).get(site, [])
        if [shares.to_site for shares in message.confirmation.opened] != accusers:
            raise MessageRefused(f"expected the shares that {len(accusers)} members complained about, opened")
        opened = opened_of(message.confirmation)
        for data in masking_rows.dealt(session, row.id, [site], accusers) if accusers else ():
            share = EncryptedShare.FromString(data)
            secagg.verify_opened(masking.cohort.uctx, site, share.to_site, dealt_of(share), opened[share.to_site])

    data = _bytes_of(message.confirmation)
    return _accept(app, site, message.round, RoundState.CONFIRM, Seat.confirmation, data, check)


def accept_reveal(app: AppContext, site: str, message: RevealMessage) -> Receipt:
    """Accept one share about each member of U2: of its seed if it uploaded, of its mask key if it did not.

    Nothing about a dealer that this member complained about.

    Raises:
        MessageRefused: For shares that are not sorted by site; and see `_accept`.
        SecaggError: For shares about other members, of the wrong secret, or not those that were dealt. Both secrets of
            one member would unmask its update.
    """

    def check(session: Session, row: Round, masking: MaskingAttempt) -> None:
        uploaded = round_rows.senders(session, row.id, Seat.upload_claim)
        shared = masking_rows.dealt_to(session, row.id, site)
        dealt = {dealer: {site: dealt_of(EncryptedShare.FromString(data))} for dealer, data in shared.items()}
        complaints = ComplaintMessage.FromString(round_rows.held_seat(session, row.id, site).complaints or b"")
        complained = [complaint.dealer for complaint in complaints.complaints]
        if [share.about_site for share in message.shares] != sorted({share.about_site for share in message.shares}):
            raise MessageRefused("expected one share about each member, sorted by site")
        answer, key = messages.reveals(message), masking.signing_keys[site]
        secagg.verify_answer(masking.cohort, dealt, uploaded, complained, site, answer, message.signature, key)

    return _accept(app, site, message.round, RoundState.REVEAL, Seat.reveal, _bytes_of(message), check)


# --- what the five phases have in common ---


def _accept(
    app: AppContext,
    site: str,
    ref: RoundRef,
    phase: RoundState,
    column: InstrumentedAttribute[bytes | None],
    data: bytes,
    check: Check,
) -> Receipt:
    """Keep `data` in the seat's `column` and move the seat, if it is this member's turn in `phase`.

    Raises:
        MessageRefused: For an attempt or a phase that has not begun, or a second message that differs from the first.
    """
    before, after = PHASE_SEATS[phase]
    with app.store.write() as session:
        run, row, seat = round_rows.lock(session, ref.run_id, ref.round, site)
        if ref.attempt > row.attempt:
            raise MessageRefused(f"expected attempt {row.attempt} of the round, got {ref.attempt}")
        if ref.attempt < row.attempt:
            return "late"
        # Compared before the phase: the answer to a message may be lost, and its repetition come a phase later.
        accepted: bytes | None = getattr(seat, column.key)
        if accepted is not None:
            if accepted != data:
                raise MessageRefused(f"another message of this member was accepted in phase {phase}; it cannot change")
            return "accepted"
        if row.state is not phase:
            order = (RoundState.TRAINING, *MASKING_PHASES)
            if row.state in order and order.index(row.state) < order.index(phase):
                # Only a site that does not poll is early.
                raise MessageRefused(f"phase {phase} has not begun; the round is in {row.state}. Poll for what to do")
            return "late"
        if seat.state is not before:
            return "late"
        # Under the lock: the sets of members that a check reads cannot change before the seat has moved.
        check(session, row, attempt_of(session, run, row))
        change = _change(app, row, site, phase.value)
        round_rows.move_seat(session, row, site, before, after, change, {column.key: data})
        all_answered = before not in round_rows.seat_states(session, row.id).values()
    if all_answered:
        app.work_due.notify()
    return "accepted"


def _bytes_of(message: Message) -> bytes:
    # Serialized again and deterministically: the same message has the same bytes, however it was encoded on the way.
    return message.SerializeToString(deterministic=True)


def _expect_site(named: str, caller: str) -> None:
    if named != caller:
        raise MessageRefused(f"expected a message of {caller}, got one in another site's name")


def _change(app: AppContext, row: Round, site: str, why: str) -> Change:
    return Change(app.clock(), f"site:{site}", round_rows.seat_subject(row, site), why)
