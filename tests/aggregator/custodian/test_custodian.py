"""hemofed-custodian: the key's life, and every request read in words before it is signed."""

import json
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from federation.errors import BadSignature
from federation.fingerprint import custodian_words
from federation.plan import verify_plan
from federation.roster import (
    ROSTER_DAYS,
    Roster,
    RosterEntry,
    custodian_after,
    custodian_of,
    sign_roster,
    verify_roster,
)
from federation.v1.enrolment_pb2 import SignedRoster
from federation.v1.plan_pb2 import SignedPlan
from federation.wire import parse, serialize

from aggregator.commands.lazy_group import LazyCommand
from aggregator.custodian import sealed_key
from aggregator.custodian.cli import main
from aggregator.custodian.folder import CustodianFolder
from aggregator.errors import CustodianRefused
from aggregator.signing_requests import (
    PlanRequest,
    RosterRequest,
    SignedPlanFile,
    SignedRosterFile,
    read_file,
    write_file,
)
from tests.contract.conftest import PLAN
from tests.custodian import PASSPHRASE, Program


@pytest.fixture
def custodian(tmp_path: Path, cheap_scrypt: None) -> Program:
    return Program.begin(tmp_path / "custodian")


def entry(name: str, key: int = 1) -> RosterEntry:
    own = bytes([key, *name.encode()])
    return RosterEntry(name, own.ljust(32, b"."), own.ljust(1216, b"."))


def requested(folder: Path, *entries: RosterEntry, in_force: SignedRoster | None = None) -> Path:
    """A request as the aggregator writes it; the epoch and the dates in it mean nothing."""
    proposed = Roster(77, tuple(sorted(entries, key=lambda one: one.site)))
    path = folder / "roster.request"
    write_file(path, RosterRequest(proposed.to_bytes(), b"" if in_force is None else serialize(in_force)))
    return path


def signed_roster(custodian: Program, request: Path) -> SignedRoster:
    content = read_file(custodian.sign(request))
    assert isinstance(content, SignedRosterFile)
    return parse(SignedRoster, content.signed)


def public_key(custodian: Program) -> Ed25519PublicKey:
    key = load_pem_public_key(custodian.public_key_file.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return key


# --- the program ---


def test_help_and_every_command_need_no_database_no_network_and_no_web_server() -> None:
    program = (
        "import sys\nfrom aggregator.custodian.cli import main\n"
        "[command.load() for command in main.commands.values()]\nmain(['--help'], standalone_mode=False)\n"
        "assert not {'sqlalchemy', 'grpc', 'fastapi', 'pkcs11'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Show the request in FILE in words, ask, and sign it." in done.stdout


def test_every_stand_in_has_the_name_and_the_short_help_of_its_command() -> None:
    for name, stand_in in main.commands.items():
        assert isinstance(stand_in, LazyCommand)
        command = stand_in.load()
        assert (command.name, command.get_short_help_str(100)) == (name, stand_in.get_short_help_str(100))


def test_without_a_custodian_every_command_says_how_to_make_one(tmp_path: Path) -> None:
    program = Program(tmp_path / "nothing")
    for command in (["show"], ["review", "file"], ["sign", "file", "--yes"], ["succeed", str(tmp_path / "new")]):
        assert "run `hemofed-custodian init`" in program.refused(*command)


# --- the key in a file ---


def test_the_key_is_sealed_and_for_its_owner_only(custodian: Program) -> None:
    assert stat.S_IMODE(custodian.folder.stat().st_mode) == 0o700
    key = sealed_key.unseal(custodian.folder / "custodian.key", PASSPHRASE)
    for path in custodian.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert key.private_bytes_raw() not in path.read_bytes()
        assert b"PRIVATE" not in path.read_bytes()
    assert custodian_words(key.public_key().public_bytes_raw()) in custodian.succeeds("show")


def test_another_passphrase_or_an_altered_file_opens_nothing(custodian: Program, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("another long passphrase")
    request = requested(tmp_path, entry("north"))
    told = custodian.refused("sign", str(request), "--yes", "--passphrase-file", str(other))
    assert "the passphrase is another one" in told
    assert not request.with_name("roster.request.signed").exists()
    path = custodian.folder / "custodian.key"
    for field, value in (("public_key", "AAAA"), ("n", 2**30), ("n", 4)):
        table = json.loads(path.read_bytes()) | {field: value}
        (tmp_path / "altered.key").write_text(json.dumps(table))
        with pytest.raises(CustodianRefused):
            sealed_key.unseal(tmp_path / "altered.key", PASSPHRASE)


def test_a_short_passphrase_is_refused_and_makes_no_key(tmp_path: Path) -> None:
    program = Program(tmp_path / "custodian")
    program.passphrase_file.write_text("too short")
    assert "at least 12 characters" in program.refused("init", "--passphrase-file", str(program.passphrase_file))
    assert not (program.folder / "custodian.key").exists()


def test_a_person_types_the_passphrase_twice_for_a_new_key_and_once_to_sign(tmp_path: Path, cheap_scrypt: None) -> None:
    program = Program(tmp_path / "custodian")
    assert program("init", stdin=f"{PASSPHRASE}\n{PASSPHRASE}\n").exit_code == 0
    request = requested(tmp_path, entry("north"))
    assert program("sign", str(request), stdin=f"y\n{PASSPHRASE}\n").exit_code == 0


def test_init_twice_is_refused_and_changes_nothing(custodian: Program) -> None:
    before = (custodian.folder / "custodian.key").read_bytes()
    told = custodian.refused("init", "--passphrase-file", str(custodian.passphrase_file))
    assert "already holds a custodian" in told
    assert (custodian.folder / "custodian.key").read_bytes() == before


# --- rosters ---


def test_a_review_says_who_is_added_removed_renewed_and_who_stays(custodian: Program, tmp_path: Path) -> None:
    custodian.sign(requested(tmp_path, entry("east"), entry("north"), entry("south")))
    request = requested(tmp_path, entry("east"), entry("ghost"), entry("south", key=2))
    words = custodian.succeeds("review", str(request))
    lines = {tuple(line.split()[:2]) for line in words.splitlines()}
    assert {("adds", "ghost"), ("removes", "north"), ("other", "keys"), ("stays", "east")} <= lines
    assert entry("ghost").fingerprint.hex()[:16] in words
    assert f"before {entry('south').fingerprint.hex()[:16]}" in words
    assert "Roster of epoch 2" in words


def test_what_the_aggregator_says_about_the_roster_before_hides_no_change(custodian: Program, tmp_path: Path) -> None:
    """The comparison is with what this custodian signed last; an older roster of its own makes no addition vanish."""
    first = signed_roster(custodian, requested(tmp_path, entry("north")))
    custodian.sign(requested(tmp_path, entry("north"), entry("south")))
    for shown in (None, first):
        words = custodian.succeeds("review", str(requested(tmp_path, entry("north"), in_force=shown)))
        assert "removes     south" in words
        assert "Roster of epoch 3" in words


def test_signing_asks_and_no_signs_nothing(custodian: Program, tmp_path: Path) -> None:
    request = requested(tmp_path, entry("north"))
    result = custodian("sign", str(request), "--passphrase-file", str(custodian.passphrase_file), stdin="n\n")
    assert result.exit_code == 1
    assert "adds        north" in result.stdout
    assert not (custodian.folder / "roster.bin").exists()


def test_a_signed_roster_has_the_custodians_epoch_and_dates(custodian: Program, tmp_path: Path) -> None:
    epochs = []
    for names in (["north"], ["north", "south"], ["south"]):
        signed = signed_roster(custodian, requested(tmp_path, *map(entry, names)))
        roster = verify_roster(signed, public_key(custodian))
        assert [one.site for one in roster.entries] == names
        assert roster.expires_at is not None
        assert abs(roster.expires_at - datetime.now(UTC) - timedelta(days=ROSTER_DAYS)) < timedelta(minutes=5)
        epochs.append(roster.epoch)
    assert epochs == [1, 2, 3]


def test_a_custodian_without_memory_goes_on_from_the_roster_in_force(custodian: Program, tmp_path: Path) -> None:
    in_force = signed_roster(custodian, requested(tmp_path, entry("north")))
    (custodian.folder / "roster.bin").unlink()  # a folder restored from the backup of the first day
    signed = signed_roster(custodian, requested(tmp_path, entry("north"), entry("south"), in_force=in_force))
    assert verify_roster(signed, public_key(custodian)).epoch == 2


def test_a_roster_in_force_that_a_stranger_signed_is_refused(custodian: Program, tmp_path: Path) -> None:
    foreign = sign_roster(Roster(9, (entry("north"),)), Ed25519PrivateKey.generate())
    told = custodian.refused("review", str(requested(tmp_path, entry("north"), in_force=foreign)))
    assert "not signed by this custodian" in told


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"type": "hemofed roster request 1"}', b"\xff\xfe"])
def test_a_file_that_is_no_request_is_refused_in_one_sentence(
    custodian: Program, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert "expected a file of `roster export`" in custodian.refused("review", str(path))


def test_a_signed_file_and_a_missing_one_are_no_requests(custodian: Program, tmp_path: Path) -> None:
    signed = custodian.sign(requested(tmp_path, entry("north")))
    assert "signed already" in custodian.refused("review", str(signed))
    assert "No such file" in custodian.refused("review", str(tmp_path / "missing"))


# --- plans ---


def test_a_plan_is_shown_with_what_changed_and_signed_as_it_was_shown(custodian: Program, tmp_path: Path) -> None:
    path, plan = tmp_path / "plan.request", PLAN
    write_file(path, PlanRequest(plan.to_bytes()))
    assert "the first plan" in custodian.succeeds("review", str(path))
    content = read_file(custodian.sign(path))
    assert isinstance(content, SignedPlanFile)
    assert verify_plan(parse(SignedPlan, content.signed), public_key(custodian)) == plan
    changed = replace(plan, training=replace(plan.training, epochs=plan.training.epochs + 3))
    write_file(path, PlanRequest(changed.to_bytes()))
    words = custodian.succeeds("review", str(path))
    [line] = [line for line in words.splitlines() if "(before:" in line]
    assert line.split() == ["training.epochs", str(changed.training.epochs), "(before:", f"{plan.training.epochs})"]


# --- succession ---


def test_a_successor_signs_with_the_chain_and_holders_of_any_older_key_follow(
    custodian: Program, tmp_path: Path
) -> None:
    in_force = signed_roster(custodian, requested(tmp_path, entry("north")))
    keys, current = [public_key(custodian)], custodian
    for number in (2, 3):
        new = Program(tmp_path / f"custodian-{number}")
        secret = str(custodian.passphrase_file)
        current.succeeds("succeed", str(new.folder), "--passphrase-file", secret, "--new-passphrase-file", secret)
        current = new
        keys.append(public_key(new))
    signed = signed_roster(current, requested(tmp_path, entry("north"), entry("south"), in_force=in_force))
    for key in keys:
        assert custodian_after(signed.successions, key) == keys[-1]
        assert verify_roster(signed, custodian_of(signed, keys[0], held=key)).epoch == 2
    assert "2 successions ago" in current.succeeds("show")


def test_an_aggregator_that_shows_the_roster_of_the_old_key_is_understood(custodian: Program, tmp_path: Path) -> None:
    in_force = signed_roster(custodian, requested(tmp_path, entry("north")))
    spare, secret = Program(tmp_path / "spare"), str(custodian.passphrase_file)
    custodian.succeeds("succeed", str(spare.folder), "--passphrase-file", secret, "--new-passphrase-file", secret)
    newer = signed_roster(custodian, requested(tmp_path, entry("north"), entry("south"), in_force=in_force))
    shutil.rmtree(custodian.folder)  # lost; the spare has lain in a safe since before the newest roster
    words = spare.succeeds("review", str(requested(tmp_path, entry("south"), in_force=newer)))
    assert "compared with epoch 2" in words
    assert "removes     north" in words


def test_no_successor_without_the_old_passphrase(custodian: Program, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("another long passphrase")
    command = ["succeed", str(tmp_path / "new"), "--passphrase-file", str(wrong), "--new-passphrase-file", str(wrong)]
    assert "the passphrase is another one" in custodian.refused(*command)
    assert not (tmp_path / "new").exists()


def test_a_forged_link_is_no_succession(custodian: Program, tmp_path: Path) -> None:
    spare, secret = Program(tmp_path / "spare"), str(custodian.passphrase_file)
    custodian.succeeds("succeed", str(spare.folder), "--passphrase-file", secret, "--new-passphrase-file", secret)
    link = CustodianFolder(spare.folder).successions[0]
    link.signature = bytes(64)
    signed = sign_roster(Roster(1, (entry("north"),)), Ed25519PrivateKey.generate(), [link])
    with pytest.raises(BadSignature):
        verify_roster(signed, custodian_of(signed, public_key(custodian), held=public_key(custodian)))
