"""The two kinds of machine in a World: one aggregator and its sites, each with a folder that outlives its process.

`AggregatorMachine` and `Site` hold the running process; `boot` throws it away and starts another one from the folder
alone.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from federation import secagg
from federation.hpke import SealingKey
from federation.secagg import state as member_state
from federation.secagg.state import MemberState, OwnSecrets
from federation.vocabulary import Outcome, SiteState
from numpy.typing import NDArray

from aggregator.config import AggregatorSettings, ListenSettings, PacingSettings, StateSettings
from aggregator.config import DriverSettings as DriverSettings
from aggregator.context import AppContext, open_context
from aggregator.rounds.driver import Driver
from aggregator.rounds.housekeeping import Housekeeping
from aggregator.rpc.bandwidth import BandwidthServicer
from aggregator.rpc.blobs import BlobsServicer
from aggregator.rpc.call_guard import CallGuard
from aggregator.rpc.enrolment import SiteEnrolmentServicer
from aggregator.rpc.rounds import RoundsServicer
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.evidence import Attest
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.rounds.participant import Participant, Turn
from site_client.config import AgentSettings, FoldersSettings, PolicySettings
from site_client.config import SiteSettings as SiteSettings
from site_client.records import Job, Status, Update
from site_client.spool import AgentSide, TrainerSide, UpdateSeal
from tests.federation.wire import Fault, Killed, SiteWire, Wire


@dataclass
class Clock:
    """Moves only when told to. `kill_in`: the process that asks the time so many times more ends there."""

    now: datetime
    kill_in: int | None = None

    def __call__(self) -> datetime:
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                raise Killed
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def seconds(self) -> float:
        """For whoever wants a monotonic clock."""
        return self.now.timestamp()


def aggregator_settings(folder: Path) -> AggregatorSettings:
    """Nothing is held or waited for; one thread aggregates."""
    return AggregatorSettings(
        listen=ListenSettings(answer_hold_ms=0),
        state=StateSettings(folder=folder),
        pacing=PacingSettings(idle_s=60, training_s=60, masking_s=1),
        driver=DriverSettings(aggregation_threads=1),
    )


@dataclass
class AggregatorMachine:
    """The aggregator's machine."""

    folder: Path
    wire: Wire
    clock: Clock
    app: AppContext = field(init=False)
    driver: Driver = field(init=False)
    housekeeping: Housekeeping = field(init=False)
    enrolment: EnrolmentService = field(init=False)

    def __post_init__(self) -> None:
        self._up = False
        self.boot()

    def boot(self) -> None:
        """End the process, if there is one, and start it from its folder."""
        self.shut()
        self.app = replace(open_context(aggregator_settings(self.folder)), clock=self.clock)
        guard, settings = CallGuard(self.app), self.app.settings.enrolment
        authority = Authority(self.folder / "ca", self.clock)
        self.enrolment = EnrolmentService(self.app.store, authority, settings, self.clock, os.urandom)
        self.wire.servicers = {
            "Rounds": RoundsServicer(guard),
            "Blobs": BlobsServicer(guard),
            "Line": BandwidthServicer(guard),
            "Enrolment": SiteEnrolmentServicer(guard, self.enrolment),
        }
        self.driver = self.another_driver()
        self.housekeeping = Housekeeping(self.app, self.clock.seconds)
        self._up = True

    def shut(self) -> None:
        self.wire.servicers = {}
        if self._up:
            self.app.store.close()
            self._up = False

    def another_driver(self) -> Driver:
        """A driver of the same process, with leases of its own."""
        return Driver(self.app, monotonic=self.clock.seconds)

    def settle(self) -> None:
        """The driver looks until nothing moves; then the housekeeping has its turn."""
        while self.driver.turn():
            pass
        self.housekeeping.turn()


@dataclass
class Site:
    """A hospital's machine: the agent's process, and a trainer that is done when it is told to be."""

    name: str
    folder: Path
    wire: Wire
    clock: Clock
    secrets: dict[bytes, OwnSecrets] = field(default_factory=dict)  # everything it ever drew, by its mask key
    states: dict[bytes, MemberState] = field(default_factory=dict)  # what its disk last said of each attempt, likewise
    policy: PolicySettings = field(default_factory=lambda: PolicySettings(plan_approval="automatic", studies_min=1))
    coins: dict[bytes, bytes] = field(default_factory=dict)  # of each attempt, likewise
    attest: Attest | None = None  # its secure processor

    def __post_init__(self) -> None:
        self._ledger: Ledger | None = None
        self.boot()

    @property
    def certificate_pem(self) -> bytes:
        """It holds one: every site of a World has joined."""
        assert self.identity.certificate_pem is not None
        return self.identity.certificate_pem

    @property
    def agent_folder(self) -> Path:
        return self.settings.folders.agent

    @property
    def settings(self) -> SiteSettings:
        return SiteSettings(
            name=self.name,
            folders=FoldersSettings(
                self.folder / "state", self.folder / "spool", self.folder / "export", (), self.folder
            ),
            policy=self.policy,
            agent=AgentSettings(poll_min_s=0.01, poll_max_s=86_400, trainer_silent_s=86_400),
        )

    def boot(self) -> None:
        """End the agent's process, if there is one, and start it from its folder."""
        self.shut()
        self.identity = SiteIdentity(self.agent_folder / "identity")
        self._ledger = Ledger(self.agent_folder / "ledger.jsonl", self.identity.keys.signing, self.clock)
        self.transport = SiteWire(self.wire, self.name, self.certificate_pem)
        self.egress = Egress(Guard(self.settings.policy), self._ledger, self.transport)
        spool = AgentSide(self.settings.folders.spool)
        spool.clear_drafts()
        self.rounds = Participant(self.egress, self.identity, spool, self.settings, self.clock, attest=self.attest)
        self.trainer, self.trainer_key = TrainerSide(self.settings.folders.spool), SealingKey.generate()
        self.trainer.publish_key(self.trainer_key.public_bytes)

    def shut(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def step(self, fault: Fault | None = None) -> Turn:
        """One turn of the agent. Errors: as SiteRounds.step; Killed when the fault says so."""
        self.transport.arm(fault)
        try:
            return self.rounds.step()
        finally:
            self._look_at_secrets()

    def jobs(self) -> list[Job]:
        waiting = [job for job in self.trainer.jobs() if not self.trainer.delivered(job.run_id, job.round)]
        return [job for job in waiting if not job.is_sealed or self.content_key(job) is not None]

    def content_key(self, job: Job) -> bytes | None:
        return self.trainer.content_key(job, self.trainer_key)

    def train(self, job: Job, update: Update, delta: NDArray[np.float32] | None) -> None:
        """What the trainer does when it has trained."""
        self.trainer.sweep()
        self.trainer.write_status(Status(self.clock.now, SiteState.IDLE))
        key = self.content_key(job) if job.is_sealed else None
        seal = None if key is None else UpdateSeal(key, job.plan_digest, job.base_model_digest)
        self.trainer.deliver(update, delta, seal)

    def member_files(self) -> list[tuple[Path, MemberState]]:
        """What secure aggregation has on this disk, of any attempt."""
        files = []
        for file in self.agent_folder.glob("rounds/*/attempt-*/member.bin"):
            # Nobody reads a state of version 0.1.0, or a damaged one.
            with suppress(OSError, secagg.SnapshotRefused):
                files.append((file, member_state.from_bytes(file.read_bytes())))
        return files

    def _look_at_secrets(self) -> None:
        """Keep what the disk shows, so that a test knows what must not be found elsewhere, or afterwards."""
        for file, member in self.member_files():
            coins = file.with_name("coins.bin")
            if coins.exists():
                # As they were drawn: a process may end between overwriting and removing them.
                self.coins.setdefault(member.own.mask_key, coins.read_bytes())
            self.states[member.own.mask_key] = member
            if member.secrets is not None:
                self.secrets.setdefault(member.own.mask_key, member.secrets)


def an_update(job: Job, seed: int, parameters: int) -> tuple[Update, NDArray[np.float32] | None]:
    """What some training may have come to: seeded by site and round, so that the same job gives the same update."""
    rng = np.random.default_rng([seed, job.round, *job.base_model_digest[:4]])
    histograms = rng.integers(0, 9, (6, 2, 64))
    trained = not job.evaluation_only
    update = Update(
        run_id=job.run_id,
        round=job.round,
        base_model_digest=job.base_model_digest,
        outcome=Outcome.TRAINED if trained else Outcome.EVALUATED,
        reason=None,
        studies=int(rng.integers(1, 60)),
        loss_sum=float(rng.integers(1, 1000)) / 8 if trained else 0.0,
        example_count=int(rng.integers(1, 500)) if trained else 0,
        clipped=bool(rng.integers(0, 2)),
        histograms=tuple(tuple(tuple(int(n) for n in side) for side in label) for label in histograms),
    )
    delta = (rng.standard_normal(parameters) * 0.1).astype(np.float32) if trained else None
    return update, delta
