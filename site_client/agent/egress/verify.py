"""Verification of the egress ledger, for people at the hospital and their auditors. Changes nothing.

It works while the agent runs and while it does not, on this machine, or on another one with the exported file and the
site's public key.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from site_client.agent.chained_file import GENESIS
from site_client.agent.egress import payloads
from site_client.agent.egress.ledger import CHAIN, EgressDecision, Entry, broken, read
from site_client.agent.egress.segments import Segments
from site_client.errors import LedgerBroken


@dataclass(frozen=True)
class Anchor:
    """A head that was recorded elsewhere: at the aggregator, or in last month's report."""

    entries: int
    head: str  # hex

    @classmethod
    def parse(cls, text: str) -> "Anchor":
        """Read "<entries>:<head>".

        Raises:
            ValueError: `text` is not of this form.
        """
        entries, _, head = text.partition(":")
        if len(bytes.fromhex(head)) != 32 or int(entries) < 0:
            raise ValueError("expected <entries>:<64 hex digits>")
        return cls(int(entries), head.lower())


@dataclass(frozen=True)
class Verified:
    """An unbroken ledger. `keys`: first entry and key of each signer; several when the host has joined again."""

    entries: int
    segments: int  # sealed files among those that were read
    head: str  # hex
    first_at: datetime | None
    last_at: datetime | None
    allowed: int
    refused: int
    dry_run: int  # would have left
    repaired: int
    bytes_out: int  # of the messages that left
    keys: tuple[tuple[int, str], ...]
    unfinished: bool  # the last line is not whole: the agent is writing it, or will cut it at its next start


@dataclass(frozen=True)
class DayTotal:
    """All that left for one address on one day (UTC): figures to compare with a proxy's log."""

    day: date
    dest: str
    messages: int
    bytes_out: int


def verify(path: Path, key: str | None = None, anchor: Anchor | None = None) -> Verified:
    """Verify every line, link and signature, through all segments.

    Args:
        path: The file that grows, or an exported ledger.
        key: Hex of the Ed25519 public key that must have signed the newest entry; None on a machine without it.
        anchor: Number of entries and head that the ledger must have had.

    Raises:
        LedgerBroken: An entry does not verify, and the error names the first; or a segment is missing.
    """
    archive = Segments(path, CHAIN)
    # Listed first: a segment that a running agent adds meanwhile is read, and its digest is compared next time.
    segments = archive.kept(archive.listed())
    counts = _Counts()
    for entry in read(path):
        # Every signature, although the newest covers all lines: an auditor learns which line was changed first.
        if not entry.is_authentic():
            raise broken(entry.seq)
        counts.add(entry)
        # An attacker with the site's key can sign a new chain; only a head recorded elsewhere shows that.
        if anchor is not None and entry.seq == anchor.entries and counts.head != anchor.head:
            raise broken(entry.seq)
    if key is not None and counts.keys and counts.keys[-1][1] != key:
        raise _of_another_key(counts.keys[-1][0])
    if anchor is not None and counts.entries < anchor.entries:
        raise LedgerBroken(
            f"expected {anchor.entries} entries or more in the egress ledger, got {counts.entries}: its end was cut "
            "off",
            counts.entries + 1,
        )
    # After the entries, which name what was changed more exactly.
    for segment in segments:
        archive.check_digest(segment)
    return counts.verified(len(segments), _is_unfinished(path))


def verify_newest(path: Path, key: str) -> tuple[int, int]:
    """Verify the entries since the last sealed segment line by line, and the segments by their digests.

    This takes seconds where `verify` takes minutes. It finds every change too, and names the segment.

    Returns:
        The number of entries, and that of segments.

    Raises:
        LedgerBroken: An entry or a segment does not verify.
    """
    archive = Segments(path, CHAIN)
    segments = archive.kept(archive.listed())
    for segment in segments:
        archive.check_digest(segment)
    entries, signer = (segments[-1].last, segments[-1].key.hex()) if segments else (0, key)
    for entry in read(path, since=entries + 1):
        if not entry.is_authentic():
            raise broken(entry.seq)
        entries, signer = entry.seq, entry.key
    if signer != key:
        raise _of_another_key(entries)
    return entries, len(segments)


def check_payloads(path: Path, folder: Path) -> int:
    """Compare every kept payload with the SHA-256 in its entry.

    Returns:
        The number of kept payloads.

    Raises:
        LedgerBroken: A payload is not the recorded one; the error names its entry.
    """
    # Payloads first: a running agent appends to the ledger before the payload, so the ledger then holds all of them.
    digests = {seq: hashlib.sha256(data).hexdigest() for seq, data in payloads.kept(folder)}
    recorded = {
        entry.seq: entry.sha256
        for entry in read(path, since=min(digests, default=2**63))
        if entry.left or entry.decision is EgressDecision.DRY_RUN
    }
    for seq, digest in digests.items():
        if recorded.get(seq) != digest:
            raise LedgerBroken(f"the payload kept for entry {seq} is not what the ledger recorded", seq)
    return len(digests)


def totals(entries: Iterable[Entry]) -> list[DayTotal]:
    """Count messages and bytes that left, by day and address, oldest first."""
    sums: dict[tuple[date, str], list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries:
        if entry.left:
            total = sums[(entry.utc.date(), entry.dest)]
            total[0] += 1
            total[1] += entry.size_bytes
    return [DayTotal(day, dest, *sums[(day, dest)]) for day, dest in sorted(sums)]


def newest(path: Path, count: int) -> list[Entry]:
    """Return the last `count` entries, oldest first."""
    segments = Segments(path, CHAIN).listed()
    entries = deque(read(path, since=segments[-1].last + 1 if segments else 1), maxlen=count)
    missing = count - len(entries)
    if missing > 0 and segments:
        entries = deque(read(path, since=max(1, segments[-1].last + 1 - missing)), maxlen=count)
    return list(entries)


def first_since(path: Path, moment: datetime) -> int:
    """Return the first entry of the oldest segment that was sealed at `moment` or later."""
    first = 1
    for segment in Segments(path, CHAIN).listed():
        if segment.utc >= moment:
            return segment.first
        first = segment.last + 1
    return first


def find_entry(path: Path, seq: int) -> Entry | None:
    """Return one entry; None when there is none of this number.

    Raises:
        LedgerBroken: The segment with this entry does not verify up to there.
    """
    return next((entry for entry in read(path, since=seq) if entry.seq == seq), None)


def lines(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of all segments, as they stand, each with its newline."""
    for entry in read(path):
        yield entry.line() + b"\n"


class _Counts:
    """Counts the entries of one pass over the ledger."""

    def __init__(self) -> None:
        self.entries, self.head = 0, GENESIS
        self.keys: list[tuple[int, str]] = []
        self._first: datetime | None = None
        self._last: datetime | None = None
        self._by_decision: dict[EgressDecision, int] = defaultdict(int)
        self._bytes_out = 0

    def add(self, entry: Entry) -> None:
        self.entries, self.head = entry.seq, entry.hash()
        if not self.keys or self.keys[-1][1] != entry.key:
            self.keys.append((entry.seq, entry.key))
        self._first, self._last = self._first or entry.utc, entry.utc
        self._by_decision[entry.decision] += 1
        self._bytes_out += entry.size_bytes if entry.left else 0

    def verified(self, segments: int, unfinished: bool) -> Verified:
        return Verified(
            entries=self.entries,
            segments=segments,
            head=self.head,
            first_at=self._first,
            last_at=self._last,
            allowed=self._by_decision[EgressDecision.ALLOWED],
            refused=self._by_decision[EgressDecision.REFUSED],
            dry_run=self._by_decision[EgressDecision.DRY_RUN],
            repaired=self._by_decision[EgressDecision.REPAIRED],
            bytes_out=self._bytes_out,
            keys=tuple(self.keys),
            unfinished=unfinished,
        )


def _of_another_key(seq: int) -> LedgerBroken:
    return LedgerBroken("the newest entries of the egress ledger are signed by a key that is not this site's", seq)


def _is_unfinished(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
