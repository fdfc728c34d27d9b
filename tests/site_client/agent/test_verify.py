"""Whatever is done to an egress ledger afterwards is found, and the first bad entry is named."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from site_client.agent.egress import verify
from site_client.agent.egress.ledger import CHAIN, EgressDecision, Entry, Ledger, Outgoing, read
from site_client.agent.egress.verify import Anchor
from site_client.errors import LedgerBroken

ENTRIES = 6
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory, signer: Ed25519PrivateKey) -> list[bytes]:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ticks = (datetime(2026, 11, 23, 22, tzinfo=UTC) + timedelta(hours=n) for n in range(ENTRIES))
    ledger = Ledger(path, signer, lambda: next(ticks))
    for number in range(ENTRIES):
        decision = EgressDecision.REFUSED if number == 3 else EgressDecision.ALLOWED
        dest = "hub:8443" if number % 2 == 0 else "hub:8444"
        ledger.append(Outgoing(dest, "Rounds/Ready", bytes(100 + number), {"round.run_id": "bytes[16]"}, decision, "r"))
    ledger.close()
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def anchor(lines: list[bytes], path: Path) -> Anchor:
    path.write_bytes(b"".join(lines))
    found = verify.verify(path)
    return Anchor(found.entries, found.head)


def test_an_untouched_ledger_verifies(lines: list[bytes], path: Path, anchor: Anchor) -> None:
    found = verify.verify(path, anchor=anchor)
    assert (found.entries, found.allowed, found.refused, found.repaired) == (ENTRIES, ENTRIES - 1, 1, 0)
    assert found.bytes_out == 100 + 101 + 102 + 104 + 105
    assert found.last_at is not None
    assert found.first_at == found.last_at - timedelta(hours=ENTRIES - 1)
    assert not found.unfinished


@QUICK
@given(st.data())
def test_any_changed_byte_is_found_and_its_entry_named(
    lines: list[bytes], path: Path, anchor: Anchor, data: st.DataObject
) -> None:
    whole = bytearray(b"".join(lines))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(whole))
    with pytest.raises(LedgerBroken) as refusal:
        verify.verify(path, anchor=anchor)
    assert refusal.value.seq == bytes(b"".join(lines)[:at]).count(b"\n") + 1


@QUICK
@given(kept=st.lists(st.integers(0, ENTRIES - 1), max_size=ENTRIES + 2))
def test_any_other_sequence_of_the_same_lines_is_found(
    lines: list[bytes], path: Path, anchor: Anchor, kept: list[int]
) -> None:
    path.write_bytes(b"".join(lines[index] for index in kept))
    right = list(range(ENTRIES))
    if kept == right:
        verify.verify(path, anchor=anchor)
        return
    with pytest.raises(LedgerBroken) as refusal:
        verify.verify(path, anchor=anchor)
    wrong = [n for n, (one, other) in enumerate(zip(kept, right, strict=False), 1) if one != other]
    assert refusal.value.seq == (wrong[0] if wrong else min(len(kept), ENTRIES) + 1)


@pytest.mark.parametrize("kept", range(ENTRIES))
def test_a_cut_end_is_found_by_the_head_that_the_aggregator_wrote_down(
    lines: list[bytes], path: Path, anchor: Anchor, kept: int
) -> None:
    path.write_bytes(b"".join(lines[:kept]))
    assert verify.verify(path).entries == kept  # the chain alone cannot tell
    with pytest.raises(LedgerBroken, match="its end was cut off"):
        verify.verify(path, anchor=anchor)


def test_a_ledger_written_anew_with_another_key_is_found(lines: list[bytes], path: Path, anchor: Anchor) -> None:
    forger = Ed25519PrivateKey.generate()
    public, head = forger.public_key().public_bytes_raw().hex(), "0" * 64
    forged = []
    path.write_bytes(b"".join(lines))
    for entry in list(read(path)):
        unsigned = entry.record() | {"key": public, "prev_hash": head, "bytes": 1}
        del unsigned["sig"]
        entry = Entry.of(CHAIN.signed(unsigned, forger))
        head = entry.hash()
        forged.append(entry.line() + b"\n")
    path.write_bytes(b"".join(forged))
    with pytest.raises(LedgerBroken) as refusal:
        verify.verify(path, anchor=anchor)
    assert refusal.value.seq == ENTRIES
    with pytest.raises(LedgerBroken, match="not this site's"):
        verify.verify(path, key="00" * 32)


def test_an_anchor_in_the_middle_holds(lines: list[bytes], path: Path) -> None:
    path.write_bytes(b"".join(lines[:3]))
    middle = verify.verify(path)
    path.write_bytes(b"".join(lines))
    verify.verify(path, anchor=Anchor(middle.entries, middle.head))
    with pytest.raises(LedgerBroken) as refusal:
        verify.verify(path, anchor=Anchor(2, middle.head))
    assert refusal.value.seq == 2


def test_totals_count_what_left_by_day_and_address(lines: list[bytes], path: Path) -> None:
    path.write_bytes(b"".join(lines))
    found = {(f"{one.day}", one.dest): (one.messages, one.bytes_out) for one in verify.totals(read(path))}
    assert found == {
        ("2026-11-23", "hub:8443"): (1, 100),
        ("2026-11-23", "hub:8444"): (1, 101),
        ("2026-11-24", "hub:8443"): (2, 102 + 104),
        ("2026-11-24", "hub:8444"): (1, 105),  # entry 4 was refused and did not leave
    }


@pytest.mark.parametrize("text", ["", "3", "3:", "3:00", ":" + "0" * 64, "-1:" + "0" * 64, "x:" + "0" * 64])
def test_an_anchor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Anchor.parse(text)
