"""Federations to start histories from: a run of enrolled sites, made once by the real enrolment and then copied.

Keys and certificates cost more than a round of a small model; what a history is about begins after them.
"""

import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
from federation.gate import Gate
from federation.manifest import Manifest, Model, TensorSpec, save_model
from federation.plan import (
    CohortBounds,
    Deadlines,
    Encoding,
    Inputs,
    LocalTraining,
    ServerKind,
    ServerOptimizer,
    Trainable,
    TrainingPlan,
    sign_plan,
)
from federation.privacy import Privacy
from federation.release import Release
from federation.token import Token
from federation.v1 import enrolment_pb2
from federation.vocabulary import Metric

from aggregator.context import AppContext, open_context
from aggregator.migrations import upgrade
from aggregator.runs import lifecycle
from aggregator.sites.authority import create_authority
from aggregator.sites.enrolment import EnrolmentService
from site_client.agent.identity.identity import Joining, Membership, SiteIdentity
from site_client.agent.identity.keys import prove_possession
from site_client.typed_json import Digest
from tests.custodian import CUSTODIAN, sign_pending
from tests.federation.places import Clock, aggregator_settings

BEGIN = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
PARAMETERS = 60
TRAINING_S, PHASE_S = 3600, 60
PRIVACY = Privacy(
    sampling_rate=0.5,
    noise_multiplier=4.0,
    patients_expected=20,
    batch_max=20,
    epsilon_train=10.0,
    validation_multiplier=4.0,
    epsilon_validation=10.0,
)
PHASES = ("training", "keys", "shares", "upload", "confirm", "reveal")


@dataclass(frozen=True)
class Kind:
    """What a federation is like."""

    sites: int
    rounds: int = 1
    bits: int = 6
    server: ServerKind = ServerKind.FEDAVG
    trainable: Trainable = Trainable.ALL  # otherwise only the tensor "bias" moves
    private: bool = False
    gated: bool = False
    grace_s: int = 0
    release: Release | None = None
    phase: str = "training"  # the state that its first round is in when the history begins

    @property
    def names(self) -> list[str]:
        return [f"site-{letter}" for letter in "abcdefghijkl"[: self.sites]]


class Nursery:
    """A folder of grown federations, by kind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.walked: dict[Kind, object] = {}  # World.begin keeps here what it copies from

    def copy(self, kind: Kind) -> Path:
        """A folder with aggregator/ and a folder a site, whose run has just begun; the caller's to remove."""
        # A digest: the measurements of a release make a longer name than a folder may have.
        grown = self._folder / sha256(repr(replace(kind, phase="")).encode()).hexdigest()[:32]
        if not grown.exists():
            draft = grown.with_name(f".{grown.name}")
            _grow(draft, kind)
            draft.rename(grown)
        return self.twin(grown)

    def twin(self, folder: Path) -> Path:
        """Another copy of a folder; the caller's to remove."""
        self._count += 1
        return shutil.copytree(folder, self._folder / f"history-{self._count}")


def plan_of(kind: Kind, initial: Model) -> TrainingPlan:
    """Small in everything but the protocol."""
    if kind.private:
        return replace(
            plan_of(replace(kind, private=False), initial),
            training=LocalTraining(studies_min=1, trainable=kind.trainable),
            encoding=Encoding(rotation_seed=bytes(range(32))),
            metrics=(Metric.HISTOGRAMS,),
            privacy=PRIVACY,
        )
    adaptive = kind.server in (ServerKind.FEDADAM, ServerKind.FEDYOGI)
    return TrainingPlan(
        run_id=bytes(range(16)),
        name="a history",
        purpose="to see what it does",
        architecture="lite",
        manifest=initial.manifest,
        initial_model_digest=initial.digest,
        rounds=kind.rounds,
        inputs=Inputs(64, 8),
        training=LocalTraining(1, 0.1, 0.0, 0.0, 1, 1, trainable=kind.trainable),
        server=ServerOptimizer(kind.server, 0.1, 0.9, 0.99, 0.001) if adaptive else ServerOptimizer(kind.server, 1.0),
        cohort=CohortBounds(3, kind.sites, kind.sites),
        deadlines=Deadlines(TRAINING_S, PHASE_S, kind.grace_s),
        encoding=Encoding(1.0, kind.bits, 40, bytes(range(32))),
        metrics=(Metric.LOSS, Metric.HISTOGRAMS),
        moving_tensors=() if kind.trainable is Trainable.ALL else (1,),
        gate=Gate() if kind.gated else None,
        release=kind.release,
    )


def _grow(folder: Path, kind: Kind) -> None:
    clock = Clock(BEGIN)
    aggregator_folder = folder / "aggregator"
    aggregator_folder.mkdir(parents=True)
    authority = create_authority(aggregator_folder / "ca", clock, CUSTODIAN.public_key())
    app = replace(open_context(aggregator_settings(aggregator_folder)), clock=clock)
    upgrade(app.store.engine)
    enrolment = EnrolmentService(app.store, authority, app.settings.enrolment, clock, os.urandom)
    hosts = [host_of(folder, name, enrolment.invite(name, auto_approve=True)) for name in kind.names]
    for host in hosts:  # a roster for each, so that there are older ones
        enrolment.join(host.request)
        sign_pending(app.store, authority, clock())
    for host in hosts:
        host.accept(enrolment.join(host.request).credentials)
    _begin(app, kind)
    app.store.close()


@dataclass(frozen=True)
class Host:
    """A hospital's machine that joins."""

    joining: Joining
    token: Token

    @property
    def request(self) -> enrolment_pb2.JoinRequest:
        return enrolment_pb2.JoinRequest(
            site=self.token.site,
            secret=self.token.secret,
            csr_der=self.joining.request.csr_der,
            signing_key=self.joining.keys.signing_public,
            sealing_key=self.joining.keys.sealing.public_bytes,
            possession=prove_possession(self.joining.keys, self.joining.request.csr_der),
        )

    def accept(self, credentials: enrolment_pb2.Credentials) -> SiteIdentity:
        membership = Membership(self.token.site, "aggregator.test:444", Digest(self.token.ca_fingerprint))
        return self.joining.accept(credentials, membership)


def host_of(folder: Path, name: str, token: Token) -> Host:
    """The machine of a hospital that was invited, in the World's `folder`."""
    return Host(Joining.prepare(folder / name / "state" / "agent" / "identity", name), token)


def _begin(app: AppContext, kind: Kind) -> None:
    manifest = Manifest((TensorSpec("weight", (PARAMETERS - 4,)), TensorSpec("bias", (4,))))
    initial = Model(manifest, np.linspace(-1, 1, PARAMETERS, dtype=np.float32))
    file = app.settings.state.folder / "initial.safetensors"
    save_model(file, initial)
    lifecycle.start_run(app, sign_plan(plan_of(kind, initial), CUSTODIAN), file, CUSTODIAN.public_key())
