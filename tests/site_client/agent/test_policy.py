"""The hospital's own policy in a round: what it holds back, and what it says meanwhile."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from federation.manifest import Model, save_model
from federation.plan import TrainingPlan, sign_plan
from federation.v1 import blobs_pb2, rounds_pb2
from federation.v1.blobs_pb2 import RoundRef

from site_client.agent.egress import Egress
from site_client.agent.guard import Guard
from site_client.agent.identity import Identity
from site_client.agent.ledger import Ledger
from site_client.agent.rounds import SiteRounds
from site_client.config import Folders, Policy, Settings
from site_client.records import RunId, Status, Update
from site_client.spool import AgentSide, TrainerSide


@dataclass
class Site:
    """An agent that has been offered round 1, and whatever its trainer says."""

    rounds: SiteRounds
    trainer: TrainerSide
    wire: object
    clock: object
    plan: TrainingPlan

    def step(self) -> list[str]:
        """One turn, a minute later; the calls it made."""
        self.clock.advance(minutes=1)
        self.trainer.write_status(Status(self.clock(), "SITE_IDLE"))
        before = len(self.wire.sent)
        self.rounds.step()
        return [path.rpartition("/")[2] for path, _ in self.wire.sent[before:]]

    def train(self) -> None:
        update = Update(RunId(self.plan.run_id), 1, self.plan.initial_model_digest, "trained", None, 40, 1.0, 40, False)
        self.trainer.deliver(update, np.full(self.plan.manifest.size, 0.01, np.float32))


@pytest.fixture
def offer(tmp_path: Path, identity: Identity, consortium, wire, clock, ledger: Ledger, plan: TrainingPlan) -> Callable:
    model = Model(plan.manifest, np.zeros(plan.manifest.size, np.float32), ())
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    data = path.read_bytes()
    blob = rounds_pb2.BlobRef(digest=hashlib.sha256(data).digest(), size_bytes=len(data))

    def make(policy: Policy, **changes: object) -> Site:
        offered = replace(plan, initial_model_digest=model.digest, **changes)
        step = rounds_pb2.TrainStep(
            round=RoundRef(run_id=offered.run_id, round=1, attempt=0),
            plan_digest=offered.digest,
            base_model_digest=model.digest,
            whole_model=blob,
            seconds_left=3600,
        )
        wire.answers |= {
            "Rounds/Poll": lambda _: rounds_pb2.PollReply(retry_after_ms=10, roster_epoch=1, train=step),
            "Rounds/FetchPlan": lambda _: sign_plan(offered, consortium.custodian),
            "Rounds/Ready": lambda _: rounds_pb2.Receipt(verdict=rounds_pb2.Receipt.ACCEPTED),
            "Rounds/Decline": lambda _: rounds_pb2.Receipt(verdict=rounds_pb2.Receipt.ACCEPTED),
        }
        wire.streams["Blobs/Get"] = [blobs_pb2.BlobChunk(digest=blob.digest, offset=0, data=data)]
        folders = Folders(state=tmp_path / "state", spool=tmp_path / "spool")
        settings = Settings("mercy", folders=folders, policy=policy)
        egress = Egress(Guard(policy), ledger, wire)
        rounds = SiteRounds(egress, identity, AgentSide(folders.spool), settings, clock)
        return Site(rounds, TrainerSide(folders.spool), wire, clock, offered)

    return make


def test_a_plan_waits_for_this_hospital_s_yes(offer: Callable) -> None:
    site = offer(Policy())
    assert site.step() == ["Poll", "FetchPlan"]
    assert site.step() == ["Poll"]
    assert site.rounds.situation().state == "SITE_AWAITING_APPROVAL"
    assert site.trainer.jobs() == []
    site.rounds.plans.decide(site.plan.digest, approved=True)
    assert site.rounds.has_news()
    assert site.step() == ["Poll", "Get"]
    assert len(site.trainer.jobs()) == 1


def test_a_plan_that_was_refused_is_declined_and_nothing_is_fetched(offer: Callable) -> None:
    site = offer(Policy())
    site.step()
    site.rounds.plans.decide(site.plan.digest, approved=False)
    assert site.step() == ["Poll", "Decline"]
    assert site.trainer.jobs() == []


@pytest.mark.parametrize("policy", [Policy("automatic", metrics=("LOSS",)), Policy("automatic", cohort_min=9)])
def test_a_plan_outside_the_policy_is_declined_whoever_signed_it(offer: Callable, policy: Policy) -> None:
    site = offer(policy)
    assert site.step() == ["Poll", "FetchPlan", "Decline"]
    assert site.trainer.jobs() == []


def test_an_update_from_fewer_studies_than_the_policy_wants_is_declined(offer: Callable) -> None:
    site = offer(Policy("automatic", studies_min=41))
    site.step()
    site.train()
    assert site.step() == ["Poll", "Decline"]


def test_outside_the_hours_for_transfers_nothing_large_moves_and_the_reason_is_said(offer: Callable) -> None:
    site = offer(Policy("automatic", transfer_windows=("19:00 for 12h",)))
    site.clock.now = datetime(2026, 11, 23, 12, tzinfo=UTC).astimezone().replace(hour=12)
    assert site.step() == ["Poll", "FetchPlan"]
    assert site.step() == ["Poll"]
    situation = site.rounds.situation()
    assert (situation.state, situation.reasons) == ("SITE_PAUSED", ("NET_WINDOW",))
    site.clock.now = site.clock.now.replace(hour=20)
    assert site.step() == ["Poll", "Get"]
    site.clock.advance(hours=12)
    site.train()
    assert site.step() == ["Poll"]  # trained, and held here
    assert site.rounds.situation().reasons == ("NET_WINDOW",)
    site.clock.advance(hours=12)
    assert site.step() == ["Poll", "Ready"]
    assert site.rounds.situation().state == "SITE_READY"
