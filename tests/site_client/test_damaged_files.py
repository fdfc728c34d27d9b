"""A damaged small file of a site raises one of our errors, which names the file and a remedy."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from federation.hpke import SEALING_KEY_BYTES
from federation.plan import TrainingPlan, sign_plan
from federation.roster import SIGNING_KEY_BYTES, Roster, RosterEntry
from federation.vocabulary import SiteState

from site_client.agent.identity.known_sites import KnownSites
from site_client.agent.rounds.journal import CurrentRound, RoundJournal
from site_client.agent.rounds.lineage import Lineage
from site_client.agent.rounds.model_files import ModelFiles
from site_client.agent.rounds.plans import PlanDecision, Plans
from site_client.agent.rounds.released_keys import ReleasedKeys
from site_client.agent.rounds.revealed_sums import KEPT, RevealedSums
from site_client.agent.rounds.rollback import Rollback, Witness, acknowledge, read_rollback
from site_client.agent.status_file import AgentStatus, read_status, write_status
from site_client.config import FoldersSettings, PolicySettings, SiteSettings
from site_client.errors import SiteError, StateRefused, StateUnreadable, StepRefused
from site_client.records import RoundNumber, RunHex, RunId
from site_client.status import gather
from site_client.trainer.idle import operator
from site_client.trainer.idle.decide import Mode
from site_client.trainer.idle.readings import OperatorPause
from site_client.trainer.idle.watch import GateRecord, read_record, write_record
from site_client.typed_json import Digest, encode_state, read_state
from tests.site_client.agent.conftest import Consortium
from tests.site_client.agent.conftest import plan as plan  # a fixture

NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)
GARBAGE = [b"", b"{", b"[]", b"{}", b"null", b'{"x": 1}', b'["zz"]', b'{"decision": "DOE^JANE"}', b"\xff", b"[" * 5000]
Reader = Callable[[], object]


def a_journal(folder: Path, name: str) -> tuple[Path, Reader]:
    journal = RoundJournal(folder / "rounds")
    digest = Digest(bytes(32))
    journal.begin(CurrentRound(RunId(bytes(16)), 1, digest, digest, evaluation_only=False))
    journal.close()
    journal.begin(CurrentRound(RunId(bytes(16)), 2, digest, digest, evaluation_only=False))
    return next((folder / "rounds").rglob(name)), lambda: RoundJournal(folder / "rounds").current


def a_history(folder: Path) -> tuple[Path, Reader]:
    # No content key is asked for: no model is sealed.
    models = ModelFiles(folder / "models", cast(ReleasedKeys, None))
    (folder / "models" / "history.json").write_text(f'["{"ab" * 32}"]')
    assert models.newest == b"\xab" * 32
    return folder / "models" / "history.json", lambda: models.newest


def a_decision(folder: Path, plan: TrainingPlan) -> tuple[Path, Reader]:
    consortium, plans = Consortium(), Plans(folder / "plans")
    plans.keep(sign_plan(plan, consortium.custodian), plan.digest, consortium.custodian.public_key())
    plans.decide(plan.digest, approved=True)
    return folder / "plans" / f"{plan.digest.hex()}.decision", lambda: plans.get(plan.digest)


def a_status(folder: Path) -> tuple[Path, Reader]:
    write_status(folder, AgentStatus(NOW, SiteState.IDLE, (), None, None, None, 1, NOW, None, "", 0))
    return folder / "status.json", lambda: read_status(folder)


def a_gate(folder: Path) -> tuple[Path, Reader]:
    write_record(folder, GateRecord(NOW, Mode.HOLD, ("busy",), ()))
    assert read_record(folder) == GateRecord(NOW, Mode.HOLD, ("busy",), ())
    return folder / "gate.json", lambda: read_record(folder)


def sums(folder: Path, name: str) -> tuple[Path, Reader]:
    """Three sums more than are kept: the models of the first three are left for good."""
    revealed = RevealedSums(folder)
    for number in range(1, KEPT + 4):
        digest = Digest(bytes([number]) * 32)
        revealed.record(CurrentRound(RunId(bytes(16)), number, digest, digest, evaluation_only=False), ("a", "b"))
    base = Digest(b"\xff" * 32)
    return folder / name, lambda: revealed.check_offer(base)


def a_lineage(folder: Path, plan: TrainingPlan) -> tuple[Path, Reader]:
    lineage = Lineage(folder)
    lineage.record(plan, 1, b"\x01" * 32)
    lineage.record(plan, 2, b"\x02" * 32)
    return folder / "lineage.json", lambda: lineage.holds(plan, b"\x02" * 32)


def a_rollback(folder: Path) -> tuple[Path, Reader]:
    (folder / "rolled_back.json").write_bytes(encode_state(Rollback(NOW, Witness.SPOOL, 9, 3)))
    acknowledge(folder)
    return folder / "rolled_back.json", lambda: read_rollback(folder)


def an_approval(folder: Path) -> tuple[Path, Reader]:
    keys = {"mercy": b"\x01", "st-anne": b"\x02"}
    entries = [RosterEntry(site, key * SIGNING_KEY_BYTES, key * SEALING_KEY_BYTES) for site, key in keys.items()]
    roster, known = Roster(1, tuple(entries)), KnownSites(folder)
    known.approve(entries[:1])
    return folder / "approved.json", lambda: known.known(roster, PolicySettings(), NOW)


def state_files(folder: Path, plan: TrainingPlan) -> dict[str, Callable[[], tuple[Path, Reader]]]:
    return {
        "closed.json": lambda: a_journal(folder, "closed.json"),
        "decision": lambda: a_decision(folder, plan),
        "sums.json": lambda: sums(folder, "sums.json"),
        "left_bases.bin": lambda: sums(folder, "left_bases.bin"),
        "lineage.json": lambda: a_lineage(folder, plan),
        "rolled_back.json": lambda: a_rollback(folder),
        "approved.json": lambda: an_approval(folder),
    }


STATE_FILES = (
    *("closed.json", "decision", "sums.json", "left_bases.bin", "lineage.json", "rolled_back.json", "approved.json"),
)


@pytest.mark.parametrize("file", STATE_FILES)
def test_one_wrong_bit_anywhere_in_a_state_file_is_noticed(tmp_path: Path, plan: TrainingPlan, file: str) -> None:
    path, read = state_files(tmp_path, plan)[file]()
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 300)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(StateRefused, match=f"{path.name} in the state folder is damaged .*; "):
            read()
    path.write_bytes(whole)
    read()


@pytest.mark.parametrize("file", STATE_FILES)
def test_a_state_file_cut_at_any_byte_of_its_end_is_whole_or_noticed(
    tmp_path: Path, plan: TrainingPlan, file: str
) -> None:
    path, read = state_files(tmp_path, plan)[file]()
    whole, value = path.read_bytes(), read()
    for cut in range(1, min(200, len(whole))):
        path.write_bytes(whole[:-cut])
        try:
            assert read() == value  # only the checksum is missing
        except StateRefused:
            continue
        assert whole[:-cut].strip() == whole.splitlines()[0]


@pytest.mark.parametrize("file", STATE_FILES)
def test_a_state_file_of_version_0_1_0_without_a_checksum_is_read(
    tmp_path: Path, plan: TrainingPlan, file: str
) -> None:
    path, read = state_files(tmp_path, plan)[file]()
    whole, value = path.read_bytes(), read()
    path.write_bytes(whole[39:] if file == "left_bases.bin" else whole.splitlines()[0])
    assert read() == value


def test_a_round_s_record_with_one_wrong_bit_ends_the_round_for_this_site(tmp_path: Path) -> None:
    path, _ = a_journal(tmp_path, "round.json")
    whole = path.read_bytes()
    assert b'"attempt":0' in whole
    path.write_bytes(whole.replace(b'"attempt":0', b'"attempt":1'))
    assert RoundJournal(tmp_path / "rounds").current is None


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("file", ["closed.json", "decision", "status.json", "gate.json"])
def test_a_damaged_file_is_refused_by_name_with_a_remedy(
    tmp_path: Path, plan: TrainingPlan, file: str, data: bytes
) -> None:
    makers: dict[str, Callable[[], tuple[Path, Reader]]] = {
        "closed.json": lambda: a_journal(tmp_path, "closed.json"),
        "decision": lambda: a_decision(tmp_path, plan),
        "status.json": lambda: a_status(tmp_path),
        "gate.json": lambda: a_gate(tmp_path),
    }
    path, read = makers[file]()
    read()
    path.write_bytes(data)
    if (file, data) in {("closed.json", b"{}"), ("status.json", b"")}:
        read()  # empty is a state of its own: no round is closed, a power cut emptied the status
        return
    with pytest.raises(StateRefused) as refusal:
        read()
    assert isinstance(refusal.value, SiteError)
    assert str(refusal.value).startswith(f"{path.name} in the state folder is damaged (")
    assert "; " in str(refusal.value)
    assert "DOE" not in str(refusal.value)


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_a_round_with_a_damaged_record_is_over_for_good_and_its_secrets_are_gone(tmp_path: Path, data: bytes) -> None:
    path, _ = a_journal(tmp_path, "round.json")
    (path.parent / "attempt-1").mkdir()
    (path.parent / "attempt-1" / "member.bin").write_bytes(b"secret")
    path.write_bytes(data)
    journal = RoundJournal(tmp_path / "rounds")
    assert journal.current is None
    kept = f"{path.parent.name}.round.json.damaged"
    assert sorted(os.listdir(tmp_path / "rounds")) == [kept, "closed.json"]
    digest = Digest(bytes(32))
    with pytest.raises(StepRefused, match="is over for this site"):
        journal.begin(CurrentRound(RunId(bytes(16)), 2, digest, digest, evaluation_only=False))
    journal.begin(CurrentRound(RunId(bytes(16)), 3, digest, digest, evaluation_only=False))


@pytest.mark.parametrize("data", [data for data in GARBAGE if data != b"[]"])
def test_a_damaged_history_is_set_aside_and_models_are_fetched_again(tmp_path: Path, data: bytes) -> None:
    path, read = a_history(tmp_path)
    path.write_bytes(data)
    assert read() == b""
    assert sorted(os.listdir(path.parent)) == ["history.json.damaged"]
    assert (path.parent / "history.json.damaged").read_bytes() == data


def test_a_plan_whose_decision_is_damaged_waits_for_another_one(tmp_path: Path, plan: TrainingPlan) -> None:
    path, read = a_decision(tmp_path, plan)
    path.write_bytes(b"{")
    with pytest.raises(StateRefused, match="decide again"):
        read()
    plans = Plans(tmp_path / "plans")
    assert plans.find(plan.digest.hex()).decision is None
    plans.decide(plan.digest, approved=False)
    assert plans.find(plan.digest.hex()).decision is PlanDecision.REFUSED


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_a_damaged_pause_pauses(tmp_path: Path, data: bytes) -> None:
    operator.pause(tmp_path, NOW, None, after_round=True)
    assert operator.current(tmp_path) == OperatorPause(None, after_round=True)
    (tmp_path / "pause.json").write_bytes(data)
    assert operator.current(tmp_path) == OperatorPause(None)


def test_a_pause_of_version_0_1_0_is_read(tmp_path: Path) -> None:
    (tmp_path / "pause.json").write_text('{"until": "2026-11-23T09:00:00+00:00", "after_round": false}')
    assert operator.current(tmp_path) == OperatorPause(NOW)
    assert os.listdir(tmp_path) == ["pause.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_file_that_may_not_be_read_is_refused_without_its_path_and_stays_as_it_is() -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        folder.chmod(0o755)
        path, read = a_history(folder)
        path.parent.chmod(0o755)
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(
                StateUnreadable, match=r"history.json .* cannot be read \(permission denied\)"
            ) as refusal:
                read()
        finally:
            os.seteuid(0)
        assert root not in str(refusal.value)
        assert os.listdir(path.parent) == ["history.json"]


def test_the_status_command_shows_a_damaged_status_file_as_one_value(tmp_path: Path) -> None:
    settings = SiteSettings("mercy", folders=FoldersSettings(tmp_path / "state", tmp_path / "spool"))
    settings.folders.agent.mkdir(parents=True)
    (settings.folders.agent / "status.json").write_bytes(b"{")
    facts = {fact.name: fact.value for fact in gather(settings)}
    assert str(facts["state"]).startswith("unknown: status.json in the state folder is damaged")
    assert "trainer_state" in facts


def test_a_trainer_whose_lock_is_a_folder_ends_with_a_sentence(tmp_path: Path) -> None:
    settings = SiteSettings("mercy", folders=FoldersSettings(tmp_path / "state", tmp_path / "spool"))
    (settings.folders.trainer / "lock").mkdir(parents=True)
    command = [sys.executable, "-m", "site_client.cli", "trainer", "--config", str(tmp_path / "site.toml")]
    (tmp_path / "site.toml").write_text('name = "mercy"\n[folders]\nstate = "state"\nspool = "spool"\n')
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr.startswith("hemofed-site: lock in the state folder cannot be read (is a directory)")
    assert done.stderr.count("\n") == 1


def test_a_file_of_version_0_1_0_may_have_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "closed.json"
    path.write_text('{\n "' + "00" * 16 + '": 3\n}\n')
    assert read_state(dict[RunHex, RoundNumber], path, "do this") == {"00" * 16: 3}
