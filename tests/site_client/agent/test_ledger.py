"""The egress ledger while it is written: durable, signed, one writer, and whole again after any crash."""

import json
import resource
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from site_client.agent.chained_file import GENESIS
from site_client.agent.egress import verify
from site_client.agent.egress.ledger import EgressDecision, Ledger, Outgoing, read
from site_client.errors import InUse, LedgerBroken
from tests.site_client.agent.conftest import StandingClock


def message(number: int, decision: EgressDecision = EgressDecision.ALLOWED) -> Outgoing:
    return Outgoing("hub.example:8443", "Rounds/Poll", bytes(number), {"state": "choice"}, decision, "call, fields")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent" / "ledger.jsonl"


@pytest.fixture
def open_ledger(path: Path, signer: Ed25519PrivateKey, clock: StandingClock) -> Callable[..., Ledger]:
    return lambda key=signer, **rest: Ledger(path, key, clock, **rest)


def test_an_entry_says_what_when_to_whom_how_much_and_what_was_decided(
    open_ledger: Callable[..., Ledger], path: Path, signer: Ed25519PrivateKey
) -> None:
    ledger = open_ledger()
    ledger.append(message(7))
    ledger.close()
    record = json.loads(path.read_text())
    assert record.pop("sig")
    assert record == {
        "seq": 1,
        "utc": "2026-11-23T09:00:00.000000+00:00",
        "dest": "hub.example:8443",
        "rpc": "Rounds/Poll",
        "bytes": 7,
        "sha256": "837885c8f8091aeaeb9ec3c3f85a6ff470a415e610b8ba3e49f9b33c9cf9d619",
        "fields": {"state": "choice"},
        "decision": "allowed",
        "rule": "call, fields",
        "key": signer.public_key().public_bytes_raw().hex(),
        "prev_hash": GENESIS,
    }


def test_a_ledger_knows_every_head_that_it_had_and_no_other(open_ledger: Callable[..., Ledger]) -> None:
    ledger, heads = open_ledger(), [GENESIS]
    for size in range(40):
        ledger.append(message(size * size))  # lines of several lengths
        heads.append(ledger.head)
    ledger.close()
    ledger = open_ledger()
    for entries, head in enumerate(heads):
        assert ledger.had(entries, head)
        assert not ledger.had(entries, "ab" * 32)
        assert not ledger.had(entries + 1, head)
    assert not ledger.had(2**63 - 1, ledger.head)
    ledger.close()


def test_a_ledger_goes_on_where_it_stopped(open_ledger: Callable[..., Ledger], path: Path) -> None:
    for size in (1, 2, 3):
        ledger = open_ledger()
        ledger.append(message(size))
        ledger.close()
    assert (ledger.entries, ledger.head) == (3, verify.verify(path).head)
    assert [entry.seq for entry in read(path)] == [1, 2, 3]


def test_only_the_agent_can_read_it(open_ledger: Callable[..., Ledger], path: Path) -> None:
    open_ledger().close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_second_writer_is_refused(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger()
    with pytest.raises(InUse, match="another process"):
        open_ledger()
    ledger.close()
    open_ledger().close()


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_line_torn_by_a_crash_is_cut_and_an_entry_says_so(
    open_ledger: Callable[..., Ledger], path: Path, cut: int
) -> None:
    ledger = open_ledger()
    for size in (1, 2, 3):
        ledger.append(message(size))
    ledger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:-cut])
    assert verify.verify(path).unfinished
    repaired = open_ledger()
    repaired.close()
    assert repaired.repaired_bytes == len(lines[2]) - cut
    *kept, said = read(path)
    assert [entry.seq for entry in kept] == [1, 2]
    assert (said.decision, said.size_bytes, said.left) == (EgressDecision.REPAIRED, len(lines[2]) - cut, False)
    assert verify.verify(path).repaired == 1
    assert not verify.verify(path).unfinished


def test_a_ledger_of_nothing_but_a_torn_line_starts_anew(open_ledger: Callable[..., Ledger], path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"seq":1' * 20_000)
    ledger = open_ledger()
    ledger.close()
    assert [entry.decision for entry in read(path)] == [EgressDecision.REPAIRED]


def test_a_full_disk_leaves_no_half_line_behind(open_ledger: Callable[..., Ledger], path: Path) -> None:
    ledger = open_ledger()
    ledger.append(message(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"ledger line|File too large"):
            ledger.append(message(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    ledger.append(message(3))
    ledger.close()
    assert [entry.size_bytes for entry in read(path)] == [1, 3]
    assert verify.verify(path).entries == 2


def test_a_changed_ledger_stops_the_agent(open_ledger: Callable[..., Ledger], path: Path) -> None:
    ledger = open_ledger()
    for size in (1, 2, 3):
        ledger.append(message(size))
    ledger.close()
    path.write_bytes(path.read_bytes().replace(b'"bytes":2', b'"bytes":9'))
    with pytest.raises(LedgerBroken) as refusal:
        open_ledger()
    assert refusal.value.seq == 3  # the link from 3 to 2; `audit.verify` checks every signature and names 2
    with pytest.raises(LedgerBroken) as named:
        verify.verify(path)
    assert named.value.seq == 2


def test_another_key_may_go_on_only_when_the_host_joins_anew(
    open_ledger: Callable[..., Ledger], path: Path, signer: Ed25519PrivateKey
) -> None:
    ledger = open_ledger()
    ledger.append(message(1))
    ledger.close()
    fresh = Ed25519PrivateKey.generate()
    with pytest.raises(LedgerBroken):
        open_ledger(fresh)
    joining = open_ledger(fresh, joining=True)
    joining.append(message(2))
    joining.close()
    open_ledger(fresh).close()
    public = [key.public_key().public_bytes_raw().hex() for key in (signer, fresh)]
    assert verify.verify(path, public[1]).keys == ((1, public[0]), (2, public[1]))
    with pytest.raises(LedgerBroken, match="not this site's"):
        verify.verify(path, public[0])
