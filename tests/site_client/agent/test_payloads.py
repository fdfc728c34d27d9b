"""What left stays openable, within its limit, and survives a crash in the middle of a record."""

import hashlib
import resource
from pathlib import Path

import pytest

from site_client.agent.egress import payloads, verify
from site_client.agent.egress.ledger import EgressDecision, Ledger, Outgoing
from site_client.agent.egress.payloads import Payloads
from site_client.errors import LedgerBroken


def test_what_was_kept_is_found_by_its_entry(tmp_path: Path) -> None:
    keeper = Payloads(tmp_path, 10_000, pack_bytes=100)
    for seq in range(1, 21):
        keeper.keep(seq, bytes([seq]) * seq)
    assert {seq: payloads.find(tmp_path, seq) for seq in (1, 7, 20)} == {s: bytes([s]) * s for s in (1, 7, 20)}
    assert payloads.find(tmp_path, 21) is None


def test_the_oldest_go_when_the_limit_is_reached(tmp_path: Path) -> None:
    keeper = Payloads(tmp_path, 1_000, pack_bytes=200)
    for seq in range(1, 101):
        keeper.keep(seq, bytes(50))
    held = [seq for seq, _ in payloads.kept(tmp_path)]
    assert held == list(range(held[0], 101))
    assert 12 <= len(held) <= 17
    assert sum(pack.stat().st_size for pack in tmp_path.iterdir()) <= 1_000
    assert payloads.find(tmp_path, 1) is None


def test_a_message_larger_than_everything_is_still_kept_as_the_newest(tmp_path: Path) -> None:
    keeper = Payloads(tmp_path, 100, pack_bytes=50)
    keeper.keep(1, bytes(10))
    keeper.keep(2, bytes(500))
    assert [seq for seq, _ in payloads.kept(tmp_path)] == [2]


def test_a_limit_of_zero_keeps_nothing(tmp_path: Path) -> None:
    Payloads(tmp_path, 0).keep(1, b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [1, 5, 12, 40])
def test_half_a_record_left_by_a_crash_is_cut(tmp_path: Path, torn: int) -> None:
    keeper = Payloads(tmp_path, 1_000)
    keeper.keep(1, b"first")
    pack = next(tmp_path.iterdir())
    whole = pack.stat().st_size
    keeper.keep(2, bytes(60))
    with pack.open("r+b") as file:
        file.truncate(whole + torn)
    assert [seq for seq, _ in payloads.kept(tmp_path)] == [1]
    Payloads(tmp_path, 1_000).keep(3, b"third")
    assert list(payloads.kept(tmp_path)) == [(1, b"first"), (3, b"third")]


def test_a_disk_that_fills_up_spoils_nothing_that_is_kept_later(tmp_path: Path) -> None:
    keeper = Payloads(tmp_path, 1_000)
    keeper.keep(1, b"first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))  # a write beyond it ends early, as on a full disk
    try:
        with pytest.raises(OSError, match="could be kept"):
            keeper.keep(2, bytes(60))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    keeper.keep(3, b"third")
    assert list(payloads.kept(tmp_path)) == [(1, b"first"), (3, b"third")]


def test_a_changed_payload_is_found(tmp_path: Path, ledger: Ledger) -> None:
    keeper = Payloads(tmp_path / "payloads", 1_000)
    for data in (b"one", b"two"):
        entry = ledger.append(Outgoing("hub:1", "Rounds/Ready", data, {}, EgressDecision.ALLOWED, ""))
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
        keeper.keep(entry.seq, data)
    path = tmp_path / "ledger" / "ledger.jsonl"
    assert verify.check_payloads(path, tmp_path / "payloads") == 2
    pack = next((tmp_path / "payloads").iterdir())
    pack.write_bytes(pack.read_bytes().replace(b"two", b"2wo"))
    with pytest.raises(LedgerBroken) as refusal:
        verify.check_payloads(path, tmp_path / "payloads")
    assert refusal.value.seq == 2
