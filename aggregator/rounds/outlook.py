"""Says in one sentence what happens next in a round. Pure: the driver's snapshot and the time in, words out.

It has no rule of its own. It asks `decide`, with which drivers decide, about the round as it is, as it is at its
deadline, and as it is once more sites have answered. So it announces nothing that a driver will not do.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from aggregator.rounds.decisions import (
    ATTEMPTS_MAX,
    Abandon,
    Advance,
    Freeze,
    Retry,
    RoundDecision,
    RoundSnapshot,
    Wait,
    decide,
)
from aggregator.states import PHASE_SEATS, RoundState, SeatState

_WEEKDAY_WITHIN = timedelta(days=6)
_SECONDS_WITHIN = timedelta(hours=1)

# In each masking phase: what a member has done once it has answered, and what follows.
_PHASES: dict[RoundState, tuple[str, str]] = {
    RoundState.KEYS: ("sent keys", "the members share their secrets"),
    RoundState.SHARES: ("shared secrets", "the members upload"),
    RoundState.UPLOAD: ("uploaded", "the members confirm the uploads"),
    RoundState.CONFIRM: ("confirmed", "the members reveal the shares that unmask the sum"),
    RoundState.REVEAL: ("revealed shares", "the aggregator decodes the sum"),
}


@dataclass(frozen=True)
class Outlook:
    """The next step of a round.

    Attributes:
        sentence: What happens next, in words.
        answered: Sites that are ready, or members that have answered in this phase.
        awaited: Sites that the round waits for, by name.
        enough: The number of answers with which a driver goes on at once; None when no number of these sites is enough.
        enough_at_deadline: The least number of answers with which it goes on at the deadline; None when none is enough.
    """

    sentence: str
    answered: int = 0
    awaited: tuple[str, ...] = ()
    enough: int | None = None
    enough_at_deadline: int | None = None


def outlook(view: RoundSnapshot, now: datetime) -> Outlook:
    """Say what a driver does next with a round that is not over. `now` is aware UTC."""
    # A driver seats them at its next look.
    newcomers = {site: SeatState.OFFERED for site in view.eligible if site not in view.seats}
    view = replace(view, seats={**view.seats, **newcomers})
    if view.state is RoundState.TRAINING:
        return _of_training(view, now)
    if view.state is RoundState.AGGREGATING:
        late = decide(view, view.deadline)
        end = "abandoned, and the run pauses" if isinstance(late, Abandon) and late.pauses_run else "abandoned"
        return Outlook(
            "The aggregator recovers the masks and computes the next model; if that is not done "
            f"{moment(view.deadline, now)}, the round is {end}."
        )
    return _of_phase(view, now)


def moment(at: datetime, now: datetime) -> str:
    """Write a time near `now` as people say it: "at 14:03 UTC", "on Tue 03:03 UTC", "on 2026-12-24 03:03 UTC"."""
    if at - now >= _WEEKDAY_WITHIN:
        return f"on {at:%Y-%m-%d %H:%M} UTC"
    if at.date() != now.date():
        return f"on {at:%a %H:%M} UTC"
    return f"at {at:%H:%M:%S} UTC" if at - now < _SECONDS_WITHIN else f"at {at:%H:%M} UTC"


def _of_training(view: RoundSnapshot, now: datetime) -> Outlook:
    ready = _eligible_in(view, SeatState.READY)
    awaited = _eligible_in(view, SeatState.OFFERED, SeatState.MISSED)
    due = decide(view, now)
    if isinstance(due, Freeze):
        return Outlook(f"{_sites(len(due.members))} are ready; masking starts now.", len(ready), awaited, len(ready))
    if isinstance(due, Abandon):
        return Outlook(f"The round is abandoned now: {due.reason}.", len(ready), awaited)

    def with_ready(count: int) -> RoundSnapshot:
        candidates = (*ready, *awaited)
        seats = {site: SeatState.READY for site in candidates[:count]}
        seats |= {site: SeatState.OFFERED for site in candidates[count:]}
        # A site that becomes ready has just spoken.
        return replace(view, seats={**view.seats, **seats}, silent=set(view.silent).difference(candidates[:count]))

    possible = len(ready) + len(awaited)
    enough = _least(len(ready), possible, lambda count: isinstance(decide(with_ready(count), now), Freeze))
    at_deadline = _least(0, possible, lambda count: isinstance(decide(with_ready(count), view.deadline), Freeze))
    count = f"{len(ready)} of {view.bounds.target} wanted {'is' if len(ready) == 1 else 'are'} ready"
    when = moment(view.deadline, now)
    late = decide(view, view.deadline)
    if enough is None:
        more = f"{len(awaited)} more can come" if awaited else "no other site can come"
        why = f"the plan's minimum is {view.bounds.minimum}"
        if at_deadline is not None or possible >= view.bounds.minimum:
            why = "no cohort of them is admitted beside earlier sums on this model"
        sentence = f"{count} and {more}; {why}: the round is abandoned {when}, unless another site joins."
        return Outlook(sentence, len(ready), awaited, None, at_deadline)
    start = f"at {enough}" if enough >= view.bounds.target else f"when all {enough} that can come are ready"
    sentence = f"{count}; masking starts {start}, or {when} with at least {at_deadline}"
    # Without another word of the awaited sites: they decline, or are silent for the plan's grace.
    seats = {**view.seats, **dict.fromkeys(awaited, SeatState.DECLINED)}
    if isinstance(decide(replace(view, seats=seats), now), Freeze):
        sentence += ", and earlier if no other site can come"
    if isinstance(late, Abandon):
        sentence += "; with fewer the round is abandoned"
    return Outlook(f"{sentence}.", len(ready), awaited, enough, at_deadline)


def _of_phase(view: RoundSnapshot, now: datetime) -> Outlook:
    before, after = PHASE_SEATS[view.state]
    done = sorted(site for site, state in view.seats.items() if state is after)
    missing = sorted(site for site, state in view.seats.items() if state is before)
    owing = [site for site in missing if site in view.accused]
    verb, follows = _PHASES[view.state]
    members = len(done) + len(missing)
    due = decide(view, now)
    if not isinstance(due, Wait):
        sentence = f"{len(done)} of {members} members have {verb}; now {follows}."
        if isinstance(due, Retry | Abandon):
            failure = _failure(due, view.attempt)
            sentence = f"{failure[0].upper()}{failure[1:]}, now: {due.reason}."
        return Outlook(sentence, len(done), tuple(missing), len(done))

    def with_answers(count: int) -> RoundSnapshot:
        # First those without whom no number is enough.
        candidates = (*done, *owing, *(site for site in missing if site not in owing))
        seats = dict.fromkeys(candidates[:count], after) | dict.fromkeys(candidates[count:], before)
        # The rows tell only of shares that are here; each further answer brings one about every member but a few.
        return replace(view, seats={**view.seats, **seats}, recoverable=view.recoverable or count > len(done))

    def goes_on(count: int, at: datetime) -> bool:
        return isinstance(decide(with_answers(count), at), Advance)

    enough = _least(len(done), members, lambda count: goes_on(count, now))
    at_deadline = _least(len(done), members, lambda count: goes_on(count, max(now, view.deadline)))
    sentence = f"{len(done)} of {members} members have {verb}; {follows} when all have"
    if at_deadline is not None and at_deadline < members and now < view.deadline:
        # Fewer than those that have answered may be enough, too; that is of no use to a reader.
        sentence += f", or {moment(view.deadline, now)} with at least {at_deadline}"
    if owing:
        sentence += f"; {', '.join(owing)} must answer in any case"
    late = decide(view, max(now, view.deadline))
    if isinstance(late, Wait):  # shares are out, so there is no second attempt
        sentence += f"; the round waits for them, and is abandoned {moment(view.reveal_until, now)}"
    elif not isinstance(late, Advance):
        named = at_deadline is not None and at_deadline < members
        at = "" if named else f" {moment(view.deadline, now)}"
        sentence += f"; otherwise{at} {_failure(late, view.attempt)}"
    return Outlook(f"{sentence}.", len(done), tuple(missing), enough, at_deadline)


def _failure(decision: RoundDecision, attempt: int) -> str:
    if isinstance(decision, Retry):
        return f"masking starts over with fresh keys, attempt {attempt + 1} of {ATTEMPTS_MAX}"
    return "the round is abandoned"


def _eligible_in(view: RoundSnapshot, *states: SeatState) -> tuple[str, ...]:
    return tuple(sorted(site for site, state in view.seats.items() if state in states and site in view.eligible))


def _least(low: int, high: int, is_enough: Callable[[int], bool]) -> int | None:
    """Return the least count in [low, high] that is enough, when more never are too many; None when `high` is not."""
    counts = range(low, high + 1)
    place = bisect_left(counts, True, key=is_enough)
    return counts[place] if place < len(counts) else None


def _sites(count: int) -> str:
    return f"{count} site" if count == 1 else f"{count} sites"
