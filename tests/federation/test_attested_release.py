"""Runs at the release level "cvm": real rounds on attested machines, and a root who would have a model without one."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from federation.errors import SealRefused
from federation.hpke import SealingKey
from federation.release import report_data
from federation.sealed_model import model_name
from federation.sealing import unwrap_content_key
from federation.v1 import rounds_pb2
from federation.v1.rounds_pb2 import SnpEvidence
from federation.vocabulary import EvidenceRefusal, SiteState, StateReason
from sqlalchemy import select

from aggregator.runs.key_release import release_key
from aggregator.states import RoundState, RunState
from aggregator.store.tables import Audit
from site_client.agent.egress.calls import RELEASE_KEY
from site_client.agent.rounds.released_keys import ATTESTED_FOR
from site_client.errors import Refused
from site_client.files import is_in_memory
from tests.federation.conftest import IN_MEMORY
from tests.federation.invariants import check
from tests.federation.world import World
from tests.snp_chip import Chip, release

Make = Callable[..., World]
NAME, OTHER = "site-a", "site-b"


@pytest.fixture
def attested(make_world: Make) -> Make:
    """A run whose every site is on a machine that the plan names."""

    def make(**kind: Any) -> World:
        if not os.access(IN_MEMORY, os.W_OK):
            pytest.skip("this machine has no folder in memory, where such a site's spool lies")
        world = make_world(**({"sites": 3, "release": release()} | kind))
        for site in world.sites.values():
            site.attest = Chip()
            site.boot()
        return world

    return make


def asked(world: World, name: str = NAME) -> list[rounds_pb2.ReleaseRequest]:
    """The requests of a site for keys, as they were heard."""
    heard = [one.message for one in world.wire.heard if (one.site, one.call) == (name, RELEASE_KEY.name)]
    return [message for message in heard if isinstance(message, rounds_pb2.ReleaseRequest)]


def audit(world: World) -> list[str]:
    with world.aggregator.app.store.read() as session:
        return [row.why for row in session.scalars(select(Audit)) if row.after == "evidence judged"]


def send(world: World, name: str, **fields: Any) -> rounds_pb2.ReleaseReply:
    plan = world.plan
    given = {"plan_digest": plan.digest, "model_digest": plan.initial_model_digest} | fields
    return world.sites[name].egress.send(RELEASE_KEY, rounds_pb2.ReleaseRequest(**given))


def evidence_of(world: World, nonce: bytes, receiver: SealingKey, name: str = NAME, chip: Chip | None = None) -> Any:
    model = model_name(world.plan.digest, world.plan.initial_model_digest)
    return (chip or Chip())(report_data(nonce, receiver.public_bytes, name, model))


def test_attested_machines_carry_out_a_run_and_show_evidence_for_each_model(attested: Make) -> None:
    world = attested(rounds=2)
    while world.run.state is RunState.RUNNING:
        world.everybody()
        check(world)
    world.everybody()
    assert {site.rounds.model_files.newest for site in world.sites.values()} == {world.round.next_model}
    assert world.refused == []
    with_evidence = [request for request in asked(world) if request.HasField("snp")]
    assert {request.model_digest for request in with_evidence} == {model.digest for model in world.models()}
    assert len({request.receiver_key for request in with_evidence}) == len(with_evidence) == 3
    assert len([why for why in audit(world) if why.endswith(" released")]) == 9


# A hospital's root, who copies the whole disk of an attested machine and would open it elsewhere.


def test_nothing_on_the_disk_of_an_attested_site_opens_its_models(attested: Make) -> None:
    """No wrapped key is kept, and those that were heard on the wire are for keys that no disk has ever held."""
    world = attested(rounds=1)
    world.until(RunState.COMPLETED)
    world.everybody()
    site, plan = world.sites[NAME], world.plan
    assert {path.name for path in site.folder.rglob("*.key*")} <= {"signing.key", "sealing.key", "joining.key"}
    content_keys = [world.aggregator.app.content_keys.of(plan.digest, model.digest) for model in world.models()]
    for path in (path for path in site.folder.rglob("*") if path.is_file()):
        assert not any(key in path.read_bytes() for key in content_keys), path
    stolen = site.identity.keys.sealing
    nonce = send(world, NAME).nonce
    receiver = SealingKey.generate()
    reply = send(
        world,
        NAME,
        nonce=nonce,
        receiver_key=receiver.public_bytes,
        snp=evidence_of(world, nonce, receiver),
    )
    name = model_name(plan.digest, plan.initial_model_digest)
    assert unwrap_content_key(reply.wrapped_key, NAME.encode(), receiver, name) == content_keys[0]
    with pytest.raises(SealRefused):
        unwrap_content_key(reply.wrapped_key, NAME.encode(), stolen, name)


def test_a_machine_that_is_none_of_the_plan_s_gets_no_model_and_says_why(attested: Make) -> None:
    world = attested(rounds=1)
    site = world.sites[NAME]
    site.attest = Chip(measurement=bytes(48))
    site.boot()
    for _ in range(3):
        world.step(NAME)
    situation = site.rounds.situation()
    assert (situation.state, situation.reasons) == (SiteState.ATTENTION, (StateReason.ATTESTATION,))
    assert "MEASUREMENT" in situation.refusal
    assert site.jobs() == []
    assert not list((site.agent_folder / "models").glob("*.sealed"))
    assert audit(world) == [f"key of model {world.plan.initial_model_digest.hex()[:16]} refused: MEASUREMENT"]
    site.attest = Chip()
    site.boot()
    world.step(NAME)
    assert site.rounds.situation().reasons != (StateReason.ATTESTATION,)
    assert len(site.jobs()) == 1


def test_a_refusal_is_no_trouble_of_the_site_any_more_when_its_run_is_over(attested: Make) -> None:
    world = attested(rounds=1)
    site = world.sites[NAME]
    site.attest = Chip(vmpl=2)
    site.boot()
    world.step(NAME)
    assert "VMPL" in site.rounds.situation().refusal
    world.abort()
    world.step(NAME)
    assert site.rounds.situation().reasons != (StateReason.ATTESTATION,)


def test_an_attested_site_whose_spool_is_on_a_disk_lends_no_key(attested: Make, tmp_path: Path) -> None:
    """Whoever writes that disk from outside of the machine would put his own key in the place of the trainer's."""
    if is_in_memory(tmp_path):
        pytest.skip("this machine has its temporary files in memory")
    world = attested(rounds=1)
    site = world.sites[NAME]
    spool = site.settings.folders.spool
    shutil.move(spool, tmp_path / "spool")
    spool.symlink_to(tmp_path / "spool")
    site.boot()
    world.step(NAME)
    assert not list((tmp_path / "spool").rglob("key-*"))
    assert site.jobs() == []
    assert site.rounds.situation().reasons == (StateReason.ATTESTATION,)
    assert "tmpfs" in site.rounds.situation().refusal


def test_a_machine_without_a_secure_processor_says_so_and_asks_for_no_key(attested: Make) -> None:
    """This test's own machine: the real device is asked, and is not there."""
    world = attested(rounds=1)
    site = world.sites[NAME]
    site.attest = None
    site.boot()
    world.step(NAME)
    assert "AMD SEV-SNP" in site.rounds.situation().refusal
    assert not any(request.HasField("snp") for request in asked(world))


def test_a_site_refused_in_the_middle_of_a_run_cannot_compute_the_next_model_from_the_sum(attested: Make) -> None:
    world = attested(rounds=2)
    site = world.sites[NAME]
    world.until(RoundState.REVEAL)
    assert isinstance(site.attest, Chip)
    site.attest.measurement = bytes(48)  # its image has changed
    world.everybody()
    assert len(world.models()) == 2
    for _ in range(3):
        world.step(NAME)
    assert site.rounds.model_files.newest == world.plan.initial_model_digest
    assert site.rounds.situation().reasons == (StateReason.ATTESTATION,)


def test_evidence_is_shown_again_after_a_day_and_after_a_restart(attested: Make) -> None:
    world = attested(rounds=1)
    site = world.sites[NAME]
    world.step(NAME)
    assert len(asked(world)) == 2
    world.clock.advance((ATTESTED_FOR - timedelta(seconds=1)).total_seconds())
    site.rounds.content_keys.of(world.plan, world.plan.initial_model_digest)
    assert len(asked(world)) == 2
    world.clock.advance(1)
    site.rounds.content_keys.of(world.plan, world.plan.initial_model_digest)
    assert len(asked(world)) == 4
    site.boot()
    site.rounds.content_keys.of(world.plan, world.plan.initial_model_digest)
    assert len(asked(world)) == 6


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        pytest.param(lambda world, nonce: {"nonce": b"\x00" * 32}, EvidenceRefusal.STALE, id="a nonce of his own"),
        pytest.param(lambda world, nonce: {"nonce": b""}, EvidenceRefusal.STALE, id="no nonce"),
        pytest.param(lambda world, nonce: {"nonce": send(world, OTHER).nonce}, EvidenceRefusal.STALE, id="another's"),
        pytest.param(
            lambda world, nonce: {"receiver_key": SealingKey.generate().public_bytes},
            EvidenceRefusal.BINDING,
            id="a key of his own under the machine's evidence",
        ),
        pytest.param(
            lambda world, nonce: {"nonce": send(world, NAME).nonce}, EvidenceRefusal.BINDING, id="a later nonce"
        ),
        pytest.param(lambda world, nonce: {"snp": SnpEvidence()}, EvidenceRefusal.FORM, id="no evidence"),
    ],
)
def test_forged_evidence_is_refused_by_reason(
    attested: Make, forge: Callable[[World, bytes], dict[str, Any]], reason: EvidenceRefusal
) -> None:
    world, receiver = attested(rounds=1), SealingKey.generate()
    nonce = send(world, NAME).nonce
    world.clock.advance(1)
    fields = {"nonce": nonce, "receiver_key": receiver.public_bytes, "snp": evidence_of(world, nonce, receiver)}
    assert send(world, NAME, **fields).wrapped_key
    reply = send(world, NAME, **(fields | forge(world, nonce)))
    assert (reply.refusal, reply.wrapped_key) == (reason.number, b"")


def test_evidence_of_one_site_or_model_serves_no_other(attested: Make) -> None:
    world, receiver = attested(rounds=1), SealingKey.generate()
    world.until(RunState.COMPLETED)
    nonce = send(world, NAME).nonce
    fields = {"nonce": nonce, "receiver_key": receiver.public_bytes, "snp": evidence_of(world, nonce, receiver)}
    assert send(world, NAME, **fields).wrapped_key
    another = send(world, NAME, model_digest=world.models()[-1].digest, **fields)
    assert another.refusal == EvidenceRefusal.BINDING.number
    elsewhere = send(world, OTHER, **fields)
    assert elsewhere.refusal == EvidenceRefusal.STALE.number


def test_evidence_that_was_recorded_is_worth_nothing_after_five_minutes(attested: Make) -> None:
    world, receiver = attested(rounds=1), SealingKey.generate()
    nonce = send(world, NAME).nonce
    fields = {"nonce": nonce, "receiver_key": receiver.public_bytes, "snp": evidence_of(world, nonce, receiver)}
    first = send(world, NAME, **fields)
    world.clock.advance(299)
    again = send(world, NAME, **fields)
    name = model_name(world.plan.digest, world.plan.initial_model_digest)
    keys = {unwrap_content_key(reply.wrapped_key, NAME.encode(), receiver, name) for reply in (first, again)}
    assert len(keys) == 1
    world.clock.advance(1)
    assert send(world, NAME, **fields).refusal == EvidenceRefusal.STALE.number


def test_a_request_without_evidence_never_gets_a_key_of_an_attested_run(attested: Make) -> None:
    world = attested(rounds=1)
    reply = send(world, NAME, receiver_key=SealingKey.generate().public_bytes)
    assert (reply.wrapped_key, len(reply.nonce)) == (b"", 32)


def test_a_repeated_refusal_adds_one_row_to_the_audit(attested: Make) -> None:
    world, receiver = attested(rounds=1), SealingKey.generate()
    for _ in range(5):
        send(world, NAME, nonce=b"\x00" * 32, receiver_key=receiver.public_bytes, snp=SnpEvidence(report=b"x"))
    assert len(audit(world)) == 1


def test_an_external_verifier_has_the_last_word(attested: Make) -> None:
    """It stands behind the interface of ours; here it accepts a machine that ours refuses."""
    world, receiver = attested(rounds=1), SealingKey.generate()
    seen: list[bytes] = []
    app = replace(world.aggregator.app, verify_evidence=lambda evidence, release, bound_to, now: seen.append(bound_to))
    nonce = send(world, NAME).nonce
    request = rounds_pb2.ReleaseRequest(
        plan_digest=world.plan.digest,
        model_digest=world.plan.initial_model_digest,
        nonce=nonce,
        receiver_key=receiver.public_bytes,
        snp=evidence_of(world, nonce, receiver, chip=Chip(measurement=bytes(48))),
    )
    assert release_key(world.aggregator.app, NAME, request)[0].refusal == EvidenceRefusal.MEASUREMENT.number
    assert release_key(app, NAME, request)[0].wrapped_key
    assert len(seen) == 1


def test_a_receiver_key_that_is_none_is_refused_in_a_sentence(attested: Make) -> None:
    world = attested(rounds=1)
    nonce, junk = send(world, NAME).nonce, b"\xff" * 1216
    name = model_name(world.plan.digest, world.plan.initial_model_digest)
    snp = Chip()(report_data(nonce, junk, NAME, name))
    with pytest.raises(Refused, match="X-Wing public key"):
        send(world, NAME, nonce=nonce, receiver_key=junk, snp=snp)
