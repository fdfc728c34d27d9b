"""The hospital's own policy in a round: what it holds back, and what it says meanwhile."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation.encoding import Layout
from federation.manifest import Model, save_model
from federation.plan import Encoding, LocalTraining, Trainable, TrainingPlan, sign_plan
from federation.privacy import Privacy
from federation.v1 import blobs_pb2, rounds_pb2
from federation.v1.blobs_pb2 import RoundRef
from federation.vocabulary import Metric, Outcome, SiteState, StateReason
from google.protobuf.message import Message

from site_client.agent.egress import calls, verify
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger, read
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.privacy.ledger import SpentPrivacy
from site_client.agent.rounds.participant import Participant
from site_client.agent.rounds.plan_description import describe
from site_client.config import FoldersSettings, PolicySettings, SiteSettings
from site_client.errors import EgressRefused
from site_client.records import RunId, Status, Update
from site_client.spool import AgentSide, TrainerSide
from site_client.typed_json import Digest
from tests.site_client.agent.conftest import Consortium, StandingClock, Wire

HEADS_ONLY: dict[str, Any] = {"training": LocalTraining(trainable=Trainable.HEADS), "moving_tensors": (1,)}
PRIVATE: dict[str, Any] = {
    "encoding": Encoding(rotation_seed=bytes(32)),
    "metrics": (Metric.HISTOGRAMS,),
    "privacy": Privacy(0.1, 2.0, 500, 100, 8.0, validation_multiplier=20.0, epsilon_validation=2.0),
}


@dataclass
class Site:
    """An agent that has been offered round 1, and whatever its trainer says."""

    rounds: Participant
    trainer: TrainerSide
    wire: Wire
    clock: StandingClock
    plan: TrainingPlan

    def step(self) -> list[str]:
        """One turn, a minute later; the calls it made."""
        self.clock.advance(minutes=1)
        self.trainer.write_status(Status(self.clock(), SiteState.IDLE))
        before = len(self.wire.sent)
        self.rounds.step()
        return [path.rpartition("/")[2] for path, _ in self.wire.sent[before:]]

    def train(self) -> None:
        update = Update(
            RunId(self.plan.run_id),
            1,
            Digest(self.plan.initial_model_digest),
            Outcome.TRAINED,
            None,
            40,
            1.0,
            40,
            False,
        )
        self.trainer.deliver(update, np.full(self.plan.moving.size, 0.01, np.float32))


Offer = Callable[..., Site]


@pytest.fixture
def offer(
    tmp_path: Path,
    identity: SiteIdentity,
    consortium: Consortium,
    wire: Wire,
    clock: StandingClock,
    ledger: Ledger,
    plan: TrainingPlan,
) -> Offer:
    model = Model(plan.manifest, np.zeros(plan.manifest.size, np.float32), ())
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    data = path.read_bytes()
    blob = rounds_pb2.BlobRef(digest=hashlib.sha256(data).digest(), size_bytes=len(data))

    def make(policy: PolicySettings, is_metered: Callable[[], bool | None] = lambda: None, **changes: Any) -> Site:
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
        folders = FoldersSettings(state=tmp_path / "state", spool=tmp_path / "spool")
        settings = SiteSettings("mercy", folders=folders, policy=policy)
        egress = Egress(Guard(policy), ledger, wire)
        rounds = Participant(egress, identity, AgentSide(folders.spool), settings, clock, is_metered)
        return Site(rounds, TrainerSide(folders.spool), wire, clock, offered)

    return make


def test_a_plan_waits_for_this_hospital_s_yes(offer: Offer) -> None:
    site = offer(PolicySettings())
    assert site.step() == ["Poll", "FetchPlan"]
    assert site.step() == ["Poll"]
    assert site.rounds.situation().state == SiteState.AWAITING_APPROVAL
    assert site.trainer.jobs() == []
    site.rounds.plans.decide(site.plan.digest, approved=True)
    assert site.rounds.has_news()
    assert site.step() == ["Poll", "Get"]
    assert len(site.trainer.jobs()) == 1


def test_a_plan_that_was_refused_is_declined_and_nothing_is_fetched(offer: Offer) -> None:
    site = offer(PolicySettings())
    site.step()
    site.rounds.plans.decide(site.plan.digest, approved=False)
    assert site.step() == ["Poll", "Decline"]
    assert site.trainer.jobs() == []


@pytest.mark.parametrize(
    "policy",
    [
        PolicySettings("automatic", metrics=(Metric.LOSS,)),
        PolicySettings("automatic", cohort_min=9),
        PolicySettings("automatic", epsilon_max=8.0),
    ],
)
def test_a_plan_outside_the_policy_is_declined_whoever_signed_it(offer: Offer, policy: PolicySettings) -> None:
    site = offer(policy)
    assert site.step() == ["Poll", "FetchPlan", "Decline"]
    assert site.trainer.jobs() == []


def test_an_update_from_fewer_studies_than_the_policy_wants_is_declined(offer: Offer) -> None:
    site = offer(PolicySettings("automatic", studies_min=41))
    site.step()
    site.train()
    assert site.step() == ["Poll", "Decline"]


def test_outside_the_hours_for_transfers_nothing_large_moves_and_the_reason_is_said(offer: Offer) -> None:
    site = offer(PolicySettings("automatic", transfer_windows=("19:00 for 12h",)))
    site.clock.now = datetime(2026, 11, 23, 12, tzinfo=UTC).astimezone().replace(hour=12)
    assert site.step() == ["Poll", "FetchPlan"]
    assert site.step() == ["Poll"]
    situation = site.rounds.situation()
    assert (situation.state, situation.reasons) == (SiteState.PAUSED, (StateReason.NET_WINDOW,))
    site.clock.now = site.clock.now.replace(hour=20)
    assert site.step() == ["Poll", "Get"]
    site.clock.advance(hours=12)
    site.train()
    assert site.step() == ["Poll"]  # trained, and held here
    assert site.rounds.situation().reasons == (StateReason.NET_WINDOW,)
    site.clock.advance(hours=12)
    assert site.step() == ["Poll", "Ready"]
    assert site.rounds.situation().state == SiteState.READY


def test_the_plan_is_shown_with_what_the_policy_has_against_it(offer: Offer) -> None:
    policy = PolicySettings(metrics=(Metric.LOSS,), cohort_min=9, epsilon_max=8.0)
    site = offer(policy)
    site.step()
    held, unspent = site.rounds.plans.find(site.plan.digest.hex()), SpentPrivacy((), 0.2)
    against = describe(held, policy, unspent)
    for key in ("policy.metrics", "policy.cohort_min", "policy.epsilon_max is 8"):
        assert key in against
    assert "nothing, by the policy" in describe(held, PolicySettings(), unspent)


@pytest.mark.parametrize(
    ("policy", "answer", "waits"),
    [
        (PolicySettings("automatic"), True, True),
        (PolicySettings("automatic"), False, False),
        (PolicySettings("automatic"), None, False),
        (PolicySettings("automatic", metered="ignore", metered_unknown="wait"), True, False),
        (PolicySettings("automatic", metered_unknown="wait"), None, True),
        (PolicySettings("automatic", metered_unknown="wait"), False, False),
    ],
)
def test_a_metered_link_holds_models_back_and_the_reason_is_said(
    offer: Offer, policy: PolicySettings, answer: bool | None, waits: bool
) -> None:
    site = offer(policy, lambda: answer)
    assert site.step() == (["Poll", "FetchPlan"] if waits else ["Poll", "FetchPlan", "Get"])
    assert (site.rounds.situation().reasons == (StateReason.METERED,)) == waits


def test_training_goes_on_over_a_metered_link_and_the_update_waits_for_the_next_free_one(offer: Offer) -> None:
    link = {"metered": False}
    site = offer(PolicySettings("automatic"), lambda: link["metered"])
    site.step()
    assert len(site.trainer.jobs()) == 1
    link["metered"] = True
    site.train()
    assert site.step() == ["Poll"]
    assert len(site.trainer.jobs()) == 1
    assert (site.rounds.situation().state, site.rounds.situation().reasons) == (
        SiteState.PAUSED,
        (StateReason.METERED,),
    )
    link["metered"] = False
    assert site.step() == ["Poll", "Ready"]


@pytest.mark.parametrize(
    "changes",
    [{}, HEADS_ONLY, HEADS_ONLY | PRIVATE],
    ids=["all tensors", "one tensor moves", "one tensor moves, private"],
)
def test_a_dry_run_shows_every_message_of_the_round_and_sends_none_of_it(
    offer: Offer, ledger: Ledger, tmp_path: Path, changes: dict[str, Any]
) -> None:
    site = offer(PolicySettings("automatic", dry_run=True), **changes)
    site.step()
    site.train()
    assert site.step() == ["Poll", "Decline"]
    entries = list(read(tmp_path / "ledger" / "ledger.jsonl"))
    shown = [one.rpc.rpartition("/")[2] for one in entries if one.decision == "dry_run"]
    phases = ["SendKeys", "SendShares", "Offer", "Put", "SendUpload", "SendConfirm", "SendReveal"]
    assert shown == ["Ready", *phases]
    left = {one.rpc.rpartition("/")[2] for one in entries if one.left}
    assert left == {"Poll", "FetchPlan", "Get", "Decline"}
    put = next(one for one in entries if one.rpc == "Blobs/Put")
    # The rest of the message names the upload and the place in it.
    assert 0 < put.size_bytes - Layout.of(site.plan, site.plan.moving.size).bytes < 100
    assert not (tmp_path / "state" / "agent" / "privacy.jsonl").exists()
    assert put.dest == "hub.example:8443"
    assert not (tmp_path / "state" / "agent" / "dry_run").exists()
    assert verify.verify(tmp_path / "ledger" / "ledger.jsonl").dry_run == len(shown)


@pytest.mark.parametrize(
    "call", [calls.READY, calls.SEND_KEYS, calls.SEND_SHARES, calls.SEND_UPLOAD, calls.SEND_CONFIRM, calls.SEND_REVEAL]
)
def test_in_a_dry_run_the_guard_lets_nothing_of_a_round_out(call: calls.Call[Message, Message]) -> None:
    with pytest.raises(EgressRefused, match="dry_run"):
        Guard(PolicySettings(dry_run=True)).check_message(call, call.request())
