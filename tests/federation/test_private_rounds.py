"""Rounds of a private plan: noise in the sum, coins of each attempt, and a charge before the first masked byte."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation.encoding import HEADER_WORDS, Layout, lanes
from federation.v1 import blobs_pb2, rounds_pb2
from federation.vocabulary import Outcome, SiteState, StateReason
from google.protobuf.message import Message

from aggregator.states import RoundState, RunState
from aggregator.store import run_rows
from site_client.agent.privacy.costs import CostKind
from site_client.agent.privacy.ledger import Charge, PrivacyLedger, read
from site_client.agent.rounds.rollback import acknowledge
from site_client.config import PolicySettings
from site_client.errors import StepRefused
from site_client.records import Job, RunId, Status
from site_client.typed_json import Digest
from tests.federation.invariants import check, plain_words
from tests.federation.nursery import PARAMETERS
from tests.federation.places import Site, an_update
from tests.federation.wire import FAULTS, Fault
from tests.federation.world import World

MakeWorld = Callable[..., World]
NAME = "site-b"


def charges(site: Site) -> list[Charge]:
    return list(read(site.agent_folder / "privacy.jsonl"))


def kinds(site: Site) -> list[tuple[int, str]]:
    return [(charge.round, charge.cost.kind) for charge in charges(site)]


def policy(**changes: object) -> PolicySettings:
    return replace(PolicySettings(plan_approval="automatic", studies_min=1), **changes)  # type: ignore[arg-type]  # by name


def publish(world: World, number: int) -> None:
    """Everybody steps until this round is published."""
    for _ in range(60):
        if len(world.rounds()) >= number and world.rounds()[number - 1].state is RoundState.PUBLISHED:
            return
        world.everybody()
    raise AssertionError(f"round {number} is not published")


def declined(world: World, name: str) -> set[int]:
    """The reasons that a site gave."""
    return {
        one.message.reason
        for one in world.wire.heard
        if one.site == name and isinstance(one.message, rounds_pb2.DeclineMessage)
    }


def test_a_private_run_moves_the_model_and_charges_each_round_once(make_world: MakeWorld) -> None:
    world = make_world(sites=4, rounds=2, private=True)
    world.until(RunState.COMPLETED)
    rows = world.rounds()
    assert [row.state for row in rows] == [RoundState.PUBLISHED] * 3
    assert len({row.base_model for row in rows}) == 3
    for site in world.sites.values():
        assert kinds(site) == [(1, "train"), (1, "validation"), (2, "train"), (3, "validation")]
        assert {charge.plan for charge in charges(site)} == {world.plan.digest}
    check(world)


def test_the_model_moves_by_the_mean_gradient_but_for_noise(make_world: MakeWorld) -> None:
    world = make_world(sites=4, rounds=1, private=True)
    world.until(RunState.COMPLETED)
    first, second = world.rounds()
    with world.aggregator.app.store.read() as session:
        blobs = [run_rows.model_by_digest(session, world.run_id, row.base_model).blob for row in (first, second)]
    before, after = (world.model(blob).weights.astype(np.float64) for blob in blobs)
    job = Job(RunId(world.run_id), 1, False, Digest(first.base_model), Digest(world.plan.digest))
    deltas = [an_update(job, world.seed_of(name), PARAMETERS)[1] for name in world.sites]
    privacy, layout = world.plan.privacy, Layout.of_round(world.plan, 1)
    assert privacy is not None
    assert layout.gradient is not None
    patients = privacy.sampling_rate * privacy.patients_expected * len(world.sites)
    expected = np.sum([delta for delta in deltas if delta is not None], axis=0) / patients
    deviation = np.sqrt(layout.gradient.noise.share_variance(4) * 4) / layout.gradient.scale / patients
    off = (after - before - expected) / deviation
    assert np.abs(off).max() < 6
    assert off.std() > 0.5  # the noise is there


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", [1, pytest.param(2, marks=pytest.mark.slow), 3])  # the offer, a chunk, the claim
def test_a_site_killed_while_it_uploads_is_charged_once_and_sends_the_same_bytes(
    make_world: MakeWorld, fault: str, at: int
) -> None:
    world = make_world(sites=3, private=True, phase="upload")
    site = world.sites[NAME]
    world.step(NAME, Fault(fault, at))
    assert kinds(site) == [(1, "train"), (1, "validation")]
    site.boot()
    publish(world, 1)
    assert world.rounds()[0].attempt == 1
    assert kinds(site) == [(1, "train"), (1, "validation")]
    check(world)


@pytest.mark.parametrize("fault", ["killed before", "killed after"])
@pytest.mark.parametrize("phase", ["keys", "shares", "confirm"])
def test_a_site_killed_in_another_phase_keeps_its_coins_and_masks_the_same(
    make_world: MakeWorld, phase: str, fault: str
) -> None:
    world = make_world(sites=3, private=True, phase=phase)
    site = world.sites[NAME]
    world.step(NAME, Fault(fault, 1))
    before = dict(site.coins)
    assert len(before) == 1
    publish(world, 1)
    row = world.rounds()[0]
    assert (row.members, row.attempt) == (3, 1)
    assert before.items() <= site.coins.items()
    check(world)


def test_a_site_that_dies_between_charge_and_upload_stays_charged(make_world: MakeWorld) -> None:
    world = make_world(sites=4, private=True, phase="upload")
    site = world.sites[NAME]
    world.step(NAME, Fault("killed before", 1))
    world.silent.add(NAME)
    sent = [one for one in world.wire.heard if one.site == NAME and isinstance(one.message, blobs_pb2.BlobChunk)]
    assert not sent
    world.clock.advance(61)
    publish(world, 1)
    assert world.rounds()[0].members == 3
    assert kinds(site) == [(1, "train"), (1, "validation")]


def test_a_charge_is_on_disk_before_the_first_masked_byte(make_world: MakeWorld) -> None:
    world = make_world(sites=3, private=True, phase="upload")
    charged: list[list[tuple[int, str]]] = []

    def on_arrival(site: str, call: str, message: Message) -> Message:
        if isinstance(message, blobs_pb2.BlobOffer | blobs_pb2.BlobChunk):
            charged.append(kinds(world.sites[site]))
        return message

    world.wire.lies_up.append(on_arrival)
    world.everybody()
    assert len(charged) >= 6
    assert all(of_site == [(1, "train"), (1, "validation")] for of_site in charged)


def test_another_attempt_has_other_noise_and_is_not_charged_again(make_world: MakeWorld) -> None:
    world = make_world(sites=4, private=True, phase="upload")
    world.step(NAME)
    world.clock.advance(61)  # one upload is too few: the attempt fails
    world.drive()
    publish(world, 1)
    row, site = world.rounds()[0], world.sites[NAME]
    assert row.attempt == 2
    first, second = (plain_words(world, row, NAME, key) for key in site.coins)
    layout = Layout.of_round(world.plan, 1)
    levels = [
        lanes.unpack(words[HEADER_WORDS:], layout.lane_width, layout.coordinates, layout.level_max).astype(np.int64)
        for words in (first, second)
    ]
    assert layout.gradient is not None
    variance = layout.gradient.noise.share_variance(4)
    assert np.var(levels[0] - levels[1]) > variance  # of two shares; a dither alone gives a sixth of 1
    assert (first[:HEADER_WORDS] != second[:HEADER_WORDS]).any()
    assert kinds(site) == [(1, "train"), (1, "validation")]
    check(world)


def test_coins_are_drawn_before_the_keys_and_gone_once_the_site_has_confirmed(make_world: MakeWorld) -> None:
    world = make_world(sites=3, private=True, phase="confirm")
    site = world.sites[NAME]
    file = site.member_files()[0][0].with_name("coins.bin")
    assert len(file.read_bytes()) == 32
    assert len(set(site.coins.values())) == 1
    world.step(NAME)
    assert not file.exists()


def test_an_attempt_without_its_coins_is_left(make_world: MakeWorld) -> None:
    world = make_world(sites=4, private=True, phase="upload")
    site = world.sites[NAME]
    site.member_files()[0][0].with_name("coins.bin").unlink()
    world.step(NAME)
    assert "its coins are not in the state folder" in str(world.refused[-1][1])
    assert charges(site) == []
    world.everybody()
    world.clock.advance(61)
    publish(world, 1)
    assert world.rounds()[0].members == 3
    check(world)


def test_a_site_whose_budget_is_exhausted_declines_and_the_others_go_on(make_world: MakeWorld) -> None:
    world = make_world(sites=4, rounds=3, private=True)
    site = world.sites["site-d"]
    spent_by_plan = PrivacyLedger(site.agent_folder, site.identity.keys.signing, world.clock, 0.2).spending()
    needed = spent_by_plan.epsilon_with(world.plan, 1e-6)
    site.policy = policy(epsilon_max=needed + 0.01)
    site.boot()
    publish(world, 1)
    assert world.rounds()[0].members == 4
    # Another run takes its share in between.
    other = replace(world.plan, run_id=bytes(16))
    ledger = PrivacyLedger(site.agent_folder, site.identity.keys.signing, world.clock, 0.2)
    ledger.charge(other, 1)
    world.until(RunState.COMPLETED)
    assert [row.members for row in world.rounds()] == [4, 3, 3, 3]
    assert declined(world, "site-d") == {StateReason.POLICY.number}
    check(world)


def test_a_run_without_noise_is_booked_as_unbounded_once(make_world: MakeWorld) -> None:
    world = make_world(sites=3, rounds=2)
    world.until(RunState.COMPLETED)
    for site in world.sites.values():
        assert kinds(site) == [(1, CostKind.UNBOUNDED)]


@pytest.mark.parametrize("private", [False, True])
def test_a_changed_charge_stops_the_site_with_one_sentence(make_world: MakeWorld, private: bool) -> None:
    world = make_world(sites=4, rounds=2, private=private)
    publish(world, 1)
    site = world.sites[NAME]
    file = site.agent_folder / "privacy.jsonl"
    first, *rest = file.read_bytes().splitlines(keepends=True)
    record = json.loads(first)
    record["cost"]["variance"] = 2**40
    file.write_bytes(b"".join([json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n", *rest]))
    world.everybody()
    world.step(NAME)
    refusal = world.refused[-1][1]
    assert isinstance(refusal, StepRefused)
    assert "the privacy ledger does not verify at entry 1" in str(refusal)


@pytest.mark.parametrize("moment", ["start", "running", "joined anew"])
def test_a_privacy_ledger_that_was_put_back_stops_the_site_until_a_person_knows_why(
    make_world: MakeWorld, tmp_path: Path, moment: str
) -> None:
    world = make_world(sites=4, rounds=4, private=True)
    publish(world, 1)
    site = world.sites[NAME]
    ledger = site.agent_folder / "privacy.jsonl"
    shutil.copy(ledger, tmp_path / "backup.jsonl")
    while len(charges(site)) < 3:
        world.everybody()
    world.everybody()
    if moment != "running":
        site.shut()
    shutil.copy(tmp_path / "backup.jsonl", ledger)
    if moment == "joined anew":
        mark = site.folder / "spool" / "to_trainer" / "ledger.json"
        key = site.identity.keys.signing.public_key().public_bytes_raw().hex()
        assert key in mark.read_text()
        mark.write_text(mark.read_text().replace(key, "00" * 32))
    world.step(NAME) if moment == "running" else site.boot()
    assert site.rounds.situation().state is SiteState.ATTENTION
    assert "its privacy ledger has 2 entries" in site.rounds.situation().refusal
    before = len(world.rounds())
    world.everybody()
    acknowledge(site.agent_folder)
    assert site.rounds.situation().state is not SiteState.ATTENTION
    assert before <= len(world.rounds())


def test_after_a_site_has_accepted_a_private_run_no_answer_depends_on_its_data(make_world: MakeWorld) -> None:
    world = make_world(sites=3, rounds=3, private=True)
    publish(world, 1)
    site = world.sites[NAME]
    for number in (2, 3):
        while not site.jobs():
            world.step(NAME)
            world.drive()
        (job,) = site.jobs()
        assert job.round == number
        update, delta = an_update(job, 1, PARAMETERS)
        assert delta is not None
        if number == 2:
            site.train(job, replace(update, outcome=Outcome.DECLINED, reason=StateReason.TOO_FEW_STUDIES), None)
        else:
            site.train(job, replace(update, studies=0), np.full_like(delta, np.nan))
        publish(world, number)
    assert [row.members for row in world.rounds()[:3]] == [3, 3, 3]
    assert declined(world, NAME) == set()


def test_too_few_studies_are_decided_once_a_run(make_world: MakeWorld) -> None:
    world = make_world(sites=4, rounds=2, private=True)
    site = world.sites[NAME]
    world.step(NAME)
    (job,) = site.jobs()
    update, delta = an_update(job, 1, PARAMETERS)
    site.train(job, replace(update, studies=0), delta)
    world.until(RunState.COMPLETED)
    assert [row.members for row in world.rounds()] == [3, 3, 3]
    assert declined(world, NAME) == {StateReason.TOO_FEW_STUDIES.number}
    assert charges(site) == []


@pytest.mark.parametrize(("private", "said"), [(True, 0), (False, 40)])
def test_a_private_round_says_nothing_of_its_progress_but_its_end(
    make_world: MakeWorld, private: bool, said: int
) -> None:
    world = make_world(sites=3, private=private)
    site = world.sites[NAME]
    world.step(NAME)
    (job,) = site.jobs()
    status = Status(world.clock.now, SiteState.TRAINING, (), job.run_id, job.round, 40)
    site.trainer.write_status(status)
    world.step(NAME)
    polls = [one.message for one in world.wire.heard if (one.site, one.call) == (NAME, "Rounds/Poll")]
    assert isinstance(polls[-1], rounds_pb2.PollRequest)
    assert polls[-1].progress_percent == said
    world.train(NAME)
    world.step(NAME)
    assert site.rounds.situation().progress_percent == 100


def test_the_words_of_a_private_round_say_nothing_of_studies_loss_or_clipping(make_world: MakeWorld) -> None:
    world = make_world(sites=3, private=True)
    publish(world, 1)
    for site in world.sites.values():
        (key,) = list(site.coins)[:1]
        words = plain_words(world, world.rounds()[0], site.name, key)
        assert words[:4].tolist() == [1, 0, 0, 0]
