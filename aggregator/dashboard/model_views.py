"""The models of a run as their page shows them: which led to which, and what became of each."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from aggregator.dashboard.figures import parsed
from aggregator.store import model_lines
from aggregator.store.tables import Run

STANDINGS = {
    "": ("", ""),
    "candidate": ("candidate, not judged yet", "calm"),
    "accepted": ("accepted", "good"),
    "refused": ("refused", "bad"),
    "rolled_back": ("rolled back", "warn"),
}


@dataclass(frozen=True)
class ModelView:
    """One model.

    Attributes:
        number: The round that made it; 0 is the initial one.
        digest: Of its tensors.
        size_bytes: Of its file.
        created_at: When it was made.
        standing: In words; empty where the plan has no gate.
        tone: Of the standing.
        made_from: The number of the model that its round began with; None for the initial one.
        members: Sites in the sum that led to it; None for the initial one.
        auc_any: Of the round that judged it, over the cohort; None while there is none.
        gate: What the gate made of it, and why; empty while it did not.
        newest: Whether the next round begins from it.
    """

    number: int
    digest: bytes
    size_bytes: int
    created_at: datetime
    standing: str
    tone: str
    made_from: int | None
    members: int | None
    auc_any: float | None
    gate: str
    newest: bool


def model_views(
    session: Session, run: Run, newest: bytes, limit: int, before: int | None = None
) -> tuple[ModelView, ...]:
    """Read models of a run, the newest first.

    Args:
        session: A session of `Store.read`.
        run: The run.
        newest: Digest of the model that the next round begins from.
        limit: At most so many.
        before: Only models of smaller numbers; None for all.
    """
    lines = model_lines.page_of_models(session, run.run_id, limit, before)
    numbers = model_lines.numbers_of(session, run.run_id, {line.base for line in lines if line.base is not None})
    reports = model_lines.reports_of(session, run.run_id, {line.digest for line in lines})
    views = []
    for line in lines:
        report = parsed(reports[line.digest]) if line.digest in reports else None
        any_label = None if report is None else report.labels.get("any")
        # A standing of a newer version is shown by its name.
        words, tone = STANDINGS.get(line.standing, (line.standing, "warn"))
        views.append(
            ModelView(
                number=line.number,
                digest=line.digest,
                size_bytes=line.size_bytes,
                created_at=line.created_at,
                standing=words,
                tone=tone,
                made_from=None if line.base is None else numbers.get(line.base),
                members=line.members,
                auc_any=None if any_label is None else any_label.auc,
                gate="" if report is None or report.gate is None else report.gate.words(),
                newest=line.digest == newest,
            )
        )
    return tuple(views)
