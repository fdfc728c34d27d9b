"""Live progress in the terminal: one line a site, one a round. On a terminal it redraws; in a log it prints changes."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from aggregator.hub import Hub
from aggregator.states import RoundState, SeatState
from aggregator.store import rounds, runs
from deploy.demonstration.hospitals import Hospital
from site_client.config import load
from site_client.spool import AgentSide

BAR = 20


@dataclass
class Progress:
    """Shows what `hub` and the hospitals' own spools say."""

    hub: Hub
    sites: Sequence[Hospital]
    out: TextIO = sys.stdout
    _drawn: int = 0
    _said: set[str] = field(default_factory=set)

    def show(self) -> None:
        lines = [*self._round_lines(), *self._site_lines()]
        if self.out.isatty():
            self.out.write(f"\x1b[{self._drawn}F\x1b[0J" if self._drawn else "")
            self.out.write("\n".join(lines) + "\n")
            self._drawn = len(lines)
        else:
            self._print_new([line for line in self._round_lines() if line])
        self.out.flush()

    def say(self, text: str) -> None:
        """A line that stays, above what is redrawn."""
        if self._drawn:
            self.out.write(f"\x1b[{self._drawn}F\x1b[0J")
            self._drawn = 0
        self.out.write(text + "\n")
        self.out.flush()

    def _print_new(self, lines: Sequence[str]) -> None:
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                self.out.write(line + "\n")

    def _round_lines(self) -> list[str]:
        with self.hub.store.read() as session:
            every = runs.every(session)
            if not every:
                return []
            rows = rounds.of_run(session, every[-1].run_id)
            lines = []
            for row in rows:
                states = rounds.seat_states(session, row.id)
                lines.append(_round_line(row.number, row.attempt, row.state, states, row.reason))
        return lines

    def _site_lines(self) -> list[str]:
        return [_site_line(hospital) for hospital in self.sites]


def _round_line(number: int, attempt: int, state: RoundState, seats: dict[str, SeatState], reason: str | None) -> str:
    again = f", attempt {attempt}" if attempt > 1 else ""
    if state is RoundState.ABANDONED:
        return f"  round {number}{again}: abandoned, {reason}"
    cohort = [site for site, seat in seats.items() if seat not in _OUTSIDE]
    inside = f"; cohort {', '.join(cohort)}" if cohort else ""
    return f"  round {number}{again}: {state.value}{inside}"


_OUTSIDE = {SeatState.OFFERED, SeatState.READY, SeatState.DECLINED, SeatState.LEFT_OUT}


def _site_line(hospital: Hospital) -> str:
    status = AgentSide.peek(load(hospital.config).folders.spool)  # looks only: an AgentSide would sweep the drafts
    if status is None:
        return f"  {hospital.name:<8} starting"
    word = status.state.removeprefix("SITE_").lower().replace("_", " ")
    reasons = f" ({', '.join(code.lower().replace('_', ' ') for code in status.reasons)})" if status.reasons else ""
    if word != "training" or not status.steps:
        return f"  {hospital.name:<8} {word}{reasons}"
    filled = BAR * status.step // status.steps
    loss = "" if status.loss is None else f"  loss {status.loss:.3f}"
    bar = "#" * filled + "." * (BAR - filled)
    return f"  {hospital.name:<8} {word} [{bar}] step {status.step}/{status.steps}{loss}{reasons}"
