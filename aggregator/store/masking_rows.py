"""Rows of secure aggregation: the shares that members dealt to each other in the current attempt, and complaints."""

from collections.abc import Collection, Mapping

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from aggregator.store.engine import columns_of, rows_changed
from aggregator.store.tables import DealtShare, Seat

_DEAL = insert(DealtShare)
_DEALT_TO = (
    select(DealtShare.dealer, DealtShare.message)
    .where(DealtShare.round_id == bindparam("round"), DealtShare.member == bindparam("dealt_to"))
    .order_by(DealtShare.dealer)
)


def add_dealt(session: Session, round_id: int, dealer: str, messages: Mapping[str, bytes]) -> None:
    """Keep what `dealer` dealt, by member."""
    rows = [
        {"round_id": round_id, "member": member, "dealer": dealer, "message": message}
        for member, message in messages.items()
    ]
    session.connection().execute(_DEAL, rows)


def dealt_to(session: Session, round_id: int, member: str) -> dict[str, bytes]:
    """Return serialized messages by dealer, sorted by dealer."""
    rows = columns_of(session, _DEALT_TO, {"round": round_id, "dealt_to": member})
    # Sorted here too, by code point: a database may collate names in another order.
    return dict(sorted((dealer, message) for dealer, message in rows))


def dealt(session: Session, round_id: int, dealers: Collection[str], members: Collection[str]) -> list[bytes]:
    """Return the serialized messages of some dealers for some members."""
    wanted = select(DealtShare.message).where(
        DealtShare.round_id == round_id, DealtShare.dealer.in_(dealers), DealtShare.member.in_(members)
    )
    return list(session.scalars(wanted))


def keep_complaints(session: Session, round_id: int, site: str, message: bytes) -> None:
    """Keep the one message of complaints of a member."""
    where = (Seat.round_id == round_id) & (Seat.site == site)
    rows_changed(session, update(Seat).where(where).values(complaints=message))


def keep_model_signature(session: Session, round_id: int, site: str, signature: bytes) -> None:
    """Keep a member's signature over the model that the round led to."""
    where = (Seat.round_id == round_id) & (Seat.site == site)
    rows_changed(session, update(Seat).where(where).values(model_signature=signature))
