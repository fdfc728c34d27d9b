"""A federation in one process: a real app on SQLite and files, a driver, and hospitals that follow the protocol.

Nothing is mocked: the hospitals use `federation.secagg` and `federation.encoding` as site agents do, and call the same
functions as the gRPC door. Only the network and the training are missing.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation import encoding, secagg
from federation.advertisement import advertisement_of
from federation.chain import next_model
from federation.encoding import Layout, SiteHeader
from federation.manifest import Manifest, Model, TensorSpec, load_model, save_model
from federation.plan import (
    CohortBounds,
    Deadlines,
    Encoding,
    Inputs,
    LocalTraining,
    ServerKind,
    ServerOptimizer,
    TrainingPlan,
    sign_plan,
)
from federation.roster import Roster, RosterEntry, sign_roster
from federation.v1 import rounds_pb2 as pb
from federation.v1 import secagg_pb2
from federation.v1.blobs_pb2 import BlobOffer, RoundRef
from federation.vocabulary import Metric

from aggregator.config import AggregatorSettings, PacingSettings, StateSettings
from aggregator.context import AppContext
from aggregator.rounds import polling, submissions, uploads
from aggregator.rounds.driver import Driver
from aggregator.runs import lifecycle
from aggregator.states import RoundState, SeatState
from aggregator.store import Store, round_rows, run_rows, site_rows
from aggregator.store.blobs import Blobs
from aggregator.store.tables import Certificate, RosterEpoch, Round, Run, Seat, Site

PARAMETERS = 300


@dataclass
class Hospital:
    """One site: what it remembers between polls, and how it answers each step."""

    name: str
    federation: "Federation"
    signing_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    delta: np.ndarray = field(default_factory=lambda: np.zeros(PARAMETERS, np.float32))
    studies: int = 40
    working_on: RoundRef | None = None
    model: Model | None = None
    member: secagg.Member | None = None
    closes: list[pb.CloseStep] = field(default_factory=list)
    uploaded: bytes = b""

    def poll(self) -> pb.PollReply:
        request = pb.PollRequest(state=pb.SITE_IDLE, roster_epoch=self.federation.epoch, version="test")
        if self.model is not None:
            request.model_digest = self.model.digest
        if self.working_on is not None:
            request.working_on.CopyFrom(self.working_on)
        app = self.federation.app
        with app.store.read() as session:
            pace = polling.PollPacing(app.settings.pacing, lambda: 0.5)
            return polling.answer(session, self.name, request, app.clock(), pace).reply

    def act(self) -> str | None:
        """Poll once and do what the answer says. Returns the name of the step."""
        reply = self.poll()
        step = reply.WhichOneof("step")
        if step is not None:
            getattr(self, f"on_{step}")(getattr(reply, step))
        return step

    def on_train(self, step: pb.TrainStep) -> None:
        self.working_on = step.round
        self._fetch_base(step)
        submissions.accept_ready(self.federation.app, self.name, pb.ReadyMessage(round=step.round))

    def on_keys(self, step: pb.KeysStep) -> str:
        return submissions.accept_keys(self.federation.app, self.name, self.keys_message(step))

    def on_shares(self, step: pb.SharesStep) -> str:
        return submissions.accept_shares(self.federation.app, self.name, self.shares_message(step))

    def on_upload(self, step: pb.UploadStep) -> str:
        return submissions.accept_upload(self.federation.app, self.name, self.send(step))

    def on_confirm(self, step: pb.ConfirmStep) -> str:
        return submissions.accept_confirm(self.federation.app, self.name, self.confirm_message(step))

    def on_reveal(self, step: pb.RevealStep) -> str:
        return submissions.accept_reveal(self.federation.app, self.name, self.reveal_message(step))

    def on_close(self, step: pb.CloseStep) -> None:
        self.closes.append(step)
        self.working_on = None
        if step.outcome == pb.CloseStep.PUBLISHED:
            self._follow(step.published)

    def keys_message(self, step: pb.KeysStep) -> secagg_pb2.KeysMessage:
        plan, ref = self.federation.plan, step.round
        ctx = secagg.context(plan.digest, step.base_model_digest, ref.run_id, ref.round, ref.attempt, step.roster_epoch)
        self.member = secagg.Member.begin(ctx, self.name, self.signing_key)
        own = secagg_pb2.Advertisement(**vars(self.member.advertisement))
        return secagg_pb2.KeysMessage(round=ref, advertisement=own)

    def shares_message(self, step: pb.SharesStep) -> secagg_pb2.SharesMessage:
        shown = {one.site: advertisement_of(one) for one in step.advertisements}
        sealed = self._member.share(shown, self.federation.signing_keys)
        shares = [
            secagg_pb2.EncryptedShare(from_site=self.name, to_site=peer, ciphertext=sealed[peer])
            for peer in sorted(sealed)
        ]
        return secagg_pb2.SharesMessage(round=step.round, shares=shares)

    def send(self, step: pb.UploadStep) -> secagg_pb2.UploadMessage:
        """Mask, deliver the blob, and make the claim."""
        app = self.federation.app
        masked = self._member.mask(self.words(step.round.round), {one.from_site: one.ciphertext for one in step.shares})
        self.uploaded = masked.astype("<u8").tobytes()
        digest = hashlib.sha256(self.uploaded).digest()
        offer = BlobOffer(round=step.round, digest=digest, size_bytes=len(self.uploaded))
        held = uploads.offer(app, self.name, offer)
        if not held.complete:
            expected = uploads.expected(app, self.name, digest)
            app.uploads.put(digest, expected.size_bytes, held.held_bytes, self.uploaded[held.held_bytes :])
        claim = secagg_pb2.UploadClaim(site=self.name, digest=digest, signature=self._member.claim(digest))
        return secagg_pb2.UploadMessage(round=step.round, claim=claim)

    def confirm_message(self, step: pb.ConfirmStep) -> secagg_pb2.ConfirmMessage:
        signature = self._member.confirm(list(step.uploaded))
        confirmation = secagg_pb2.Confirmation(site=self.name, signature=signature)
        return secagg_pb2.ConfirmMessage(round=step.round, confirmation=confirmation)

    def reveal_message(self, step: pb.RevealStep) -> secagg_pb2.RevealMessage:
        answer = self._member.reveal(list(step.uploaded), {one.site: one.signature for one in step.confirmations})
        shares = [
            secagg_pb2.RevealedShare(about_site=about, kind=answer[about].kind.value, share=answer[about].share)
            for about in sorted(answer)
        ]
        return secagg_pb2.RevealMessage(round=step.round, shares=shares)

    def words(self, number: int) -> np.ndarray:
        """What this site adds to the sum of a round: 15 positives and 25 negatives a label, well told apart."""
        plan = self.federation.plan
        evaluates = number == plan.evaluation_round
        histograms = np.zeros((6, 2, 64), np.int64)
        histograms[:, 1, 40], histograms[:, 0, 20] = 15, 25
        header = SiteHeader(self.studies, 0.0 if evaluates else 8.0, 0 if evaluates else 16, False, histograms)
        layout = Layout.of(plan, 0 if evaluates else plan.manifest.size)
        rng = np.random.default_rng([number, *self.name.encode()])
        return encoding.encode(layout, None if evaluates else self.delta, header, rng)

    @property
    def _member(self) -> secagg.Member:
        assert self.member is not None
        return self.member

    def _fetch_base(self, step: pb.TrainStep) -> None:
        if self.model is None or not step.chain:
            self.model = self.federation.read_model(step.whole_model.digest)
        for link in step.chain:
            self._follow(link)
        assert self.model.digest == step.base_model_digest

    def _follow(self, link: pb.PublishedSum) -> None:
        plan = self.federation.plan
        layout = Layout.of_round(plan, link.round)
        file, _seat = uploads.readable(self.federation.app, self.name, link.sum.digest)
        with file:
            opened = encoding.unpack_sum(layout, file.read(), link.members)
        assert self.model is not None
        if self.model.digest != link.model_digest or layout.parameters == 0:
            self.model = next_model(plan, self.model, opened)
        assert self.model.digest == link.model_digest


class Federation:
    """Sites, a app, one driver. `clock` stands until it is told to move."""

    def __init__(self, folder: Path, store: Store, clock: Callable[[], datetime], names: list[str]) -> None:
        self.folder = folder
        self.clock = clock
        settings = AggregatorSettings(
            state=StateSettings(folder=folder), pacing=PacingSettings(idle_s=60, training_s=60, masking_s=1)
        )
        limit = 1 << 26
        self.app = AppContext(
            store, Blobs(folder / "blobs", limit), Blobs(folder / "uploads", limit), settings, clock, os.urandom
        )
        self.custodian = Ed25519PrivateKey.generate()
        self.driver = Driver(self.app, "test/0/0/0")
        self.hospitals = {name: Hospital(name, self) for name in names}
        self.epoch = 0
        self.plan: TrainingPlan
        rng = np.random.default_rng(7)
        for hospital in self.hospitals.values():
            hospital.delta = (rng.standard_normal(PARAMETERS) * 0.01).astype(np.float32)
            self.enrol(hospital)

    @property
    def signing_keys(self) -> dict[str, bytes]:
        return {name: one.signing_key.public_key().public_bytes_raw() for name, one in self.hospitals.items()}

    def enrol(self, hospital: Hospital) -> None:
        """As the enrolment desk leaves it: an approved site and a roster with one site more."""
        self.hospitals[hospital.name] = hospital
        self.epoch += 1
        now, keys = self.clock(), self.signing_keys
        sealing = {name: hashlib.sha512(name.encode()).digest() * 19 for name in keys}
        listed = sorted(self.hospitals) if self.epoch >= len(self.hospitals) else [hospital.name]
        entries = tuple(RosterEntry(name, keys[name], sealing[name]) for name in listed)
        signed = sign_roster(Roster(self.epoch, entries), self.custodian)
        with self.app.store.write() as session:
            site_rows.put_site(
                session,
                Site(
                    name=hospital.name,
                    csr_der=b"csr",
                    signing_key=keys[hospital.name],
                    sealing_key=sealing[hospital.name],
                    fingerprint="six words",
                    joined_at=now,
                    approved_at=now,
                    revoked_at=None,
                    left_at=None,
                    recoveries_left=5,
                ),
            )
            session.flush()
            fingerprint = hashlib.sha256(hospital.name.encode()).digest()
            site_rows.add_certificate(
                session, Certificate(fingerprint=fingerprint, site=hospital.name, issued_at=now, expires_at=now)
            )
            site_rows.add_roster(
                session, RosterEpoch(epoch=self.epoch, signed=signed.SerializeToString(), created_at=now)
            )

    def start(self, **changes: object) -> Run:
        """Begin a run of two training rounds, or as `changes` to the plan say."""
        count = len(self.hospitals)
        manifest = Manifest((TensorSpec("weight", (PARAMETERS - 20,)), TensorSpec("bias", (20,))))
        initial = Model(manifest, np.linspace(-1, 1, PARAMETERS, dtype=np.float32))
        plan = TrainingPlan(
            run_id=os.urandom(16),
            name="a test",
            purpose="to see it work",
            architecture="lite",
            manifest=manifest,
            initial_model_digest=initial.digest,
            rounds=2,
            inputs=Inputs(64, 8),
            training=LocalTraining(1, 0.1, 0.0, 0.0, 1, 1),
            server=ServerOptimizer(ServerKind.FEDAVG, 1.0),
            cohort=CohortBounds(3, count, max(count, 8)),
            deadlines=Deadlines(training_s=3600, phase_s=60),
            encoding=Encoding(1.0, 8, 1000, bytes(32)),
            metrics=(Metric.LOSS, Metric.HISTOGRAMS),
        )
        self.plan = replace(plan, **changes)
        self.initial = initial
        file = self.folder / "initial.safetensors"
        save_model(file, initial)
        return lifecycle.start_run(self.app, sign_plan(self.plan, self.custodian), file, self.custodian.public_key())

    def turn(self, *silent: str) -> dict[str, str | None]:
        """Every hospital that is not silent acts once, then the driver looks until nothing moves."""
        acted = {name: one.act() for name, one in self.hospitals.items() if name not in silent}
        self.settle()
        return acted

    def settle(self) -> None:
        while self.driver.turn():
            pass

    def until(self, state: RoundState, *silent: str) -> Round:
        """Turns until the newest round is in `state`."""
        for _ in range(20):
            if self.round().state is state:
                return self.round()
            self.turn(*silent)
        raise AssertionError(f"expected {state}, the round stays in {self.round()}")

    def complete(self, *silent: str) -> Run:
        """Turns until the run is over."""
        for _ in range(60):
            if self.run().state not in run_rows.ACTIVE:
                return self.run()
            self.turn(*silent)
        raise AssertionError(f"the run stays {self.run().state}, its round {self.round().state}")

    def run(self) -> Run:
        with self.app.store.read() as session:
            return run_rows.get(session, self.plan.run_id)

    def round(self, number: int | None = None) -> Round:
        with self.app.store.read() as session:
            if number is not None:
                return round_rows.get(session, self.plan.run_id, number)
            newest = round_rows.newest(session, self.plan.run_id)
            assert newest is not None
            return newest

    def seat(self, name: str, number: int | None = None) -> Seat:
        with self.app.store.read() as session:
            seat = session.get(Seat, (self.round(number).id, name))
            assert seat is not None
            return seat

    def states(self, number: int | None = None) -> dict[str, SeatState]:
        with self.app.store.read() as session:
            return round_rows.seat_states(session, self.round(number).id)

    def read_model(self, blob: bytes) -> Model:
        file = self.folder / f"read-{blob.hex()[:8]}.safetensors"
        with self.app.blobs.open(blob) as source:
            file.write_bytes(source.read())
        return load_model(file)

    def newest_model(self) -> Model:
        with self.app.store.read() as session:
            return self.read_model(run_rows.newest_model(session, self.plan.run_id).blob)

    def expected_next(self, base: Model, number: int, members: list[str]) -> Model:
        """What the plain sum of the members' words leads to: no masks, no app."""
        layout = Layout.of(self.plan, self.plan.manifest.size)
        total = np.zeros(layout.words, np.uint64)
        for name in members:
            total += self.hospitals[name].words(number)
        return next_model(self.plan, base, encoding.decode_sum(layout, total, len(members)))


@pytest.fixture
def federation(tmp_path: Path, store: Store, clock: Callable[[], datetime]) -> Federation:
    """Five hospitals with keys and updates of their own; no run yet."""
    return Federation(tmp_path, store, clock, [f"site-{letter}" for letter in "abcde"])
