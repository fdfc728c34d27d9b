"""The cohort of one attempt as secure aggregation sees it, read from the seats.

The sets of the protocol are the messages that have arrived, independent of a seat's state. So a member that missed a
later phase keeps its place in the earlier sets. U1 advertised keys, U2 sent shares, U3 uploaded, U4 confirmed, U5
revealed; each lies within the one before. The set of a phase is read after that phase, so it no longer changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from federation import secagg
from federation.masking_messages import advertisement_of, opened_of
from federation.v1 import secagg_pb2
from sqlalchemy.orm import Session

from aggregator.rounds import messages
from aggregator.runs.plans import plan_of
from aggregator.sites.roster import roster_of
from aggregator.store import round_rows
from aggregator.store.tables import Round, Run, Seat


@dataclass(frozen=True)
class MaskingAttempt:
    """One attempt: its context, the keys that members sign with, and U1 with its advertisements."""

    ctx: secagg.Context
    signing_keys: dict[str, bytes]  # Ed25519 public key by site, of the frozen roster
    cohort: secagg.Cohort


def attempt_of(session: Session, run: Run, row: Round) -> MaskingAttempt:
    """Read the attempt frozen in `row`; only rounds past TRAINING have one.

    A plan admits at most 500 members, so the whole cohort is one complete graph (`secagg.split`).
    """
    plan = plan_of(run)
    ctx = secagg.context(plan.digest, row.base_model, row.run_id, row.number, row.attempt, row.roster_epoch)
    cohort = _cohort(ctx, tuple(round_rows.payloads(session, row.id, Seat.advertisement).items()))
    return MaskingAttempt(ctx, roster_of(session, row.roster_epoch).signing_keys, cohort)


def complaints_of(session: Session, row: Round) -> dict[str, list[str]]:
    """Return by dealer the members that complained about it in the current attempt; their signatures hold."""
    complaints: dict[str, list[str]] = {}
    for complaint in _complaints(session, row):
        complaints.setdefault(complaint.dealer, []).append(complaint.site)
    return complaints


def complaints_about(session: Session, row: Round, dealer: str) -> list[secagg_pb2.Complaint]:
    """Return the complaints about one dealer in the current attempt, sorted by site."""
    return [complaint for complaint in _complaints(session, row) if complaint.dealer == dealer]


def guilty_dealers(session: Session, row: Round, members: int) -> list[str]:
    """Return the dealers whose shares are none by the word of more members than may be corrupt.

    Args:
        session: A session of `Store.read` or `Store.write`.
        row: A round in UPLOAD.
        members: Of U1.
    """
    return secagg.proven_dealers(members, complaints_of(session, row))


def answers_of(session: Session, row: Round) -> dict[str, secagg.Answer]:
    """Return the revealed shares by revealer, and those that dealers opened as the answers of who had complained."""
    uploaded = round_rows.senders(session, row.id, Seat.upload_claim)
    revealed = round_rows.payloads(session, row.id, Seat.reveal)
    confirmed = round_rows.payloads(session, row.id, Seat.confirmation)
    answers = {site: messages.reveals(secagg_pb2.RevealMessage.FromString(data)) for site, data in revealed.items()}
    opened = {site: opened_of(secagg_pb2.Confirmation.FromString(data)) for site, data in confirmed.items()}
    return secagg.with_opened(answers, opened, uploaded)


def is_recoverable(session: Session, row: Round, members: int) -> bool:
    """Whether the shares of at least t members about each member of U2 are here.

    Every member that reveals gives one, but for the dealers that it complained about; each of these has opened it.

    Args:
        session: A session of `Store.read` or `Store.write`.
        row: A round in REVEAL.
        members: Of U1.
    """
    revealed = set(round_rows.senders(session, row.id, Seat.reveal))
    confirmed = round_rows.senders(session, row.id, Seat.confirmation)
    complaints = complaints_of(session, row)

    def holders(dealer: str) -> set[str]:
        accusers = set(complaints.get(dealer, ()))
        return revealed | accusers if dealer in confirmed else revealed - accusers

    shared = round_rows.senders(session, row.id, Seat.shares_digest)
    return all(len(holders(dealer)) >= secagg.threshold(members) for dealer in shared)


def _complaints(session: Session, row: Round) -> Iterator[secagg_pb2.Complaint]:
    for data in round_rows.payloads(session, row.id, Seat.complaints).values():
        yield from secagg_pb2.ComplaintMessage.FromString(data).complaints


# After the keys phase it is the same for every message of the attempt; to parse it each time would be quadratic.
@lru_cache(2)
def _cohort(ctx: secagg.Context, sent: tuple[tuple[str, bytes], ...]) -> secagg.Cohort:
    advertised = {site: advertisement_of(secagg_pb2.Advertisement.FromString(data)) for site, data in sent}
    return secagg.Cohort(secagg.cohort_context(ctx, advertised), advertised)
