"""Live progress in the terminal: one line a site, one a round. A terminal is redrawn; a log gets the changes."""

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
ROUNDS_REDRAWN = 2  # the running round, and the last one, whose bytes come a little later
_OUTSIDE = {SeatState.OFFERED, SeatState.READY, SeatState.DECLINED, SeatState.LEFT_OUT}  # of the cohort


@dataclass
class DemoProgress:
    """Shows the aggregator's rounds and the hospitals' own status files."""

    app: AppContext
    sites: Sequence[Hospital]
    out: TextIO = sys.stdout
    _drawn: int = 0  # rows of the screen that the next call redraws
    _settled: int = 0  # rounds whose line no longer changes
    _printed: set[str] = field(default_factory=set)

    def show(self) -> None:
        """Shows the present state: redraws a terminal, or prints to a log the lines that have changed."""
        is_terminal = self.out.isatty()
        rounds = self._round_lines()
        sites = [_site_line(hospital, in_full=is_terminal) for hospital in self.sites]
        if not is_terminal:
            lines = [*rounds, *sites]
            self.out.writelines(line + "\n" for line in lines if line not in self._printed)
            self.out.flush()
            self._printed = set(lines)
            return
        while self._settled < len(rounds) - ROUNDS_REDRAWN:
            self.print(rounds[self._settled])
            self._settled += 1
        self._redraw([*rounds[self._settled :], *sites])

    def print(self, text: str) -> None:
        """Prints a line that stays, above the lines that are redrawn."""
        self._redraw([text])
        self._drawn = 0

    def _redraw(self, lines: Sequence[str]) -> None:
        if self._drawn:
            self.out.write(f"\x1b[{self._drawn}F\x1b[0J")
        self.out.write("\n".join(lines) + "\n")
        width = shutil.get_terminal_size().columns
        self._drawn = sum(max(1, -(-len(line) // width)) for line in lines)  # a long line takes several rows
        self.out.flush()

    def _round_lines(self) -> list[str]:
        with self.app.store.read() as session:
            runs = run_rows.all_runs(session)
            if not runs:
                return []
            metrics = {metrics.round_id: metrics for metrics in round_rows.metrics_of_run(session, runs[-1].run_id)}
            rows = round_rows.of_run(session, runs[-1].run_id)
            return [_round_line(session, row, metrics.get(row.id)) for row in rows]


def _round_line(session: Session, row: Round, metrics: ModelMetrics | None) -> str:
    attempt = f", attempt {row.attempt}" if row.attempt > 1 else ""
    name = f"  round {row.number}{attempt}: {row.state.value}"
    if row.state is RoundState.ABANDONED:
        return f"{name}, {row.reason}"
    seats = [seat for seat in round_rows.seats(session, row.id) if seat.state not in _OUTSIDE]
    cohort = f"; cohort {', '.join(seat.site for seat in seats)}" if seats else ""
    if row.state is not RoundState.PUBLISHED:
        return name + cohort
    bytes_up = max(seat.bytes_up for seat in seats)
    # The aggregator writes the bytes down a few seconds after the last one; until then the line goes without.
    sent = f"; a site sent {bytes_up / 1e6:.2f} MB" if bytes_up else ""
    return f"{name}{cohort}{sent}{_base_model_figures(metrics)}"


def _base_model_figures(metrics: ModelMetrics | None) -> str:
    """Formats the cohort's figures of the model with which the round began."""
    if metrics is None:
        return ""
    report = Report.from_json(metrics.report)
    any_label, loss = report.labels.get("any"), report.weighted_log_loss
    figures = []
    if any_label is not None and any_label.auc is not None:
        noised = any_label.auc_low is not None
        interval = f" ({any_label.auc_low:.3f} to {any_label.auc_high:.3f})" if noised else ""
        figures.append(f"AUC any {any_label.auc:.3f}{interval}")
    figures += [f"log loss {loss:.3f}"] if loss is not None else []
    if report.gate is not None and report.gate.verdict == "refused":
        figures.append(report.gate.words())
    return f"; its base model: {', '.join(figures)}" if figures else ""


def _site_line(hospital: Hospital, in_full: bool) -> str:
    """`in_full`: with the step of training. In a log every step would be a new line."""
    # Only reads: making an AgentSide would sweep drafts that the agent is writing.
    status = AgentSide.peek(load(hospital.config).folders.spool)
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
