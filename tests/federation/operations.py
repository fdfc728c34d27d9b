"""What can happen in a history, as small values that print as they are written; and how a seed draws some of them."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pytest

from tests.federation.crooks import SPOILED, let_in
from tests.federation.lies import LIES_DOWN, LIES_UP, Lies
from tests.federation.nursery import PHASE_S, PHASES, TRAINING_S, Kind
from tests.federation.wire import FAULTS, Fault
from tests.federation.world import World


class Operation(Protocol):
    def apply(self, world: World, lies: Lies) -> None: ...


@dataclass(frozen=True)
class SiteSteps:
    """One turn of an agent; `fault` says what goes wrong with the `at`-th message of it."""

    site: str
    fault: str = ""
    at: int = 0

    def apply(self, world: World, lies: Lies) -> None:
        if self.site not in world.silent:
            world.step(self.site, Fault(self.fault, self.at) if self.fault else None)


@dataclass(frozen=True)
class SiteTrained:
    site: str

    def apply(self, world: World, lies: Lies) -> None:
        world.train(self.site)


@dataclass(frozen=True)
class SiteDrops:
    site: str

    def apply(self, world: World, lies: Lies) -> None:
        world.silent.add(self.site)


@dataclass(frozen=True)
class SiteReturns:
    site: str

    def apply(self, world: World, lies: Lies) -> None:
        world.silent.discard(self.site)


@dataclass(frozen=True)
class SiteReboots:
    """The process is gone; the disk is not."""

    site: str

    def apply(self, world: World, lies: Lies) -> None:
        world.sites[self.site].boot()


@dataclass(frozen=True)
class AggregatorReboots:
    def apply(self, world: World, lies: Lies) -> None:
        world.aggregator.boot()


@dataclass(frozen=True)
class DriverSteps:
    """Until nothing moves; or until it is killed when it asks the time for the `kill_in`-th time."""

    kill_in: int | None = None

    def apply(self, world: World, lies: Lies) -> None:
        world.drive(self.kill_in)


@dataclass(frozen=True)
class EverybodySteps:
    """Whoever is not silent takes a turn and trains; then the driver."""

    def apply(self, world: World, lies: Lies) -> None:
        world.everybody()


@dataclass(frozen=True)
class Advance:
    seconds: int

    def apply(self, world: World, lies: Lies) -> None:
        world.clock.advance(self.seconds)


@dataclass(frozen=True)
class ReplayMessage:
    site: str
    number: int

    def apply(self, world: World, lies: Lies) -> None:
        world.replay(self.site, self.number)


@dataclass(frozen=True)
class AggregatorLies:
    """In its next answer of this kind to the site."""

    site: str
    about: str
    how: int

    def apply(self, world: World, lies: Lies) -> None:
        lies.tell_down(self.site, self.about, self.how)


@dataclass(frozen=True)
class SiteLies:
    """In its next message of this kind; the site is corrupt from then on. Too many for the protocol: nobody lies."""

    site: str
    about: str
    how: int

    def apply(self, world: World, lies: Lies) -> None:
        if 3 * len(world.corrupt | {self.site}) < len(world.sites):
            world.corrupt.add(self.site)
            lies.tell_up(self.site, self.about, self.how)


@dataclass(frozen=True)
class SiteSpoilsSums:
    """With words that no honest member has, from here on."""

    site: str
    how: str

    def apply(self, world: World, lies: Lies) -> None:
        if 3 * len(world.corrupt | {self.site}) < len(world.sites):
            world.corrupt.add(self.site)
            world.crooks.spoilers[self.site] = self.how


@dataclass(frozen=True)
class SiteDealsAnotherSecret:
    """Than it commits to, from here on."""

    site: str

    def apply(self, world: World, lies: Lies) -> None:
        if 3 * len(world.corrupt | {self.site}) < len(world.sites):
            world.corrupt.add(self.site)
            world.crooks.dealers.add(self.site)


@dataclass(frozen=True)
class SiteDealsGarbage:
    """To one other member, from here on."""

    site: str
    victim: str

    def apply(self, world: World, lies: Lies) -> None:
        if 3 * len(world.corrupt | {self.site}) < len(world.sites):
            world.corrupt.add(self.site)
            world.crooks.garbage[self.site] = {self.victim} - {self.site}


@dataclass(frozen=True)
class RunPauses:
    def apply(self, world: World, lies: Lies) -> None:
        world.pause()


@dataclass(frozen=True)
class RunResumes:
    def apply(self, world: World, lies: Lies) -> None:
        world.resume()


@dataclass(frozen=True)
class History:
    seed: int
    kind: Kind
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        lines = "\n".join(f"    {one}," for one in self.operations)
        return f"History({self.seed}, {self.kind}, (\n{lines}\n))"


def draw(seed: int, length: int) -> History:
    """The history of a seed: mostly turns of everybody, so that things go on, and mischief in between."""
    rng = random.Random(seed)
    sites = rng.choice((3, 4, 4, 5))
    kind = Kind(sites, rounds=rng.choice((1, 2)), phase=rng.choice(PHASES))
    some = rng.choice(kind.names)  # most mischief is about one site: it meets itself
    drawn = []
    for _ in range(length):
        name = some if rng.random() < 0.5 else rng.choice(kind.names)
        (make,) = rng.choices([one for one, _ in _MISCHIEF], [weight for _, weight in _MISCHIEF])
        drawn.append(make(rng, name))
        if rng.random() < 0.2:
            drawn.append(EverybodySteps())
    return History(seed, kind, (*drawn, EverybodySteps()))


def play(world: World, history: History) -> None:
    lies = Lies(world)
    with pytest.MonkeyPatch.context() as patch:
        let_in(patch, world.crooks)
        for operation in history.operations:
            operation.apply(world, lies)


_MISCHIEF: list[tuple[Callable[[random.Random, str], Operation], float]] = [
    (lambda rng, name: SiteSteps(name), 2),
    (lambda rng, name: SiteSteps(name, rng.choice(FAULTS), rng.choice((0, 1, 1, 1, 2, 3))), 6),
    (lambda rng, name: SiteTrained(name), 0.5),
    (lambda rng, name: SiteDrops(name), 2),
    (lambda rng, name: SiteReturns(name), 2),
    (lambda rng, name: SiteReboots(name), 1),
    (lambda rng, name: AggregatorReboots(), 1),
    (lambda rng, name: DriverSteps(), 1),
    (lambda rng, name: DriverSteps(rng.randrange(6)), 2),
    (lambda rng, name: Advance(rng.choice((1, PHASE_S + 1, PHASE_S + 1, PHASE_S + 1, TRAINING_S + 1))), 4),
    (lambda rng, name: ReplayMessage(name, rng.randrange(1000)), 2),
    (lambda rng, name: AggregatorLies(name, rng.choice(sorted(LIES_DOWN)), rng.randrange(8)), 4),
    (lambda rng, name: SiteLies(name, rng.choice(sorted(LIES_UP)), rng.randrange(8)), 1),
    (lambda rng, name: SiteSpoilsSums(name, rng.choice(SPOILED)), 0.5),
    (lambda rng, name: SiteDealsAnotherSecret(name), 0.5),
    (lambda rng, name: SiteDealsGarbage(name, rng.choice(("site-a", "site-b", "site-c"))), 0.5),
    (lambda rng, name: RunPauses(), 0.2),
    (lambda rng, name: RunResumes(), 0.3),
]
