"""The story of a run for people: each delay of a round and its cause. From the rounds, their seats and the audit."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from aggregator.commands.printing import Row
from aggregator.config import PacingSettings
from aggregator.dashboard.wording import REASONS, SITE_STATES
from aggregator.rounds.outlook import outlook
from aggregator.rounds.snapshot import read_snapshot
from aggregator.sites.freshness import stale_after_s
from aggregator.states import MASKING_PHASES, PHASE_SEATS, ModelStanding, RoundState, RunState, SeatState
from aggregator.store import people, round_rows, run_rows, site_rows
from aggregator.store.tables import Audit, PhaseTime, Round, Run, Seat
from aggregator.units import duration

_STANDINGS = (*ModelStanding, run_rows.NO_STANDING)
QUICK_S = 10.0  # phases of masking that took less are told in one line


@dataclass(frozen=True)
class Delay:
    """A stretch of a round and its cause.

    Attributes:
        attempt: 1 for the first.
        state: The round's.
        seconds: So far, while the round is in it.
        cause: One sentence.
    """

    attempt: int
    state: str
    seconds: float
    cause: str


@dataclass(frozen=True)
class RoundStory:
    """One round: how it began and ended, and its delays in order."""

    number: int
    outcome: str
    delays: tuple[Delay, ...]


@dataclass(frozen=True)
class RunStory:
    """A run: each change of its state with its author, and its rounds."""

    headline: str
    turns: tuple[str, ...]
    rounds: tuple[RoundStory, ...]

    def lines(self) -> Iterator[str]:
        """Yield the story, one line each."""
        yield self.headline
        yield from (f"  {turn}" for turn in self.turns)
        for story in self.rounds:
            yield f"round {story.number}: {story.outcome}"
            for delay in story.delays:
                again = f", attempt {delay.attempt}" if delay.attempt > 1 else ""
                yield f"  {delay.state}{again}, {duration(delay.seconds)}: {delay.cause}"

    def row(self) -> Row:
        """Return the story as JSON values."""
        rounds = [{**asdict(story), "delays": [asdict(delay) for delay in story.delays]} for story in self.rounds]
        return {"headline": self.headline, "turns": list(self.turns), "rounds": rounds}


def tell(session: Session, run: Run, now: datetime, pacing: PacingSettings) -> RunStory:
    """Read the story of a run.

    Args:
        session: A session of `Store.read`.
        run: The run.
        now: Aware UTC.
        pacing: When a site's report is old.
    """
    trail = people.audit_of_run(session, run.run_id.hex())
    # A rollback changes the standing of several models, and is one turn.
    of_run = [row for row in trail if row.subject.startswith("run:") and row.after not in _STANDINGS]
    reason = f": {run.reason}" if run.reason and run.state is not RunState.RUNNING else ""
    since = of_run[-1].at if of_run else run.created_at
    return RunStory(
        headline=f"{run.name} ({run.run_id.hex()}) is {run.state} since {_at(since)}{reason}",
        turns=tuple(f"{_at(row.at)}  {row.after} by {actor_words(row.actor)}: {row.why}" for row in of_run),
        rounds=tuple(
            _Teller(session, run, row, trail, now, pacing).story() for row in round_rows.of_run(session, run.run_id)
        ),
    )


def actor_words(actor: str) -> str:
    """Name an actor of the audit: a driver is the aggregator itself."""
    return "the aggregator" if actor.startswith("driver:") else actor


@dataclass(frozen=True)
class _Teller:
    """Tells one round."""

    session: Session
    run: Run
    row: Round
    trail: list[Audit]
    now: datetime
    pacing: PacingSettings

    def story(self) -> RoundStory:
        row = self.row
        phases = round_rows.phase_times(self.session, row.id)
        over = row.state in round_rows.OVER
        lasted_s = ((row.ended_at or self.now) - row.began_at).total_seconds()
        outcome = f"began {_at(row.began_at)}, " + (
            f"{row.state} after {duration(lasted_s)}" if over else f"in {row.state} after {duration(lasted_s)}"
        )
        if row.state is RoundState.PUBLISHED:
            outcome += f", {row.members} updates in the sum" + self._verdict()
        if row.state is RoundState.ABANDONED:
            outcome += f": {row.reason}"
        delays: list[Delay] = []
        quick: list[PhaseTime] = []
        for phase, (end, changes) in zip(phases, self._segments(), strict=False):
            if phase.state in MASKING_PHASES and phase.seconds < QUICK_S and not _missed(changes):
                quick.append(phase)
                continue
            delays += _merged(quick)
            quick = []
            cause = self._cause(phase, changes, end.at)
            delays.append(Delay(phase.attempt, phase.state.value, phase.seconds, cause))
        delays += _merged(quick)
        if not over:
            seconds = (self.now - row.phase_since).total_seconds()
            delays.append(Delay(row.attempt, row.state.value, seconds, self._awaited()))
        return RoundStory(row.number, outcome, tuple(delays))

    def _verdict(self) -> str:
        """Say what the gate made of the model that the round began from; nothing where it was no candidate."""
        subject = round_rows.subject(self.row)
        judged = [row for row in self.trail if row.subject == subject and row.before == ModelStanding.CANDIDATE]
        if not judged:
            return ""
        in_vain = "; what was trained from it is not used" if judged[-1].after == ModelStanding.REFUSED else ""
        return f"; the model it began from was {judged[-1].why}{in_vain}"

    def _segments(self) -> list[tuple[Audit, list[Audit]]]:
        """Return, for each state that the round has left, the audit row of that, and the rows of the state.

        The driver writes the row of the round first, and then those of the seats that it moves at the same time: they
        belong to the state that ends.
        """
        subject, seats = round_rows.subject(self.row), round_rows.seat_subject(self.row, "")
        segments: list[tuple[Audit, list[Audit]]] = []
        current: list[Audit] = []
        for row in self.trail:
            if row.subject == subject and _moves(row):
                if row.before is not None:
                    segments.append((row, current))
                    current = []
            elif row.subject == subject or row.subject.startswith(seats):
                end = segments[-1][0] if segments else None
                is_of_end = end is not None and (row.at, row.actor) == (end.at, end.actor)
                (segments[-1][1] if is_of_end else current).append(row)
        return segments

    def _cause(self, phase: PhaseTime, changes: list[Audit], end: datetime) -> str:
        if phase.state is RoundState.TRAINING:
            return self._cause_of_training(phase, changes, end)
        if phase.state is RoundState.AGGREGATING:
            return "the aggregator recovered the masks and computed the next model"
        missed = _missed(changes)
        if missed:
            return f"waited for {', '.join(missed)} until the deadline; {_they(missed)} did not answer"
        answered = [row for row in changes if row.after == PHASE_SEATS[phase.state][1]]
        if not answered:
            return "no member answered"
        return f"{_site(answered[-1])} was the last of {len(answered)} members to answer"

    def _cause_of_training(self, phase: PhaseTime, changes: list[Audit], end: datetime) -> str:
        began = end.timestamp() - phase.seconds
        ready = [row for row in changes if row.after == SeatState.READY and row.actor.startswith("site:")]
        sentences = []
        if ready:
            first, last = (duration(row.at.timestamp() - began) for row in (ready[0], ready[-1]))
            if len(ready) == 1:
                sentences.append(f"{_site(ready[0])} was ready after {first}")
            else:
                sentences.append(
                    f"{_site(ready[0])} was ready first, after {first}, and {_site(ready[-1])} last, after {last}"
                )
        elif phase.attempt > 1:
            sentences.append("members that had answered kept their updates, and no other site became ready")
        else:
            sentences.append("no site became ready")
        waited_s = end.timestamp() - ready[-1].at.timestamp() if ready else phase.seconds
        absent = [_site(row) for row in changes if row.after == SeatState.LEFT_OUT and row.before == SeatState.OFFERED]
        closed = [row for row in changes if row.after == "training closed"]
        if closed:
            sentences.append(f"{actor_words(closed[-1].actor)} closed the training")
        elif waited_s >= QUICK_S and (absent or not ready or self.row.state is RoundState.ABANDONED):
            whom = f" for {', '.join(absent)}" if absent else ""
            sentences.append(
                f"the round waited {duration(waited_s)} more{whom}, until its deadline or the plan's grace"
            )
        elif absent:
            sentences.append(f"it went on without {', '.join(absent)}")
        sentences += [
            f"{_site(row)} declined ({_reason(row.why)})" for row in changes if row.after == SeatState.DECLINED
        ]
        return "; ".join(sentences)

    def _awaited(self) -> str:
        row = self.row
        coming = outlook(read_snapshot(self.session, row, self.now), self.now).sentence.removesuffix(".")
        if row.state is RoundState.AGGREGATING:
            return coming
        seats = round_rows.seats(self.session, row.id)
        awaited = SeatState.OFFERED if row.state is RoundState.TRAINING else PHASE_SEATS[row.state][0]
        sentences = [self._how(seat) for seat in seats if seat.state is awaited]
        sentences += [
            f"{seat.site} declined ({_reason(seat.decline_reason or '')})"
            for seat in seats
            if seat.state is SeatState.DECLINED
        ]
        return "; ".join([*sentences, coming])

    def _how(self, seat: Seat) -> str:
        """Say how a site is that the round waits for."""
        report = site_rows.report(self.session, seat.site)
        if report is None:
            return f"{seat.site} has never reported"
        age_s = (self.now - report.seen_at).total_seconds()
        if age_s > stale_after_s(self.pacing, report.state, run_paused=self.run.state is RunState.PAUSED):
            return f"{seat.site} has been silent for {duration(age_s)}"
        reasons = [_reason(name) for name in report.reasons.split(",") if name]
        progress = f", {report.progress_percent} %" if report.progress_percent else ""
        state = SITE_STATES.get(report.state, report.state)
        return f"{seat.site}: {state}{progress}" + (f" ({', '.join(reasons)})" if reasons else "")


def _moves(row: Audit) -> bool:
    """Whether an audit row of a round enters a state; others tell of an event."""
    return row.after in list(RoundState)


def _missed(changes: list[Audit]) -> list[str]:
    return sorted({_site(row) for row in changes if row.after == SeatState.MISSED})


def _merged(phases: list[PhaseTime]) -> list[Delay]:
    """Return phases that took no time as one delay; none for no phases."""
    if not phases:
        return []
    seconds = sum(phase.seconds for phase in phases)
    cause = "every member answered in " + (
        f"phase {phases[0].state}" if len(phases) == 1 else f"the phases {', '.join(phase.state for phase in phases)}"
    )
    return [Delay(phases[0].attempt, "masking", seconds, cause)]


def _site(row: Audit) -> str:
    return row.subject.rsplit("/", 1)[1]


def _they(sites: list[str]) -> str:
    return "it" if len(sites) == 1 else "they"


def _reason(name: str) -> str:
    return REASONS.get(name, name)


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
