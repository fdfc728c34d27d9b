"""Chooses a cohort when the round's model already has sums, and narrows down the member that spoils them. Pure.

Two sums on one model must not differ by a few members: their difference would be the sum of those few. Sites refuse to
confirm such a second sum, so the aggregator does not ask for it.

A member that clips nothing, or counts what there is not, spoils a sum, and nothing says who it was: masked uploads tell
nothing apart. A dealer can send a member another pair secret than its own, and vanish before the upload; then the sum
that it is not in is spoiled by the masks with it. In both cases it dealt shares for every spoiled sum. So each later
cohort holds half of the suspects; after a few spoiled sums one suspect is left. It is named when all other dealers of
the last spoiled sum have published without it. A member that spoils no sum any more does no harm, and the case is
closed.

This is sound for one that spoils sums. Several that take turns can make an honest member the one suspect, and publish
without it: what is named is no proof.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from federation.plan import CohortBounds
from federation.two_sums import told_apart

CASE_CLOSED_AFTER: Final = 8  # published sums since the last spoiled one
_ROTATIONS_MAX: Final = 16


@dataclass(frozen=True)
class RecoveredSum:
    """A sum that was recovered.

    Attributes:
        members: U3.
        refused: Whether it led to no model.
        led_on: Whether it led to another model. Sites then confirm only the very same members on its base model again.
        vanished: Members that dealt shares and did not upload (U2 without U3); masks with them are in it, too.
    """

    members: frozenset[str]
    refused: bool
    vanished: frozenset[str] = frozenset()
    led_on: bool = False

    @property
    def dealers(self) -> frozenset[str]:
        """All that can have spoiled it (U2)."""
        return self.members | self.vanished


@dataclass(frozen=True)
class SumHistory:
    """The sums that bound the choice of a cohort.

    Attributes:
        on_this_model: Sums on the round's base model, in whatever run.
        suspects: Dealers of every sum that was refused in this run.
        gone: Members of those sums that the roster does not list any more; one may be ready under another name.
    """

    on_this_model: Sequence[RecoveredSum] = ()
    suspects: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()

    @property
    def bound_together(self) -> frozenset[str]:
        """The members of sums that led on: each confirms on this model with the very same others only."""
        return frozenset().union(*(recovered.members for recovered in self.on_this_model if recovered.led_on))


def suspects_after(sums: Sequence[RecoveredSum]) -> frozenset[str]:
    """Return the dealers of every refused sum; an empty set when the case is closed.

    Args:
        sums: Of one run, oldest first.
    """
    suspects: frozenset[str] = frozenset()
    published = 0
    for recovered in sums:
        if not recovered.refused:
            published += 1
            continue
        if published >= CASE_CLOSED_AFTER:
            suspects = frozenset()
        # With two that spoil sums the intersection may be empty; the search then begins anew.
        suspects = suspects & recovered.dealers or recovered.dealers
        published = 0
    return suspects if published < CASE_CLOSED_AFTER else frozenset()


def spoiler_after(sums: Sequence[RecoveredSum]) -> str | None:
    """Return the one suspect, if each other dealer of the last refused sum dealt for one published without it since.

    With a second one that spoils every sum among those others, they would not have published.

    Args:
        sums: Of one run, oldest first.
    """
    suspects = suspects_after(sums)
    if len(suspects) != 1:
        return None
    last = max(place for place, recovered in enumerate(sums) if recovered.refused)
    published = [recovered.dealers for recovered in sums[last + 1 :] if not suspects & recovered.dealers]
    (spoiler,) = suspects
    return spoiler if sums[last].dealers - suspects <= frozenset().union(*published) else None


def choose_cohort(ranked: Sequence[str], bounds: CohortBounds, history: SumHistory) -> tuple[str, ...] | None:
    """Choose the largest admissible cohort, sorted; None when there is none.

    Args:
        ranked: The sites that are ready, in the round's random order.
        bounds: Of the plan.
        history: The sums so far.
    """
    # Where a sum has led on from the model and its result was refused, the very members of that sum come first.
    for recovered in history.on_this_model:
        again = tuple(sorted(recovered.members)) if recovered.led_on else ()
        if again and recovered.members <= set(ranked) and _is_admissible(again, bounds.minimum, history):
            return again
    for pool in _pools(ranked, history):
        for members in _choices(pool, bounds, constrained=bool(history.on_this_model)):
            if _is_admissible(members, bounds.minimum, history):
                return tuple(sorted(members))
    return None


def _pools(ranked: Sequence[str], history: SumHistory) -> Iterator[list[str]]:
    """Yield the sites to choose from, the best first: all but half of the suspects, one half or the other.

    A second sum on a model is to succeed rather than to teach: it does without any suspect if it can.
    """
    suspected = [site for site in ranked if site in history.suspects]
    if suspected:
        clean = [site for site in ranked if site not in history.suspects]
        half = len(suspected) // 2
        halves = [suspected[:half], suspected[half:]]
        refused_before = any(recovered.refused for recovered in history.on_this_model)
        for some in [[], *halves] if refused_before else [*halves, []]:
            yield [site for site in ranked if site in clean or site in some]
    yield list(ranked)


def _choices(pool: Sequence[str], bounds: CohortBounds, *, constrained: bool) -> Iterator[Sequence[str]]:
    largest = min(len(pool), bounds.maximum)
    # Without an earlier sum on the model every choice is admissible, so the first one is taken.
    smallest = bounds.minimum if constrained else largest
    for size in range(largest, max(smallest, bounds.minimum) - 1, -1):
        for start in range(min(len(pool), _ROTATIONS_MAX) if constrained else 1):
            yield (*pool[start:], *pool[:start])[:size]


def _is_admissible(members: Sequence[str], minimum: int, history: SumHistory) -> bool:
    chosen = frozenset(members)
    for recovered in history.on_this_model:
        if chosen == recovered.members:
            # The very members of a refused sum would be refused again.
            if recovered.refused:
                return False
            continue
        # No member of a sum that led on confirms another set.
        if recovered.led_on and chosen & recovered.members:
            return False
        if told_apart(chosen, recovered.members, (chosen | recovered.members) - history.gone) < minimum:
            return False
    return True
