"""Looking at the egress ledger: for people at the hospital, and whoever they show it to. Changes nothing.

Beside the agent or without it, on this machine or on another with the exported file and the site's public key.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from site_client.agent.egress import payloads
from site_client.agent.egress.ledger import GENESIS, EgressDecision, Entry, broken, read
from site_client.errors import LedgerBroken


@dataclass(frozen=True)
class Anchor:
    """A head that somebody else wrote down: the aggregator, or last month's report."""

    entries: int
    head: str  # hex

    @classmethod
    def parse(cls, text: str) -> "Anchor":
        """ "<entries>:<head>". Errors: ValueError."""
        entries, _, head = text.partition(":")
        if len(bytes.fromhex(head)) != 32 or int(entries) < 0:
            raise ValueError("expected <entries>:<64 hex digits>")
        return cls(int(entries), head.lower())


@dataclass(frozen=True)
class Verified:
    """An unbroken ledger. `keys`: who signed, and from which entry on; more than one when the host has joined anew."""

    entries: int
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
    """What left for one address on one day (UTC): the figures to hold against a proxy's log."""

    day: date
    dest: str
    messages: int
    bytes_out: int


def verify(path: Path, key: str | None = None, anchor: Anchor | None = None) -> Verified:
    """Every line, link and signature.

    key: hex of the Ed25519 public key that must have signed the newest entry; None on a machine that does not know it.
    anchor: an entry count and head that the ledger must have had.
    Errors: LedgerBroken, with the first entry that does not verify.
    """
    tally = _Counts()
    for entry in read(path):
        if not entry.is_authentic():
            raise broken(entry.seq)
        tally.add(entry)
        if anchor is not None and entry.seq == anchor.entries and tally.head != anchor.head:
            raise broken(entry.seq)
    if key is not None and tally.keys and tally.keys[-1][1] != key:
        raise LedgerBroken(
            "the newest entries of the egress ledger are signed by a key that is not this site's", tally.keys[-1][0]
        )
    if anchor is not None and tally.entries < anchor.entries:
        raise LedgerBroken(
            f"expected {anchor.entries} entries or more in the egress ledger, got {tally.entries}: its end was cut off",
            tally.entries + 1,
        )
    return tally.verified(_is_unfinished(path))


def check_payloads(path: Path, folder: Path) -> int:
    """Holds every payload still kept against its entry's SHA-256. Errors: LedgerBroken, with the entry."""
    held = {seq: hashlib.sha256(data).hexdigest() for seq, data in payloads.kept(folder)}
    recorded = {one.seq: one.sha256 for one in read(path) if one.left or one.decision is EgressDecision.DRY_RUN}
    for seq, digest in held.items():
        # A ledger that was read a moment after its payloads holds all of them.
        if recorded.get(seq) != digest:
            raise LedgerBroken(f"the payload kept for entry {seq} is not what the ledger recorded", seq)
    return len(held)


def totals(entries: Iterable[Entry]) -> list[DayTotal]:
    """Messages and bytes that left, by day and address, oldest first."""
    sums: dict[tuple[date, str], list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries:
        if entry.left:
            total = sums[(entry.utc.date(), entry.dest)]
            total[0] += 1
            total[1] += entry.size_bytes
    return [DayTotal(day, dest, *sums[(day, dest)]) for day, dest in sorted(sums)]


def newest(path: Path, count: int) -> list[Entry]:
    """The last `count` entries, oldest first."""
    found: list[Entry] = []
    for entry in read(path):
        found.append(entry)
        del found[:-count]
    return found


def entry(path: Path, seq: int) -> Entry | None:
    """One entry. Errors: LedgerBroken when the ledger does not verify up to there."""
    return next((one for one in read(path) if one.seq == seq), None)


def lines(path: Path) -> Iterator[bytes]:
    """The whole lines, as they stand, each with its newline."""
    for one in read(path):
        yield one.line() + b"\n"


class _Counts:
    def __init__(self) -> None:
        self.entries, self.head = 0, GENESIS
        self.keys: list[tuple[int, str]] = []
        self._first: datetime | None = None
        self._last: datetime | None = None
        self._counts: dict[str, int] = defaultdict(int)
        self._bytes_out = 0

    def add(self, one: Entry) -> None:
        self.entries, self.head = one.seq, one.hash()
        if not self.keys or self.keys[-1][1] != one.key:
            self.keys.append((one.seq, one.key))
        self._first, self._last = self._first or one.utc, one.utc
        self._counts[one.decision] += 1
        self._bytes_out += one.size_bytes if one.left else 0

    def verified(self, unfinished: bool) -> Verified:
        return Verified(
            entries=self.entries,
            head=self.head,
            first_at=self._first,
            last_at=self._last,
            allowed=self._counts["allowed"],
            refused=self._counts["refused"],
            dry_run=self._counts["dry_run"],
            repaired=self._counts["repaired"],
            bytes_out=self._bytes_out,
            keys=tuple(self.keys),
            unfinished=unfinished,
        )


def _is_unfinished(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
