"""Live progress in the terminal: one line a site, one a round. On a terminal it redraws; in a log it prints changes."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.runs.metrics import Report
from aggregator.states import RoundState, SeatState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import ModelMetrics, Round
from deploy.demonstration.hospitals import Hospital
from site_client.config import load
from site_client.spool import AgentSide

BAR = 20
ROUNDS_REDRAWN = 2  # the running one, and the last, whose bytes come a little later


@dataclass
class DemoProgress:
    """Shows what `hub` and the hospitals' own spools say."""

    hub: AppContext
    sites: Sequence[Hospital]
    out: TextIO = sys.stdout
    _drawn: int = 0  # rows of the screen that the next look redraws
    _settled: int = 0  # rounds whose line stays as it is
    _said: set[str] = field(default_factory=set)

    def show(self) -> None:
        redraws = self.out.isatty()
        rounds_said = self._round_lines()
        sites_said = [_site_line(hospital, in_full=redraws) for hospital in self.sites]
        if not redraws:
            self._print_new([*rounds_said, *sites_said])
            return
        while self._settled < len(rounds_said) - ROUNDS_REDRAWN:
            self.say(rounds_said[self._settled])
            self._settled += 1
        self._redraw([*rounds_said[self._settled :], *sites_said])

    def say(self, text: str) -> None:
        """A line that stays, above what is redrawn."""
        self._redraw([text])
        self._drawn = 0

    def _redraw(self, lines: Sequence[str]) -> None:
        if self._drawn:
            self.out.write(f"\x1b[{self._drawn}F\x1b[0J")
        self.out.write("\n".join(lines) + "\n")
        width = shutil.get_terminal_size().columns
        self._drawn = sum(max(1, -(-len(line) // width)) for line in lines)  # a long line takes several rows
        self.out.flush()

    def _print_new(self, lines: Sequence[str]) -> None:
        self.out.writelines(line + "\n" for line in lines if line not in self._said)
        self.out.flush()
        self._said = set(lines)

    def _round_lines(self) -> list[str]:
        with self.hub.store.read() as session:
            every = run_rows.all_runs(session)
            if not every:
                return []
            judged = {metrics.round_id: metrics for metrics in round_rows.metrics_of_run(session, every[-1].run_id)}
            rows = round_rows.of_run(session, every[-1].run_id)
            return [_round_line(session, row, judged.get(row.id)) for row in rows]


def _round_line(session: Session, row: Round, judged: ModelMetrics | None) -> str:
    again = f", attempt {row.attempt}" if row.attempt > 1 else ""
    name = f"  round {row.number}{again}: {row.state.value}"
    if row.state is RoundState.ABANDONED:
        return f"{name}, {row.reason}"
    seats = [seat for seat in round_rows.seats(session, row.id) if seat.state not in _OUTSIDE]
    inside = f"; cohort {', '.join(seat.site for seat in seats)}" if seats else ""
    if row.state is not RoundState.PUBLISHED:
        return name + inside
    up = max(seat.bytes_up for seat in seats)  # the aggregator writes it down a few seconds after the last byte
    sent = f"; a site sent {up / 1e6:.2f} MB" if up else ""
    return f"{name}{inside}{sent}{_judgement(judged)}"


def _judgement(judged: ModelMetrics | None) -> str:
    """What the round's cohort said of the model it began with."""
    if judged is None:
        return ""
    report = Report.from_json(judged.report)
    auc = report.labels["any"].auc if report.labels else None
    loss = report.weighted_log_loss
    said = [f"AUC any {auc:.3f}"] if auc is not None else []
    said += [f"log loss {loss:.3f}"] if loss is not None else []
    return f"; its base model: {', '.join(said)}" if said else ""


_OUTSIDE = {SeatState.OFFERED, SeatState.READY, SeatState.DECLINED, SeatState.LEFT_OUT}


def _site_line(hospital: Hospital, in_full: bool) -> str:
    """`in_full`: with the step, which is old at once in a log."""
    status = AgentSide.peek(load(hospital.config).folders.spool)  # looks only: an AgentSide would sweep the drafts
    if status is None:
        return f"  {hospital.name:<8} starting"
    word = status.state.removeprefix("SITE_").lower().replace("_", " ")
    reasons = f" ({', '.join(code.lower().replace('_', ' ') for code in status.reasons)})" if status.reasons else ""
    if word != "training" or not status.steps or not in_full:
        return f"  {hospital.name:<8} {word}{reasons}"
    filled = BAR * status.step // status.steps
    loss = "" if status.loss is None else f"  loss {status.loss:.3f}"
    bar = "#" * filled + "." * (BAR - filled)
    return f"  {hospital.name:<8} {word} [{bar}] step {status.step}/{status.steps}{loss}{reasons}"
