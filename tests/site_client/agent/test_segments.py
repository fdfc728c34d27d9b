"""The egress ledger in segments: nothing is lost by sealing, every change is noticed, and a start stays short."""

import itertools
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from site_client.agent.chained_file import START, canonical, line_hash
from site_client.agent.egress import verify
from site_client.agent.egress.ledger import CHAIN, SEGMENT_BYTES, EgressDecision, Ledger, Outgoing, read
from site_client.agent.egress.segments import LIST_CHAIN, Segments
from site_client.agent.egress.verify import Anchor
from site_client.errors import InUse, LedgerBroken, SiteError, StateUnreadable
from tests.site_client.agent.conftest import StandingClock

SMALL = 2000  # bytes, some four entries
Open = Callable[..., Ledger]


def message(number: int) -> Outgoing:
    fields = {"state": "choice"}
    return Outgoing("hub.example:8443", "Rounds/Poll", bytes(number), fields, EgressDecision.ALLOWED, "call, fields")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent" / "ledger.jsonl"


@pytest.fixture
def open_ledger(path: Path, signer: Ed25519PrivateKey, clock: StandingClock) -> Open:
    return lambda key=signer, **rest: Ledger(path, key, clock, segment_bytes=SMALL, **rest)


@pytest.fixture
def public(signer: Ed25519PrivateKey) -> str:
    return signer.public_key().public_bytes_raw().hex()


def written(open_ledger: Open, entries: int) -> list[str]:
    """Append so many entries; returns the head after each, with the one before the first in front."""
    ledger = open_ledger()
    heads = [ledger.head]
    for size in range(entries):
        ledger.append(message(size * size))
        heads.append(ledger.head)
    ledger.close()
    return heads


def everywhere(path: Path, public: str) -> None:
    """Verify a ledger in both ways, and find its newest entries, whatever step of sealing is missing."""
    entries = verify.verify(path, public).entries
    assert [entry.seq for entry in verify.newest(path, 3)] == list(range(max(1, entries - 2), entries + 1))
    assert verify.find_entry(path, entries + 1) is None
    verify.verify_newest(path, public)


def archived(path: Path) -> list[Path]:
    return sorted(path.with_suffix(".segments").glob("0*.jsonl"))


def test_all_segments_one_after_the_other_are_the_ledger_as_one_file(
    open_ledger: Open, path: Path, tmp_path: Path, signer: Ed25519PrivateKey, clock: StandingClock
) -> None:
    written(open_ledger, 30)
    whole = Ledger(tmp_path / "whole.jsonl", signer, clock)
    for size in range(30):
        whole.append(message(size * size))
    whole.close()
    assert len(archived(path)) > 4
    assert b"".join(file.read_bytes() for file in [*archived(path), path]) == (tmp_path / "whole.jsonl").read_bytes()
    assert b"".join(verify.lines(path)) == (tmp_path / "whole.jsonl").read_bytes()
    found = verify.verify(path)
    assert (found.entries, found.head, found.allowed) == (30, whole.head, 30)
    assert found.segments == len(archived(path))


def test_a_ledger_in_segments_knows_every_head_that_it_had(open_ledger: Open) -> None:
    heads = written(open_ledger, 30)
    ledger = open_ledger()
    for entries, head in enumerate(heads):
        assert ledger.had(entries, head)
        assert not ledger.had(entries, "ab" * 32)
        assert not ledger.had(entries + 1, head)
    ledger.close()


def test_the_newest_entries_and_a_single_one_are_found_in_any_segment(open_ledger: Open, path: Path) -> None:
    written(open_ledger, 30)
    for count in (1, 2, 7, 29, 30, 99):
        assert [entry.seq for entry in verify.newest(path, count)] == list(range(max(1, 31 - count), 31))
    for seq in range(1, 31):
        entry = verify.find_entry(path, seq)
        assert entry is not None
        assert (entry.seq, entry.size_bytes) == (seq, (seq - 1) ** 2)
    assert verify.find_entry(path, 31) is None


def test_the_traffic_of_the_last_days_is_counted_from_the_segments_of_those_days(
    open_ledger: Open, path: Path, clock: StandingClock
) -> None:
    ledger = open_ledger()
    for size in range(30):
        ledger.append(message(size))
        clock.advance(days=1)
    ledger.close()
    since = clock.now - timedelta(days=9)
    first = verify.first_since(path, since)
    assert 1 < first <= 21
    assert [entry.seq for entry in read(path, first) if entry.utc >= since] == list(range(22, 31))


def test_the_ledger_of_an_older_version_is_taken_over_as_the_first_segment(
    open_ledger: Open, path: Path, signer: Ed25519PrivateKey, clock: StandingClock
) -> None:
    old = Ledger(path, signer, clock)  # one file
    for size in range(40):
        old.append(message(size))
    old.close()
    before = path.read_bytes()
    ledger = open_ledger()
    assert (ledger.entries, ledger.head) == (40, old.head)
    assert archived(path) == []
    ledger.append(message(1))
    ledger.close()
    (first,) = archived(path)
    assert first.read_bytes() == before
    assert verify.verify(path, anchor=Anchor(40, old.head)).entries == 41


def test_sealed_segments_belong_to_the_agent_alone(open_ledger: Open, path: Path) -> None:
    written(open_ledger, 10)
    folder = path.with_suffix(".segments")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in [path, *folder.iterdir()]} == {0o600}


def test_a_second_writer_is_refused_at_every_moment(open_ledger: Open) -> None:
    ledger = open_ledger()
    for size in range(12):
        ledger.append(message(size))
        with pytest.raises(InUse, match="another process"):
            open_ledger()
    ledger.close()
    open_ledger().close()


def test_a_host_that_joined_anew_goes_on_with_another_key(open_ledger: Open, path: Path) -> None:
    written(open_ledger, 10)
    fresh = Ed25519PrivateKey.generate()
    with pytest.raises(LedgerBroken):
        open_ledger(fresh)
    ledger = open_ledger(fresh, joining=True)
    for size in range(10):
        ledger.append(message(size))
    ledger.close()
    open_ledger(fresh).close()
    assert len(verify.verify(path, fresh.public_key().public_bytes_raw().hex()).keys) == 2


def test_a_full_disk_seals_nothing_or_all_and_loses_no_entry(open_ledger: Open, path: Path) -> None:
    ledger = open_ledger()
    while path.stat().st_size < SMALL:
        ledger.append(message(1))
    entries, limits = ledger.entries, resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for allowed in range(0, SMALL, 97):
            resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limits[1]))
            try:
                ledger.append(message(2))
            except OSError:
                assert verify.verify(path).entries == ledger.entries == entries
            else:
                break
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    ledger.append(message(3))
    ledger.close()
    assert [entry.size_bytes for entry in read(path)][-1] == 3
    assert len(archived(path)) == 1
    open_ledger().close()


# ---- every step of sealing


STEPS = {
    "_seal",
    "_keep_newest",
    "add",
    "keep",
    "begin_anew",
    "_open_to_append",
    "append",
    "append_whole",
    "sync_folder",
}


def killed_at(line: int, open_ledger: Open) -> bool:
    """Append in a process that is killed before it executes the `line`-th line of ours; whether it was killed."""
    child = os.fork()
    if child == 0:
        lines, ledger = itertools.count(), open_ledger()

        def trace(frame: FrameType, event: str, _: object) -> Any:
            # Those that change files: between two other lines nothing happens that a crash could leave behind.
            if frame.f_code.co_name not in STEPS:
                return None
            if event == "line" and next(lines) == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        ledger.append(message(2))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_at_every_line_of_sealing_the_ledger_has_all_entries_and_goes_on(
    open_ledger: Open, path: Path, tmp_path: Path, public: str
) -> None:
    ledger = open_ledger()
    while ledger.entries < 3 or path.stat().st_size < SMALL:
        ledger.append(message(1))
    entries, head = ledger.entries, ledger.head
    ledger.close()
    shutil.copytree(path.parent, tmp_path / "before")
    pending = 0
    for line in itertools.count():
        shutil.rmtree(path.parent)
        shutil.copytree(tmp_path / "before", path.parent)
        was_killed = killed_at(line, open_ledger)
        found = verify.verify(path, public, Anchor(entries, head))
        everywhere(path, public)
        assert found.entries - entries in ((0, 1) if was_killed else (1,))
        pending += Segments(path, CHAIN).kept(listed := Segments(path, CHAIN).listed()) != listed
        again = open_ledger()
        assert again.entries == found.entries  # no line was torn
        assert again.had(entries, head)
        again.append(message(3))
        again.close()
        assert len(archived(path)) == 1
        verify.verify(path, public)
        if not was_killed:
            break
    assert pending > 5  # some of the deaths were between the steps


def test_a_list_torn_at_any_byte_of_its_newest_line_is_sealed_again(open_ledger: Open, path: Path, public: str) -> None:
    ledger = open_ledger()
    while not archived(path):
        ledger.append(message(1))
    entries = ledger.entries
    ledger.close()
    # As it was after the first step of sealing was interrupted.
    listed, (first,) = path.with_suffix(".segments") / "segments.jsonl", archived(path)
    line, sealed = listed.read_bytes(), first.read_bytes()
    for cut in range(1, len(line), 41):
        first.unlink(missing_ok=True)
        path.write_bytes(sealed)
        listed.write_bytes(line[:cut])
        ledger = open_ledger()
        assert ledger.entries == entries - 1
        ledger.append(message(1))
        ledger.close()
        assert archived(path) == [first]
        everywhere(path, public)


def test_a_reader_sees_a_whole_ledger_while_the_agent_seals(open_ledger: Open, path: Path) -> None:
    ledger = open_ledger()
    for size in range(40):
        ledger.append(message(size))
        reading = read(path)
        seen = [next(reading).seq]
        ledger.append(message(size))  # seals in the middle of reading, every now and then
        seen += [entry.seq for entry in reading]
        assert seen == list(range(1, len(seen) + 1))
        assert ledger.entries - len(seen) in (0, 1)
    ledger.close()


# ---- what was done to it afterwards


@pytest.fixture(scope="module")
def three_segments(tmp_path_factory: pytest.TempPathFactory, signer: Ed25519PrivateKey) -> Path:
    path = tmp_path_factory.mktemp("segments") / "agent" / "ledger.jsonl"
    ledger = Ledger(path, signer, lambda: datetime(2026, 11, 23, 9, tzinfo=UTC), segment_bytes=SMALL)
    while len(archived(path)) < 3:
        ledger.append(message(ledger.entries))
    ledger.append(message(1))
    ledger.close()
    return path.parent


def noticed(folder: Path, signer: Ed25519PrivateKey, anchor: Anchor | None = None) -> None:
    """A change is noticed by the start or in the turns after it, by `doctor`, and by `ledger verify`."""
    path, public = folder / "ledger.jsonl", signer.public_key().public_bytes_raw().hex()
    with pytest.raises(SiteError):
        verify.verify(path, public, anchor)
    with pytest.raises(SiteError):  # noqa: PT012 - at the start, or in one of the turns
        ledger = Ledger(path, signer, lambda: datetime(2026, 11, 23, 9, tzinfo=UTC), segment_bytes=SMALL)
        try:
            for _ in range(4):
                ledger.check_next_segment()
            if anchor is not None and not ledger.had(anchor.entries, anchor.head):
                raise LedgerBroken("a shorter ledger was put back", 0)
        finally:
            ledger.close()


@pytest.fixture
def folder(three_segments: Path, tmp_path: Path) -> Path:
    return shutil.copytree(three_segments, tmp_path / "agent")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_in_any_segment_is_found_and_its_entry_named(
    three_segments: Path, folder: Path, signer: Ed25519PrivateKey, data: st.DataObject
) -> None:
    shutil.rmtree(folder)
    shutil.copytree(three_segments, folder)
    files = [*archived(folder / "ledger.jsonl"), folder / "ledger.jsonl"]
    chosen = data.draw(st.integers(0, len(files) - 1))
    whole = bytearray(files[chosen].read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    before = b"".join(file.read_bytes() for file in files[:chosen]) + bytes(whole[:at])
    whole[at] ^= data.draw(st.integers(1, 255))
    found = verify.verify(folder / "ledger.jsonl")
    anchor = Anchor(found.entries, found.head)
    files[chosen].write_bytes(whole)
    with pytest.raises(LedgerBroken) as refusal:
        verify.verify(folder / "ledger.jsonl", anchor=anchor)
    assert refusal.value.seq == before.count(b"\n") + 1
    noticed(folder, signer, anchor)


def test_a_changed_byte_in_the_list_of_segments_is_found(
    three_segments: Path, folder: Path, signer: Ed25519PrivateKey
) -> None:
    listed = folder / "ledger.segments" / "segments.jsonl"
    whole = listed.read_bytes()
    for at in range(0, len(whole), 29):
        listed.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        noticed(folder, signer)


def swap(folder: Path) -> None:
    first, second, _ = archived(folder / "ledger.jsonl")
    first.rename(folder / "other")
    second.rename(first)
    (folder / "other").rename(second)


def cut(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lines]))


def double(folder: Path) -> None:
    first, second, _ = archived(folder / "ledger.jsonl")
    shutil.copy(first, second)


def put_back(folder: Path) -> None:
    shutil.copy(archived(folder / "ledger.jsonl")[-1], folder / "ledger.jsonl")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"{}\n")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def shorten(folder: Path) -> None:
    """Leave a ledger of two segments, as an older backup has it."""
    cut(folder / "ledger.segments" / "segments.jsonl", 1)
    archived(folder / "ledger.jsonl")[-1].unlink()
    (folder / "ledger.jsonl").unlink()


CHANGES: dict[str, Callable[[Path], None]] = {
    "the first segment removed": lambda folder: archived(folder / "ledger.jsonl")[0].unlink(),
    "the last segment removed": lambda folder: archived(folder / "ledger.jsonl")[-1].unlink(),
    "two segments exchanged": swap,
    "a segment in the place of another": double,
    "a segment cut": lambda folder: cut(archived(folder / "ledger.jsonl")[1], 1),
    "a segment with a line more": lambda folder: lengthen(archived(folder / "ledger.jsonl")[1]),
    "a segment as a folder": lambda folder: become_a_folder(archived(folder / "ledger.jsonl")[1]),
    "the list removed": lambda folder: (folder / "ledger.segments" / "segments.jsonl").unlink(),
    "the list cut": lambda folder: cut(folder / "ledger.segments" / "segments.jsonl", 1),
    "all segments removed": lambda folder: shutil.rmtree(folder / "ledger.segments"),
    "the newest file removed": lambda folder: (folder / "ledger.jsonl").unlink(),
    "the newest file emptied": lambda folder: os.truncate(folder / "ledger.jsonl", 0),
    "the newest file is the last segment again": put_back,
    "everything after the second segment removed": shorten,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_missing_swapped_or_shorter_part_is_noticed(folder: Path, signer: Ed25519PrivateKey, change: str) -> None:
    found = verify.verify(folder / "ledger.jsonl")
    CHANGES[change](folder)
    noticed(folder, signer, Anchor(found.entries, found.head))


def test_a_segment_that_cannot_be_read_is_one_sentence(open_ledger: Open, path: Path, public: str) -> None:
    written(open_ledger, 30)
    archived(path)[0].unlink()
    (path.with_suffix(".segments") / "000001.jsonl").mkdir()
    for look in (verify.verify, verify.verify_newest, lambda *_: open_ledger()):
        with pytest.raises(StateUnreadable, match=r"000001\.jsonl"):
            look(path, public)


def test_a_refusal_names_the_segment_its_entries_and_a_remedy(folder: Path, signer: Ed25519PrivateKey) -> None:
    archived(folder / "ledger.jsonl")[1].unlink()
    with pytest.raises(LedgerBroken) as refusal:
        Ledger(folder / "ledger.jsonl", signer, lambda: datetime.now(UTC))
    assert str(refusal.value).startswith("ledger.segments/000002.jsonl, which holds entries ")
    assert "is missing; " in str(refusal.value)
    assert str(folder) not in str(refusal.value)


# ---- ten years


def entry_of_a_poll(signer: Ed25519PrivateKey) -> dict[str, Any]:
    return {
        **{"bytes": 93, "decision": "allowed", "dest": "hub.example:8443", "fields": {"state": "choice"}},
        **{"key": signer.public_key().public_bytes_raw().hex(), "rpc": "Rounds/Poll", "rule": "call, fields"},
        **{"sha256": "ab" * 32, "utc": "2026-11-23T09:00:00.000000+00:00"},
    }


def ten_years(path: Path, signer: Ed25519PrivateKey, newest_bytes: int) -> int:
    """Write a ledger as ten years of polls leave it, some 4 GB, sparse but for segments' ends; returns its length."""
    entry = entry_of_a_poll(signer)
    segments, per_segment = 1000, 8000
    folder = path.with_suffix(".segments")
    folder.mkdir(parents=True)
    seq, head, list_head, lines = 0, START[1], START[1], []
    for number in range(1, segments + 1):
        first, seq = seq + 1, seq + per_segment
        line = canonical(CHAIN.signed(entry | {"seq": seq, "prev_hash": head}, signer))
        head = line_hash(line)
        with (folder / f"{number:06}.jsonl").open("wb") as file:
            file.seek(SEGMENT_BYTES - len(line) - 2)
            file.write(b"\n" + line + b"\n")
        facts = {"first": first, "last": seq, "head": head, "size_bytes": SEGMENT_BYTES, "sha256": "cd" * 32}
        facts |= {"seq": number, "prev_hash": list_head, "key": entry["key"], "utc": entry["utc"]}
        lines.append(canonical(LIST_CHAIN.signed(facts, signer)))
        list_head = line_hash(lines[-1])
    (folder / "segments.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with path.open("wb") as file:
        while file.tell() < newest_bytes:
            seq += 1
            line = canonical(CHAIN.signed(entry | {"seq": seq, "prev_hash": head}, signer))
            head = line_hash(line)
            file.write(line + b"\n")
    return seq


def bytes_read() -> int:
    (rchar,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")]
    return int(rchar.split()[1])


def test_a_start_after_ten_years_reads_the_newest_segment_and_the_ends_of_the_others(
    path: Path, signer: Ed25519PrivateKey
) -> None:
    newest_bytes = SEGMENT_BYTES // 8
    entries = ten_years(path, signer, newest_bytes)
    total = sum(file.stat().st_size for file in archived(path))
    before = bytes_read()
    ledger = Ledger(path, signer, lambda: datetime.now(UTC))
    read_bytes = bytes_read() - before
    assert ledger.entries == entries > 8_000_000
    assert total > 4e9
    # The newest file and the list once, and twice 4 KiB of each segment: its last two newlines.
    listed_bytes = (path.with_suffix(".segments") / "segments.jsonl").stat().st_size
    assert read_bytes < 2 * newest_bytes + listed_bytes + len(archived(path)) * 9000 < total / 300
    ledger.append(message(1))
    ledger.close()
