"""Models of a run as pages list them: columns of several tables, without objects."""

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from aggregator.store.engine import columns_of
from aggregator.store.tables import ModelMetrics, ModelVersion, Round


class ModelLine(NamedTuple):
    """A model and the round that made it; `base` and `members` are None for the initial one."""

    number: int
    digest: bytes
    size_bytes: int
    created_at: datetime
    standing: str  # name of a ModelStanding; "" without a gate
    base: bytes | None
    members: int | None


def page_of_models(session: Session, run_id: bytes, limit: int, before: int | None = None) -> list[ModelLine]:
    """Return the newest models of a run, newest first; `before`: only those of smaller numbers."""
    made_by = (Round.run_id == ModelVersion.run_id) & (Round.number == ModelVersion.round_number)
    chosen = (
        select(
            ModelVersion.round_number,
            ModelVersion.digest,
            ModelVersion.size_bytes,
            ModelVersion.created_at,
            ModelVersion.standing,
            Round.base_model,
            Round.members,
        )
        .outerjoin(Round, made_by)
        .where(ModelVersion.run_id == run_id)
        .order_by(ModelVersion.round_number.desc())
        .limit(limit)
    )
    chosen = chosen if before is None else chosen.where(ModelVersion.round_number < before)
    return [
        ModelLine(number, digest, size_bytes, created_at, "" if standing is None else standing.value, base, members)
        for number, digest, size_bytes, created_at, standing, base, members in columns_of(session, chosen)
    ]


def numbers_of(session: Session, run_id: bytes, digests: Collection[bytes]) -> dict[bytes, int]:
    """Return by digest the number of the first model of a run that has it."""
    # The first one: an update of zeros leads to a model with the same digest as its base.
    first = func.min(ModelVersion.round_number)
    chosen = select(ModelVersion.digest, first).where(ModelVersion.run_id == run_id, ModelVersion.digest.in_(digests))
    return {digest: number for digest, number in columns_of(session, chosen.group_by(ModelVersion.digest))}


def reports_of(session: Session, run_id: bytes, digests: Collection[bytes]) -> dict[bytes, str]:
    """Return by digest the newest report of a round of the run that judged the model."""
    chosen: Select[bytes, str] = (
        select(ModelMetrics.model_digest, ModelMetrics.report)
        .join(Round, Round.id == ModelMetrics.round_id)
        .where(Round.run_id == run_id, ModelMetrics.model_digest.in_(digests))
        .order_by(Round.number)
    )
    return {digest: report for digest, report in columns_of(session, chosen)}
