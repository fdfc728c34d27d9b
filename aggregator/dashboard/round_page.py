"""One round as its page shows it: its phases, its figures, what was visible of it, and a page of its seats."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.dashboard import wording
from aggregator.dashboard.figures import ModelJudgement, evaluates, judgement
from aggregator.dashboard.visibility import Visibility, visibility
from aggregator.runs.plans import plan_of
from aggregator.store import round_lines, round_rows
from aggregator.store.round_lines import SeatLine, SeatOrder
from aggregator.store.tables import Round, Run


@dataclass(frozen=True)
class SeatView:
    """A site in a round."""

    site: str
    state: str
    tone: str
    reason: str
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class RoundPage:
    """A round with a page of its seats; `count` is the number of seats that the search finds."""

    number: int
    attempt: int
    evaluation_only: bool
    words: str
    tone: str
    reason: str | None
    over: bool
    next_model: bytes | None
    judgement: ModelJudgement
    phases: tuple[tuple[str, float], ...]
    visibility: Visibility
    seats: tuple[SeatView, ...]
    count: int
    is_last: bool


def round_page(
    app: AppContext, session: Session, run: Run, row: Round, search: str, order: SeatOrder, limit: int, offset: int
) -> RoundPage:
    """Read a round; see `round_lines.page_of_seats` for its seats."""
    plan, spent = plan_of(run), round_rows.phase_times(session, row.id)
    seats = round_lines.page_of_seats(session, row.id, search, order, limit, offset)
    figures = {line.number: line for line in round_lines.figures_of_run(session, run.run_id)}
    return RoundPage(
        number=row.number,
        attempt=row.attempt,
        evaluation_only=plan.evaluates_only(row.number),
        words=wording.ROUND_STATES[row.state],
        tone=wording.TONES.get(row.state, ""),
        reason=row.reason,
        over=row.state in round_rows.OVER,
        next_model=row.next_model,
        judgement=judgement(
            plan,
            row.number,
            row.state,
            round_lines.base_numbers(session, [row.id])[row.id],
            figures.get(row.number),
            app.settings.metrics.positives_min,
        ),
        phases=tuple((time.state.value, time.seconds) for time in spent),
        visibility=visibility(
            # Of all attempts: keys of a failed attempt were visible, too.
            frozenset(time.state for time in spent) | {row.state},
            row.members,
            trains=not plan.evaluates_only(row.number),
            evaluates=evaluates(plan, row.number),
            private=plan.privacy is not None,
        ),
        seats=tuple(_seat_view(seat) for seat in seats),
        count=(count := round_lines.count_seats(session, row.id, search)),
        is_last=offset + limit >= count,
    )


def _seat_view(seat: SeatLine) -> SeatView:
    reason = wording.REASONS.get(seat.decline_reason or "", seat.decline_reason or "")
    tone = wording.TONES.get(seat.state, "")
    return SeatView(seat.site, wording.SEAT_STATES[seat.state], tone, reason, seat.bytes_up, seat.bytes_down)
