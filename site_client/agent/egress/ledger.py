"""The egress ledger: a line for every message before it leaves, each line hashed into the next and signed by this site.

Canonical JSON, one object a line:

    seq        1, 2, 3 ...
    utc        time, by this machine's clock
    dest       destination, host:port
    rpc        Service/Method
    bytes      length of the serialized message; beside it TLS and HTTP/2 add what docs/HOSPITAL.md states
    sha256     of the serialized message
    fields     name and length of each field that is set; never a value
    decision   "allowed": it left, or was about to when the machine stopped. "refused": the guard kept it here.
               "dry_run": the guard passed it, and policy.dry_run kept it here. "repaired": no message; a line that a
               crash left unfinished was cut
    rule       the guard's checks, or its refusal
    key        Ed25519 public key that signs this line: the site's own, or one it had before it joined anew
    prev_hash  SHA-256 of the line before, signature included, newline not; 64 zeros at the start
    sig        Ed25519 over "hemofed ledger v1" || 0x00 || the object without `sig`

`chained_file` has the form of the lines, which the privacy ledger shares. `segments` says how old entries are archived.

The number of entries and the head travel with every poll. So the aggregator's audit shows a ledger whose end was cut
off, which the chain alone cannot; and the aggregator's answer tells this site (`rounds/rollback.py`).
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from site_client.agent.chained_file import START, Chain, ChainedFile, Position, canonical, line_hash
from site_client.agent.egress.segments import LIST_CHAIN, Segments
from site_client.errors import LedgerBroken

CHAIN: Final = Chain("egress ledger", "hemofed ledger v1")
SEGMENT_BYTES: Final = 4 << 20  # some 8,000 entries, three days of polls; a start verifies at most so many
_KEYS: Final = {
    *("seq", "utc", "dest", "rpc", "bytes", "sha256", "fields", "decision", "rule", "key", "prev_hash", "sig"),
}


class EgressDecision(StrEnum):
    """The decision in an entry; the module's docstring explains each."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    DRY_RUN = "dry_run"
    REPAIRED = "repaired"


@dataclass(frozen=True)
class Entry:
    """One line."""

    seq: int
    utc: datetime
    dest: str
    rpc: str
    size_bytes: int
    sha256: str  # hex
    fields: dict[str, str]
    decision: EgressDecision
    rule: str
    key: str  # hex
    prev_hash: str  # hex
    sig: str  # hex

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Entry":
        """Read an entry as it stands in the file.

        Raises:
            ValueError: A value is of another form.
            KeyError: A key is missing.
        """
        return cls(
            seq=record["seq"],
            utc=datetime.fromisoformat(record["utc"]),
            dest=record["dest"],
            rpc=record["rpc"],
            size_bytes=record["bytes"],
            sha256=record["sha256"],
            fields=record["fields"],
            decision=EgressDecision(record["decision"]),
            rule=record["rule"],
            key=record["key"],
            prev_hash=record["prev_hash"],
            sig=record["sig"],
        )

    @property
    def left(self) -> bool:
        """Whether the message left."""
        return self.decision is EgressDecision.ALLOWED

    def record(self) -> dict[str, Any]:
        """Return the entry as it stands in the file."""
        return {
            "seq": self.seq,
            "utc": self.utc.astimezone(UTC).isoformat(timespec="microseconds"),
            "dest": self.dest,
            "rpc": self.rpc,
            "bytes": self.size_bytes,
            "sha256": self.sha256,
            "fields": self.fields,
            "decision": self.decision,
            "rule": self.rule,
            "key": self.key,
            "prev_hash": self.prev_hash,
            "sig": self.sig,
        }

    def line(self) -> bytes:
        """Return the canonical JSON, without a newline."""
        return canonical(self.record())

    def hash(self) -> str:
        """Return the SHA-256 of the line, in hex: the `prev_hash` of the next entry."""
        return line_hash(self.line())

    def is_authentic(self) -> bool:
        """Whether `key` signed the rest of the entry."""
        return CHAIN.is_authentic(self.record())


@dataclass(frozen=True)
class Outgoing:
    """A message that is about to leave, or was refused, with the guard's decision."""

    dest: str
    rpc: str
    data: bytes
    fields: dict[str, str]
    decision: EgressDecision
    rule: str


class Ledger:
    """The ledger, open for appending by one process.

    Opening verifies every entry since the last sealed segment and the newest signature, which covers everything before
    it. Of each sealed segment it compares length and last entry; `check_next_segment` compares the rest.
    """

    def __init__(
        self,
        path: Path,
        signer: Ed25519PrivateKey,
        clock: Callable[[], datetime],
        *,
        joining: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Lock and verify the ledger. A sealing that a crash interrupted is completed.

        A last line without its newline never belonged to a message that left: it is cut, and an entry records that.

        Args:
            path: The file, made when it does not exist.
            signer: The site's signing key.
            clock: Aware time.
            joining: The ledger may end with another key's signature, of the identity that this host had before.
            segment_bytes: A file that has reached this length is sealed before the next entry.

        Raises:
            LedgerBroken: An entry does not verify, or a sealed segment is not as it was.
            InUse: Another process has the ledger open.
        """
        self._path, self._signer, self._clock, self._segment_bytes = path, signer, clock, segment_bytes
        self._archive = Segments(path, CHAIN)
        self._next_check = 0
        self._file = ChainedFile(path, CHAIN, signer, clock, joining=joining, after=self._sealed)
        self.key, torn = self._file.key, self._file.torn
        self.repaired_bytes = len(torn)
        try:
            if self._is_pending:
                self._keep_newest()
            if torn:
                why = f"cut an unfinished line of {len(torn)} bytes; the message it was for did not leave"
                # The cut is an entry of its own, so that an auditor sees that bytes were removed, and which.
                self.append(Outgoing("", "", torn, {}, EgressDecision.REPAIRED, why))
        except BaseException:
            self.close()
            raise

    @property
    def entries(self) -> int:
        """Number of entries."""
        return self._file.entries

    @property
    def head(self) -> str:
        """Hash of the newest entry, in hex."""
        return self._file.head

    def append(self, outgoing: Outgoing) -> Entry:
        """Record a message. The entry is on disk when this returns.

        Raises:
            OSError: The disk is full, and nothing was recorded.
        """
        if self._is_pending:
            self._keep_newest()
        elif self._file.size_bytes >= self._segment_bytes:
            self._seal()
        facts = {
            "dest": outgoing.dest,
            "rpc": outgoing.rpc,
            "bytes": len(outgoing.data),
            "sha256": hashlib.sha256(outgoing.data).hexdigest(),
            "fields": outgoing.fields,
            "decision": outgoing.decision,
            "rule": outgoing.rule,
        }
        return Entry.of(self._file.append(facts))

    def had(self, entries: int, head: str) -> bool:
        """Whether this ledger had the head `head` (hex) when it had so many entries.

        Raises:
            LedgerBroken: The sealed segment that tells is missing, or was changed.
        """
        if entries >= self.entries:
            return (entries, head) == (self.entries, self.head)
        # The line after holds it.
        file = self._path
        for segment in self._segments:
            if segment.first <= entries + 1 <= segment.last:
                self._archive.check_digest(segment)
                file = self._archive.file_of(segment)
        return str(CHAIN.line_of(file, entries + 1)["prev_hash"]) == head

    def check_next_segment(self) -> None:
        """Compare one sealed segment with its digest, at each call the next one, until all were compared.

        Raises:
            LedgerBroken: The segment is missing, or was changed. The next call looks at it again.
        """
        if self._next_check < len(self._segments):
            self._archive.check_digest(self._segments[self._next_check])
            self._next_check += 1

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def _sealed(self) -> Position:
        self._segments = self._archive.listed()
        kept = self._archive.kept(self._segments)
        self._is_pending = len(kept) < len(self._segments)
        self._archive.check_shapes(kept)
        return kept[-1].end if kept else START

    def _seal(self) -> None:
        # Under any key that this host had: the newest entries vouch for the heads of all segments.
        path = self._archive.list_path()
        with closing(ChainedFile(path, LIST_CHAIN, self._signer, self._clock, joining=True)) as signed_list:
            self._segments.append(self._archive.add(self._file, signed_list))
        self._is_pending = True
        self._keep_newest()

    def _keep_newest(self) -> None:
        newest = self._segments[-1]
        # A file that was changed after its line was signed is not archived.
        if newest.end != (self._file.entries, self._file.head):
            raise CHAIN.broken(min(newest.last, self._file.entries) + 1)
        self._archive.keep(newest, self._file)
        self._is_pending = False


def read(path: Path, since: int = 1) -> Iterator[Entry]:
    """Yield every entry, oldest first, each checked against the one before; an unfinished last line is left out.

    Args:
        path: The file that grows; its segments are beside it.
        since: Entries before the segment that holds this one are left out.

    Signatures are not checked here; `verify.verify` checks them.

    Raises:
        LedgerBroken: An entry is malformed, or not chained to the one before; or a segment is missing.
    """
    for record, line in Segments(path, CHAIN).lines(since):
        seq = int(record["seq"])
        try:
            entry = Entry.of(record)
            # Also of the values: a time in another zone would be another line.
            if set(record) != _KEYS or entry.line() != line:
                raise broken(seq)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise broken(seq) from error
        yield entry


def broken(seq: int) -> LedgerBroken:
    """Return the error about the entry `seq`."""
    return CHAIN.broken(seq)
