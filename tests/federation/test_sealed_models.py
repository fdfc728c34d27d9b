"""A run whose models are sealed: the real rounds, and those who would have a model without its key."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from federation.encoding import Layout
from federation.errors import SealRefused
from federation.hpke import SealingKey
from federation.release import Release
from federation.sealed_model import load_sealed_model, model_name
from federation.sealing import SealedKind, SealedName, unseal, unwrap_content_key
from federation.v1 import rounds_pb2
from federation.vocabulary import SiteState
from google.protobuf.message import Message

from aggregator.context import open_context
from aggregator.errors import NotFound, StateFolderRefused
from aggregator.runs import run_blobs
from aggregator.states import RoundState, RunState
from aggregator.store.backup import back_up, restore
from site_client.agent.egress.calls import RELEASE_KEY
from site_client.errors import Refused, StepRefused
from tests.federation.invariants import check
from tests.federation.nursery import PARAMETERS
from tests.federation.places import aggregator_settings
from tests.federation.world import World

Make = Callable[..., World]
NAME = "site-a"


@pytest.fixture
def sealed(make_world: Make) -> Make:
    """A run with the release level "none"."""
    return lambda **kind: make_world(**({"sites": 3, "release": Release()} | kind))


def files_of(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield path, path.read_bytes()


def weights_of(world: World) -> dict[bytes, bytes]:
    """Sixteen bytes out of the middle of each model's numbers, by its digest."""
    return {model.digest: world.model(model.blob).weights.tobytes()[80:96] for model in world.models()}


def test_a_sealed_run_ends_with_the_very_models_of_one_in_the_clear(sealed: Make) -> None:
    world = sealed(rounds=2)
    while world.run.state is RunState.RUNNING:
        world.everybody()
        check(world)
    world.everybody()
    assert world.run.state is RunState.COMPLETED
    assert {site.rounds.model_files.newest for site in world.sites.values()} == {world.round.next_model}
    assert world.refused == []
    assert world.wire.refusals == []
    # The masks and the training are seeded by name and round; the seal changes no number.
    assert len(world.models()) == 3


def test_no_file_of_a_site_or_the_aggregator_and_no_message_holds_numbers_of_a_model(sealed: Make) -> None:
    """Searched at every step. The file that the run was started from is a person's, and is taken away first."""
    world = sealed(rounds=2)
    (world.folder / "aggregator" / "initial.safetensors").unlink()
    seen = 0
    while world.run.state is RunState.RUNNING:
        world.everybody()
        needles = weights_of(world)
        (world.folder / "looked-at.safetensors").unlink()
        for path, data in files_of(world.folder):
            seen += 1
            assert not any(needle in data for needle in needles.values()), path
        assert not list(world.folder.rglob("*.safetensors"))
        assert not list(world.folder.rglob("delta.f32"))
    assert seen > 100


def test_the_file_at_every_site_is_the_aggregator_s_byte_for_byte(sealed: Make) -> None:
    """One ciphertext for all: only the key is made for each site."""
    world = sealed(rounds=1)
    world.until(RunState.COMPLETED)
    world.everybody()
    newest = world.models()[-1]
    with world.aggregator.app.blobs.open(newest.blob) as blob:
        expected = blob.read()
    assert len(expected) == newest.size_bytes
    for site in world.sites.values():
        assert site.rounds.model_files.path(world.plan, newest.digest).read_bytes() == expected


@pytest.mark.slow
def test_a_site_asks_for_each_key_once_and_a_restart_asks_for_none(sealed: Make) -> None:
    world = sealed(rounds=2)
    while world.run.state is RunState.RUNNING:
        world.everybody()
        world.sites[NAME].boot()
    world.everybody()
    asked = [heard for heard in world.wire.heard if (heard.site, heard.call) == (NAME, RELEASE_KEY.name)]
    assert len(asked) == len({heard.data for heard in asked}) == len(world.models())


def test_a_trainer_that_is_started_anew_gets_the_key_for_its_new_key_at_the_next_turn(sealed: Make) -> None:
    world = sealed(rounds=1)
    site = world.sites[NAME]
    world.step(NAME)
    (job,) = site.jobs()
    before = site.content_key(job)
    site.trainer_key = SealingKey.generate()
    site.trainer.publish_key(site.trainer_key.public_bytes)
    assert site.jobs() == []
    assert site.rounds.has_news()
    world.step(NAME)
    assert site.content_key(job) == before
    assert len(list(job.folder.glob("key-*"))) == 1


def test_a_job_that_lies_in_the_spool_opens_with_nothing_that_lies_in_the_spool(sealed: Make) -> None:
    world = sealed(rounds=1)
    world.step(NAME)
    (job,) = world.sites[NAME].jobs()
    (wrapped,) = job.folder.glob("key-*")
    stolen = SealingKey.from_bytes((world.sites[NAME].agent_folder / "identity" / "sealing.key").read_bytes())
    for receiver in (b"the trainer of this site", NAME.encode()):
        with pytest.raises(SealRefused):
            unwrap_content_key(wrapped.read_bytes(), receiver, stolen, job.sealed_name)


# A thief of the aggregator's database and blobs.


def test_the_database_and_the_blobs_together_give_no_model(sealed: Make) -> None:
    """The secret of all content keys lies beside the CA's key, in neither of them."""
    world = sealed(rounds=1)
    world.until(RunState.COMPLETED)
    folder, app = world.folder / "aggregator", world.aggregator.app
    secret = (folder / "ca" / "content.key").read_bytes()
    needles = {secret, *(app.content_keys.of(world.plan.digest, model.digest) for model in world.models())}
    stolen = [*folder.glob("hub.sqlite*"), *(path for path in (folder / "blobs").rglob("*") if path.is_file())]
    for path in stolen:
        data = path.read_bytes()
        assert not any(needle in data or needle.hex().encode() in data for needle in needles), path
    assert (folder / "ca" / "content.key").stat().st_mode & 0o077 == 0


def test_uploads_that_a_thief_could_unmask_are_gone_when_the_sum_is_published(sealed: Make) -> None:
    """With them, and the shares in the database, he has the sum; with it and the base model the next one."""
    world = sealed(rounds=1)
    world.until(RunState.COMPLETED)
    uploads = world.folder / "aggregator" / "uploads"
    assert not [path for path in uploads.rglob("*") if path.is_file()]


def test_a_restored_backup_opens_its_models(sealed: Make, tmp_path: Path) -> None:
    world = sealed(rounds=1)
    world.until(RunState.COMPLETED)
    back_up(world.aggregator.app.settings, tmp_path / "backup")
    settings = aggregator_settings(tmp_path / "restored")
    restore(settings, tmp_path / "backup")
    app, version = open_context(settings), world.models()[-1]
    assert run_blobs.load_stored(app, world.plan, version).digest == version.digest
    app.store.close()


def test_without_its_secret_the_aggregator_says_what_to_restore_and_draws_no_other(sealed: Make) -> None:
    world = sealed(rounds=1)
    key = world.folder / "aggregator" / "ca" / "content.key"
    kept = key.read_bytes()
    key.unlink()
    world.aggregator.boot()
    with pytest.raises(StateFolderRefused, match="restore it from a backup"):
        run_blobs.load_stored(world.aggregator.app, world.plan, world.models()[0])
    assert not key.exists()
    world.aggregator.app.content_keys.make()
    assert key.read_bytes() != kept
    before = key.read_bytes()
    world.aggregator.app.content_keys.make()
    assert key.read_bytes() == before


# A site that wants a key that is not its own, and one that is no site of the run.


def released(world: World, name: str, **fields: bytes) -> bytes:
    plan_digest = fields.get("plan_digest", world.plan.digest)
    request = rounds_pb2.ReleaseRequest(plan_digest=plan_digest, model_digest=fields.get("model_digest", b""))
    return world.sites[name].egress.send(RELEASE_KEY, request).wrapped_key


def test_a_key_that_was_released_to_one_site_opens_at_no_other(sealed: Make) -> None:
    world = sealed(rounds=1)
    digest = world.plan.initial_model_digest
    wrapped, name = released(world, NAME, model_digest=digest), model_name(world.plan.digest, digest)
    own, other = (world.sites[site].identity.keys.sealing for site in (NAME, "site-b"))
    assert unwrap_content_key(wrapped, NAME.encode(), own, name)
    for site, key in ((NAME, other), ("site-b", own), ("site-b", other)):
        with pytest.raises(SealRefused):
            unwrap_content_key(wrapped, site.encode(), key, name)


def test_no_key_of_a_model_that_is_not_published_and_none_of_another_plan_is_released(sealed: Make) -> None:
    world = sealed(rounds=1)
    initial = world.plan.initial_model_digest
    for fields in ({"model_digest": b"\x07" * 32}, {"model_digest": initial, "plan_digest": b"\x07" * 32}, {}):
        with pytest.raises(Refused, match="no model of that digest in a run of this site"):
            released(world, NAME, **fields)


def test_a_run_in_the_clear_releases_no_key(make_world: Make) -> None:
    world = make_world(sites=3)
    with pytest.raises(Refused, match="not sealed"):
        released(world, NAME, model_digest=world.plan.initial_model_digest)
    assert not (world.folder / "aggregator" / "ca" / "content.key").exists()


def test_a_revoked_site_gets_no_further_key(sealed: Make) -> None:
    world = sealed(rounds=1)
    world.aggregator.enrolment.revoke(NAME)
    with pytest.raises(Refused, match="revoked"):
        released(world, NAME, model_digest=world.plan.initial_model_digest)


# A man who exchanges frames, files and keys on the aggregator's disk, on the way, and at the site.


def stored(world: World, blob: bytes) -> Path:
    (path,) = (path for path in (world.folder / "aggregator" / "blobs").rglob(blob.hex()) if path.is_file())
    return path


def test_a_sum_in_the_place_of_a_model_opens_nowhere(sealed: Make) -> None:
    world = sealed(rounds=1)
    world.until(RunState.COMPLETED)
    row, model = world.rounds()[0], world.models()[-1]
    key = world.aggregator.app.content_keys.of(world.plan.digest, model.digest)
    with stored(world, row.sum_blob or b"").open("rb") as file, pytest.raises(SealRefused):
        load_sealed_model(key, model_name(world.plan.digest, model.digest), world.plan.manifest, file)
    assert len(world.published_sum(row)) == Layout.of_round(world.plan, 1).sum_bytes_for(row.members or 0)


def test_a_base_model_exchanged_for_another_sealed_one_abandons_the_round(sealed: Make) -> None:
    world = sealed(rounds=2)
    while len(world.rounds()) < 2:
        world.everybody()
    world.until(RoundState.REVEAL)
    first, second = world.models()
    path = stored(world, second.blob)
    path.chmod(0o600)
    path.write_bytes(stored(world, first.blob).read_bytes())
    world.aggregator.boot()  # its memory holds the true one
    for name in world.sites:
        world.step(name)
    world.drive()
    assert world.rounds()[1].state is RoundState.ABANDONED
    assert "restore the state folder" in (world.rounds()[1].reason or "")


def test_a_sealed_file_that_was_changed_at_a_site_is_fetched_again(sealed: Make) -> None:
    world = sealed(rounds=1)
    site = world.sites[NAME]
    world.step(NAME)
    path = site.rounds.model_files.path(world.plan, world.plan.initial_model_digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    site.boot()
    (job,) = site.trainer.jobs()
    for file in job.folder.iterdir():
        file.unlink()
    job.folder.rmdir()
    world.step(NAME)
    assert site.rounds.situation().state is SiteState.ATTENTION
    world.step(NAME)
    assert world.kept_model(site, world.plan.initial_model_digest).weights.size == PARAMETERS
    (job,) = site.jobs()


def test_an_update_of_another_round_s_base_model_does_not_open(sealed: Make) -> None:
    world = sealed(rounds=1)
    world.step(NAME)
    world.train(NAME)
    (path,) = (world.sites[NAME].folder / "spool").rglob("delta.sealed")
    key = world.aggregator.app.content_keys.of(world.plan.digest, world.plan.initial_model_digest)
    name = SealedName(SealedKind.UPDATE, world.plan.digest, world.plan.initial_model_digest)
    with path.open("rb") as file:
        assert len(b"".join(unseal(key, name, file, 4 * PARAMETERS))) == 4 * PARAMETERS
    with path.open("rb") as file, pytest.raises(SealRefused):
        b"".join(unseal(key, replace(name, model_digest=bytes(32)), file, 4 * PARAMETERS))


def test_an_answer_that_is_no_key_for_this_site_is_refused_and_not_kept(sealed: Make) -> None:
    world = sealed(rounds=1)
    site = world.sites[NAME]

    def lie(name: str, call: str, reply: Message, request: Message) -> Message:
        return rounds_pb2.ReleaseReply(wrapped_key=b"\x00" * 1168) if call == RELEASE_KEY.name else reply

    world.wire.lies_down.append(lie)
    world.step(NAME)
    assert any(isinstance(error, StepRefused) and "it is asked again" in str(error) for _, error in world.refused)
    assert not list((site.agent_folder / "models").glob("*.key"))
    assert site.trainer.jobs() == []


@pytest.mark.parametrize("kind", ["garbage", "folder", "pipe", "link"])
def test_a_hostile_trainer_s_key_stops_no_poll_and_gets_nothing(sealed: Make, kind: str) -> None:
    world = sealed(rounds=1)
    site, path = world.sites[NAME], world.sites[NAME].settings.folders.spool / "to_agent" / "sealing.pub"
    path.unlink()
    if kind == "garbage":
        path.write_bytes(b"\xff" * 1216)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(site.agent_folder / "identity" / "sealing.key")
    for _ in range(2):
        polled = len(world.wire.heard)
        world.step(NAME)
        assert len(world.wire.heard) > polled
    assert not list(site.settings.folders.spool.rglob("key-*"))
    assert any("sealing.pub" in str(error) for name, error in world.refused if name == NAME)


@pytest.mark.slow
def test_a_site_that_was_away_takes_the_sealed_model_whole(sealed: Make) -> None:
    world = sealed(sites=4, rounds=2)
    world.silent = {"site-d"}
    while len(world.rounds()) < 3:
        world.everybody()
        world.clock.advance(31)
    world.silent = set()
    world.until(RunState.COMPLETED)
    world.everybody()
    assert world.sites["site-d"].rounds.model_files.newest == world.models()[-1].digest
    check(world)


@pytest.mark.slow
def test_a_gated_and_sealed_run_keeps_every_invariant(sealed: Make) -> None:
    world = sealed(rounds=2, gated=True)
    world.until(RunState.COMPLETED)
    world.everybody()
    check(world)
    assert world.wire.refusals == []


@pytest.mark.slow
def test_a_private_and_sealed_run_keeps_every_invariant(sealed: Make) -> None:
    world = sealed(rounds=1, private=True)
    world.until(RunState.COMPLETED)
    check(world)


def test_a_blob_of_a_sealed_model_is_none_to_who_has_only_its_digest(sealed: Make) -> None:
    world = sealed(rounds=1)
    with pytest.raises(NotFound):
        run_blobs.load_stored(world.aggregator.app, replace(world.plan, name="another"), world.models()[0])
