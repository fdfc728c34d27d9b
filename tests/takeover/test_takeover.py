"""What an older version left on disk is taken over: `0.1.0` was written by that version's own code, never edited since.

It is a coordinator and three hospitals in the second round of a run of two, in the upload phase, one upload having
arrived; site-a also has kept payloads and the catalog of a small export. Keys and patients in it are made up.
"""

import json
import shutil
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from federation.manifest import load_model
from federation.v1.enrolment_pb2 import SignedRoster
from federation.wire import parse

from aggregator.context import open_context
from aggregator.custodian import sealed_key
from aggregator.migrations import upgrade
from aggregator.signing_requests import SignedRosterFile, read_file, write_file
from aggregator.sites.roster import import_roster, request_roster, roster_notices
from aggregator.states import RoundState, RunState
from aggregator.store import people
from site_client.agent.egress import verify
from site_client.agent.rounds.journal import RoundJournal
from site_client.agent.status_file import read_status
from site_client.config import FoldersSettings, SiteSettings
from site_client.ingest.catalog.catalog import open_catalog
from site_client.spool import AgentSide
from tests.custodian import Program
from tests.federation.nursery import Kind
from tests.federation.places import aggregator_settings
from tests.federation.world import World

BEFORE = Path(__file__).parent / "0.1.0"
SITES = ("site-a", "site-b", "site-c")
RUN = bytes(range(16))
STOOD_STILL_AT = datetime(2026, 11, 23, 9, 0, 24, tzinfo=UTC)
DATASET = "e084e28ab5c0b06d1c7fdbb387d297cb78bc27bc076e464a519226bf0271906c"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy with the modes that git does not keep. New sealed keys have the lowest cost, which each names."""
    monkeypatch.setattr(sealed_key, "COST_N", 2)
    shutil.copytree(BEFORE, tmp_path / "state")
    (tmp_path / "state" / "hub").rename(tmp_path / "state" / "aggregator")
    for path in (tmp_path / "state").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    context = open_context(aggregator_settings(tmp_path / "state" / "aggregator"))
    upgrade(context.store.engine)
    context.store.close()
    return tmp_path / "state"


def test_a_round_that_stood_still_in_the_upload_phase_starts_over_and_is_finished(state: Path) -> None:
    """Its masked words are of version 1 of secure aggregation; the updates behind them are still at the sites."""
    world = World(state, Kind(sites=3, rounds=2))
    world.clock.now = STOOD_STILL_AT
    assert (world.round.number, world.round.state, world.round.attempt) == (2, RoundState.TRAINING, 2)
    for _ in range(20):
        if world.run.state is not RunState.RUNNING:
            break
        world.everybody()
        world.clock.advance(2)
    rounds = [(row.number, row.state, row.members) for row in world.rounds()]
    newest = {site.rounds.model_files.newest for site in world.sites.values()}
    published = world.rounds()[-1].next_model
    assert not list(state.rglob("*-2/attempt-*/member.bin"))  # the secrets of version 1 are erased with their attempt
    assert [row.attempt for row in world.rounds()] == [1, 2, 1]
    world.end()
    assert rounds == [(number, RoundState.PUBLISHED, 3) for number in (1, 2, 3)]
    assert newest == {published}


def test_the_custodian_s_key_is_handed_over_in_one_command_and_no_site_joins_again(state: Path) -> None:
    custodian = Program(state / "custodian")
    secret = ("--passphrase-file", str(custodian.passphrase_file))
    told = custodian.succeeds("take-over", str(state / "aggregator"), *secret)
    assert "is destroyed" in told
    left = {path.name for path in (state / "aggregator" / "ca").iterdir()}
    assert left == {"ca.key", "ca.pem", "custodian.pem"}
    world = World(state, Kind(sites=3, rounds=2))
    world.clock.now = STOOD_STILL_AT
    app, authority = world.aggregator.app, world.aggregator.enrolment.authority
    request = state / "roster.request"
    with app.store.read() as session:
        write_file(request, request_roster(session))
    assert "nothing changes but the dates" in custodian.succeeds("review", str(request))
    signed = read_file(custodian.sign(request))
    assert isinstance(signed, SignedRosterFile)
    import_roster(app.store, authority, parse(SignedRoster, signed.signed), world.clock())
    for site in world.sites.values():
        before = site.identity.roster.epoch
        site.rounds.step()
        assert site.identity.roster.epoch == before + 1
        assert site.identity.roster.expires_at is not None
        assert site.rounds.known() == set(SITES)
    world.end()


def test_a_take_over_that_a_crash_interrupted_is_done_again_and_another_key_is_refused(state: Path) -> None:
    plain = state / "aggregator" / "ca" / "custodian.key"
    content, custodian = plain.read_bytes(), Program(state / "custodian")
    command = ("take-over", str(state / "aggregator"), "--passphrase-file", str(custodian.passphrase_file))
    custodian.succeeds(*command)
    assert "no custodian's key to hand over" in custodian.refused(*command)
    plain.write_bytes(content)  # as if the power had failed before it was destroyed
    custodian.succeeds(*command)
    assert not plain.exists()
    plain.write_bytes(content)
    other = Program.begin(state / "other")
    assert "already holds another custodian" in other.refused(*command)
    plain.write_bytes((state / "aggregator" / "ca" / "ca.key").read_bytes())
    assert "not the key that custodian.pem certifies" in Program(state / "third").refused(*command)
    assert plain.exists()


def test_until_the_hand_over_the_aggregator_runs_and_asks_for_it(state: Path) -> None:
    context = open_context(aggregator_settings(state / "aggregator"))
    with closing(context.store), context.store.read() as session:
        [notice] = roster_notices(session, state / "aggregator", STOOD_STILL_AT)
    assert "hand it over with `hemofed-custodian take-over`" in notice


def test_the_rows_say_what_they_said(state: Path) -> None:
    context = open_context(aggregator_settings(state / "aggregator"))
    with closing(context.store), context.store.read() as session:
        trail = people.audit_trail(session, limit=1000)
        assert people.password_fits(session, "anna", "a password of before")
    assert len(trail) == 57
    assert trail[-1].after == "invited"


@pytest.mark.parametrize("site", SITES)
def test_a_site_s_ledger_journal_models_and_spool_are_read(state: Path, site: str) -> None:
    agent = state / site / "state" / "agent"
    entries = len((agent / "ledger.jsonl").read_text().splitlines())
    assert verify.verify(agent / "ledger.jsonl").entries == entries > 25
    current = RoundJournal(agent / "rounds").current
    assert current is not None
    assert (current.run_id, current.number, current.attempt) == (RUN, 2, 1)
    history = json.loads((agent / "models" / "history.json").read_bytes())
    assert [load_model(agent / "models" / f"{digest}.safetensors").digest.hex() for digest in history] == history
    spool = AgentSide(state / site / "spool")
    (job,) = spool.jobs()
    update = spool.update(job.run_id, job.round)
    assert update is not None
    assert spool.delta(update, 60).shape == (60,)


def test_kept_payloads_and_the_status_file_are_read(state: Path) -> None:
    agent = state / "site-a" / "state" / "agent"
    assert verify.check_payloads(agent / "ledger.jsonl", agent / "payloads") == 30
    status = read_status(agent)
    assert status is not None
    assert (status.state, status.round, status.ledger_entries) == ("SITE_MASKING", 2, 30)


def test_the_catalog_still_has_the_dataset_of_the_round_in_hand(state: Path) -> None:
    folders = FoldersSettings(state / "site-a" / "state", state / "site-a" / "spool", state / "export")
    with closing(open_catalog(SiteSettings("site-a", folders=folders))) as catalog:
        assert len(catalog.dataset(DATASET).studies) == 2
