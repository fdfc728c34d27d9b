"""A federation in one process: the real aggregator, the real agents, a clock that obeys, and operations upon them.

    world = World(nursery.copy(kind), kind)
    world.apply(EverySite()); world.apply(Trained("site-a")); ...

Nothing of ours is replaced but the network between them (`wire`) and the training (`places.an_update`).
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from federation.errors import FederationError
from federation.manifest import Model, load_model
from federation.plan import TrainingPlan
from federation.sealed_model import load_sealed_model, model_name
from federation.sealing import SealedKind, SealedName, unseal
from federation.secagg.state import MemberState, OwnSecrets

from aggregator.errors import WrongState
from aggregator.runs import lifecycle
from aggregator.runs.plans import plan_of
from aggregator.states import RoundState, RunState, SeatState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import ModelVersion, Round, Run
from site_client.agent.egress.calls import CALLS
from site_client.errors import Refused, SiteError, Unreachable
from tests.federation.crooks import Crooks
from tests.federation.nursery import BEGIN, PHASES, Kind, Nursery
from tests.federation.places import AggregatorMachine, Clock, Site, an_update
from tests.federation.wire import Fault, Heard, Killed, Wire


@dataclass(frozen=True)
class Past:
    """A federation that stands still in the middle of a round, to be copied: its folder, and what had been said."""

    folder: Path
    heard: tuple[Heard, ...]
    states: dict[str, dict[bytes, MemberState]]
    secrets: dict[str, dict[bytes, OwnSecrets]]
    coins: dict[str, dict[bytes, bytes]]


@dataclass
class World:
    """`folder` comes from a Nursery and is removed by `end`."""

    folder: Path
    kind: Kind
    wire: Wire = field(default_factory=Wire)
    clock: Clock = field(default_factory=lambda: Clock(BEGIN))
    silent: set[str] = field(default_factory=set)
    corrupt: set[str] = field(default_factory=set)  # sites that work for the aggregator; fewer than a third
    crooks: Crooks = field(default_factory=Crooks)  # those of them whose lies no message shows
    lied_down: bool = False  # the aggregator has lied to a site
    refused: list[tuple[str, Exception]] = field(default_factory=list)  # by site: what its turns refused or met

    def __post_init__(self) -> None:
        self.aggregator = AggregatorMachine(self.folder / "aggregator", self.wire, self.clock)
        self.sites = {name: Site(name, self.folder / name, self.wire, self.clock) for name in self.kind.names}
        self.run_id = bytes(range(16))

    @classmethod
    def begin(cls, nursery: Nursery, kind: Kind) -> "World":
        """A federation of this kind, its first round in `kind.phase`. The way there is walked once a kind."""
        if kind.phase == "training":
            return cls(nursery.copy(kind), kind)
        if kind not in nursery.walked:
            nursery.walked[kind] = cls._walked(nursery, kind)
        past = nursery.walked[kind]
        assert isinstance(past, Past)
        return cls.of(nursery, kind, past)

    @classmethod
    def of(cls, nursery: Nursery, kind: Kind, past: Past) -> "World":
        """A copy of a federation that stood still."""
        world = cls(nursery.twin(past.folder), kind)
        world.wire.heard.extend(past.heard)
        for name, site in world.sites.items():
            site.states.update(past.states[name])
            site.secrets.update(past.secrets[name])
            site.coins.update(past.coins[name])
        return world

    @classmethod
    def _walked(cls, nursery: Nursery, kind: Kind) -> "Past":
        """From the phase before, which is kept as well."""
        world = cls.begin(nursery, replace(kind, phase=PHASES[PHASES.index(kind.phase) - 1]))
        world.until(RoundState(kind.phase))
        return world.stand_still()

    def stand_still(self) -> "Past":
        """End every process. The folder stays, to be copied."""
        self.aggregator.shut()
        for site in self.sites.values():
            site.shut()
        states = {name: dict(site.states) for name, site in self.sites.items()}
        secrets = {name: dict(site.secrets) for name, site in self.sites.items()}
        coins = {name: dict(site.coins) for name, site in self.sites.items()}
        return Past(self.folder, tuple(self.wire.heard), states, secrets, coins)

    def end(self) -> None:
        self.aggregator.shut()
        for site in self.sites.values():
            site.shut()
        shutil.rmtree(self.folder)

    # What happens.

    def step(self, name: str, fault: Fault | None = None) -> str | None:
        """One turn of a site's agent, as its service would take it. Gives the step that was asked of it."""
        site = self.sites[name]
        try:
            turn = site.step(fault)
        except Killed:
            site.boot()
            return None
        except (SiteError, FederationError) as error:
            self.refused.append((name, error))
            return None
        if turn.refusal is not None:
            self.refused.append((name, turn.refusal))
        return turn.asked

    def train(self, name: str) -> None:
        """The trainer finishes whatever job there is."""
        site = self.sites[name]
        for job in site.jobs():
            site.train(job, *an_update(job, self.seed_of(name), self.plan.moving.size))

    def drive(self, kill_in: int | None = None) -> None:
        """The driver looks until nothing moves, or dies when it asks the time for the `kill_in`-th time."""
        self.clock.kill_in = kill_in
        try:
            self.aggregator.settle()
        except Killed:
            self.aggregator.boot()
        finally:
            self.clock.kill_in = None

    def everybody(self) -> None:
        """Every site that is not silent takes a turn and trains what it was given; the driver looks."""
        for name in self.sites:
            if name not in self.silent:
                self.step(name)
                self.train(name)
        self.drive()

    def ready(self) -> None:
        """Every site trains what it was offered and says Ready; the driver has not looked yet."""
        for name in self.sites:
            self.step(name)
            self.train(name)
            self.step(name)

    def until(self, state: RoundState | RunState) -> None:
        """Everybody steps until the newest round, or the run, is in `state`."""
        for _ in range(60):
            if state in (self.round.state, self.run.state):
                return
            self.everybody()
        raise AssertionError(
            f"expected {state}, got {self.run.state} with its round {self.round.number} in {self.round.state}"
        )

    def replay(self, name: str, number: int) -> None:
        """Somebody who recorded a site's messages plays one of them again, over that site's own connection."""
        said = [one for one in self.wire.heard if one.site == name and one.call != "Blobs/Put"]
        if not said:
            return
        chosen, site = said[number % len(said)], self.sites[name]
        try:
            self.wire.call(name, site.certificate_pem, CALLS[chosen.call], [chosen.data])
        except (Unreachable, Refused):
            return  # in `wire.refusals`

    def abort(self) -> None:
        lifecycle.abort(self.aggregator.app, self.run_id)

    def pause(self) -> None:
        try:
            lifecycle.pause(self.aggregator.app, self.run_id)
        except WrongState:
            return  # it is paused, or over

    def resume(self) -> None:
        try:
            lifecycle.resume(self.aggregator.app, self.run_id)
        except WrongState:
            return  # it is not paused

    # What there is.

    @property
    def plan(self) -> TrainingPlan:
        return plan_of(self.run)

    @property
    def run(self) -> Run:
        with self.aggregator.app.store.read() as session:
            return run_rows.get(session, self.run_id)

    def rounds(self) -> list[Round]:
        with self.aggregator.app.store.read() as session:
            return round_rows.of_run(session, self.run_id)

    def models(self) -> list[ModelVersion]:
        with self.aggregator.app.store.read() as session:
            return run_rows.models(session, self.run_id)

    @property
    def round(self) -> Round:
        return self.rounds()[-1]

    def seats(self, number: int | None = None) -> dict[str, SeatState]:
        """The seats of a round by site; of the newest when `number` is None."""
        row = self.round if number is None else self.rounds()[number - 1]
        with self.aggregator.app.store.read() as session:
            return round_rows.seat_states(session, row.id)

    def model(self, blob: bytes) -> Model:
        """A model out of the aggregator's blobs."""
        [digest] = {model.digest for model in self.models() if model.blob == blob}
        file = self.folder / "looked-at.safetensors"
        file.write_bytes(self.plaintext(SealedKind.MODEL, blob, digest))
        return load_model(file)

    def published_sum(self, row: Round) -> bytes:
        """The sum of a published round out of the aggregator's blobs."""
        assert row.sum_blob is not None
        assert row.next_model is not None
        return self.plaintext(SealedKind.SUM, row.sum_blob, row.next_model)

    def plaintext(self, kind: SealedKind, blob: bytes, model_digest: bytes) -> bytes:
        """The content of a blob, whether the plan has it sealed or not."""
        app, plan = self.aggregator.app, self.plan
        with app.blobs.open(blob) as source:
            if plan.release is None:
                return source.read()
            key, name = app.content_keys.of(plan.digest, model_digest), SealedName(kind, plan.digest, model_digest)
            return b"".join(unseal(key, name, source, 1 << 30))

    def kept_model(self, site: Site, digest: bytes) -> Model:
        """A model out of the file of a site."""
        path, plan = site.rounds.model_files.path(self.plan, digest), self.plan
        if plan.release is None:
            return load_model(path)
        with path.open("rb") as file:
            key = self.aggregator.app.content_keys.of(plan.digest, digest)
            return load_sealed_model(key, model_name(plan.digest, digest), plan.manifest, file)

    @property
    def states(self) -> dict[bytes, MemberState]:
        """What the disk of each site last said of each attempt, by the mask key."""
        return {key: state for site in self.sites.values() for key, state in site.states.items()}

    @staticmethod
    def seed_of(name: str) -> int:
        """Of everything a site trains."""
        return int.from_bytes(name.encode(), "big")
