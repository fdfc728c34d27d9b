"""Decides what is due for a round. Pure: rows and the time in, one decision out.

TRAINING     freeze when `target` sites are ready, or no other site can come, or the deadline is past and `minimum` are;
             only a cohort that `regrouping` admits
a phase      advance when every member has answered, or the deadline is past and enough have: `minimum` in KEYS, the
             threshold t of the keyed members (U1) afterwards
             otherwise try again with fresh keys. In REVEAL shares are out, so there is no second attempt: the round
             waits for its members as long as training may take
UPLOAD       also try again, at once and without it, when a dealer's shares are none by the word of enough members
CONFIRM      a dealer that fewer complain about opens their shares with its confirmation. Until then the round does not
             go on without it: were it silent in REVEAL, too few shares about it could be left
AGGREGATING  aggregate; the round waits for no site
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from federation.plan import CohortBounds
from federation.secagg import threshold

from aggregator.rounds.regrouping import SumHistory, choose_cohort
from aggregator.states import PHASE_SEATS, RoundState, SeatState

# A cohort that fails this often is unlikely to succeed; the next round asks its sites to train again.
ATTEMPTS_MAX = 5


@dataclass(frozen=True)
class RoundSnapshot:
    """A round that is not over, as a driver sees it."""

    name: str  # of the round; orders surplus candidates, see `_freeze`
    state: RoundState
    attempt: int
    deadline: datetime
    reveal_until: datetime  # the end of REVEAL, however few have answered
    seats: Mapping[str, SeatState]
    advertised: int  # members of U1
    guilty: Collection[str]  # members that dealt garbage, by enough complaints
    accused: Collection[str]  # members that were complained about, in UPLOAD and CONFIRM
    recoverable: bool  # whether enough members have revealed a share about each member
    eligible: Collection[str]  # sites that are offered the round
    silent: Collection[str]  # sites that were not heard of for the plan's grace
    bounds: CohortBounds
    history: SumHistory


@dataclass(frozen=True)
class Wait:
    """Nothing is due."""


@dataclass(frozen=True)
class Freeze:
    """Begin masking with `members`; the round goes on without `left_out`."""

    members: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Advance:
    """The phase is over; `missed` did not answer."""

    missed: tuple[str, ...]


@dataclass(frozen=True)
class Retry:
    """Start over with fresh keys; `missed` have to be ready again first, `left_out` do not come back in this round.

    Those of `left_out` that are not in `missed` are proven to have dealt garbage.
    """

    missed: tuple[str, ...]
    reason: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Abandon:
    """End the round without a sum; the run pauses where only a person can help."""

    reason: str
    pauses_run: bool = False


@dataclass(frozen=True)
class Aggregate:
    """Recover the masks, decode the sum, compute the next model."""


RoundDecision = Wait | Freeze | Advance | Retry | Abandon | Aggregate


def decide(view: RoundSnapshot, now: datetime) -> RoundDecision:
    """Decide what is due at `now` (aware UTC). `view.state` is not an end state."""
    if view.state is RoundState.TRAINING:
        return _after_training(view, now)
    if view.state is RoundState.AGGREGATING:
        late = Abandon("the sum could not be decoded in time; the log says why", pauses_run=True)
        return Aggregate() if now < view.deadline else late
    return _after_phase(view, now)


def _after_training(view: RoundSnapshot, now: datetime) -> RoundDecision:
    ready = [site for site in _in(view, SeatState.READY) if site in view.eligible]
    # MISSED seats are of a failed attempt; their sites hold an update and may still come back.
    awaited = [site for site in _in(view, SeatState.OFFERED, SeatState.MISSED) if site in view.eligible]
    speaking = [site for site in awaited if site not in view.silent]
    late = now >= view.deadline
    if len(ready) >= view.bounds.target or (len(ready) >= view.bounds.minimum and (late or not speaking)):
        members = choose_cohort(_ranked(view, ready), view.bounds, view.history)
        if members is not None:
            return _freeze(view, members)
        if late or not speaking:
            return _no_cohort(view, ready)
        return Wait()
    if late:
        return Abandon(f"at the deadline {len(ready)} sites were ready, the plan's minimum is {view.bounds.minimum}")
    # Without this the round would wait until its deadline, days, for sites that have said that they will not come.
    declined = len(_in(view, SeatState.DECLINED))
    if declined and len(ready) + len(awaited) < view.bounds.minimum:
        return Abandon(f"{declined} sites declined; fewer than the plan's minimum of {view.bounds.minimum} are left")
    return Wait()


def _ranked(view: RoundSnapshot, ready: list[str]) -> list[str]:
    """Order candidates by a hash of round and site, so that surplus ones are other ones in every round."""
    return sorted(ready, key=lambda site: hashlib.sha256(f"{view.name}/{site}".encode()).digest())


def _freeze(view: RoundSnapshot, members: tuple[str, ...]) -> Freeze:
    left_out = [site for site in _in(view, SeatState.OFFERED, SeatState.READY) if site not in members]
    return Freeze(members, tuple(left_out))


def _no_cohort(view: RoundSnapshot, ready: list[str]) -> Abandon:
    least = view.bounds.minimum
    absent = sorted(view.history.bound_together.difference(ready))
    if absent and view.history.bound_together.intersection(ready):
        return Abandon(
            f"a sum on this model is known, and its members confirm on it only all together; {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not ready: resume the run when all can take part, or roll it back "
            "to another model",
            pauses_run=True,
        )
    return Abandon(
        f"{len(ready)} sites were ready, but every cohort of them would differ by fewer than {least} members from one "
        f"whose sum on the same model is known, or repeat one whose sum was refused; {2 * least} sites are enough to "
        "form another, or a new run from another model",
        pauses_run=True,
    )


def _after_phase(view: RoundSnapshot, now: datetime) -> RoundDecision:
    before, after = PHASE_SEATS[view.state]
    if view.state is RoundState.UPLOAD and view.guilty:
        return _without_the_guilty(view)
    missing, done = tuple(_in(view, before)), len(_in(view, after))
    if missing and now < view.deadline:
        return Wait()
    need = view.bounds.minimum if view.state is RoundState.KEYS else threshold(view.advertised)
    owing = [site for site in missing if site in view.accused]
    is_enough = done >= need and not owing and (view.state is not RoundState.REVEAL or view.recoverable)
    if is_enough:
        return Advance(missing)
    reason = f"{done} members answered in phase {view.state}, {need} are needed"
    if owing:
        reason = f"{', '.join(owing)} did not open the shares that members complained about"
    elif done >= need:
        reason = f"{done} members answered in phase {view.state}, and too few hold a share about each member"
    # In REVEAL some shares are out. In a second attempt the same update would enter a second sum, and the difference of
    # the two sums could be a single update.
    if view.state is RoundState.REVEAL:
        if now < view.reveal_until:
            return Wait()
        if not done:  # no share is out as far as the rows know: those of a backup, or all members were away
            return Abandon(reason)
        return Abandon(
            f"{reason}; those who answered take part in no other round on this model: begin a new run from another",
            pauses_run=True,
        )
    if view.attempt >= ATTEMPTS_MAX:
        return Abandon(reason)
    return Retry(missing, reason, tuple(owing))


def _without_the_guilty(view: RoundSnapshot) -> RoundDecision:
    """Start over: all others hold their updates, and whether they had uploaded or not does not matter."""
    guilty = tuple(sorted(view.guilty))
    reason = f"{', '.join(guilty)} dealt no shares to members that say so, more than may be corrupt"
    return Retry((), reason, guilty) if view.attempt < ATTEMPTS_MAX else Abandon(reason)


def _in(view: RoundSnapshot, *states: SeatState) -> list[str]:
    return sorted(site for site, state in view.seats.items() if state in states)
