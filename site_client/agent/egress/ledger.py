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

`chained_file` has the form of the lines, which the privacy ledger shares.

The number of entries and the head travel with every poll. So the aggregator's audit shows a ledger whose end was cut
off, which the chain alone cannot; and the aggregator's answer tells this site (`rounds/rollback.py`).
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from site_client.agent.chained_file import Chain, ChainedFile, canonical, line_hash
from site_client.errors import LedgerBroken

CHAIN: Final = Chain("egress ledger", "hemofed ledger v1")
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
    """The file, open for appending by one process.

    Opening verifies the whole chain and the newest signature, which covers everything before it.
    """

    def __init__(
        self, path: Path, signer: Ed25519PrivateKey, clock: Callable[[], datetime], *, joining: bool = False
    ) -> None:
        """Lock and verify the file.

        A last line without its newline never belonged to a message that left: it is cut, and an entry records that.

        Args:
            path: The file, made when it does not exist.
            signer: The site's signing key.
            clock: Aware time.
            joining: The ledger may end with another key's signature, of the identity that this host had before.

        Raises:
            LedgerBroken: An entry does not verify.
            InUse: Another process has the ledger open.
        """
        self._path = path
        self._file = ChainedFile(path, CHAIN, signer, clock, joining=joining)
        self.key, torn = self._file.key, self._file.torn
        self.repaired_bytes = len(torn)
        if torn:
            why = f"cut an unfinished line of {len(torn)} bytes; the message it was for did not leave"
            # The cut is an entry of its own, so that an auditor sees that bytes were removed, and which.
            try:
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
        """Whether this ledger had the head `head` (hex) when it had so many entries."""
        if entries >= self.entries:
            return (entries, head) == (self.entries, self.head)
        # The line after holds it.
        return str(CHAIN.line_of(self._path, entries + 1)["prev_hash"]) == head

    def close(self) -> None:
        """Release the lock."""
        self._file.close()


def read(path: Path) -> Iterator[Entry]:
    """Yield every entry, oldest first, each checked against the one before; an unfinished last line is left out.

    Signatures are not checked here; `verify.verify` checks them.

    Raises:
        LedgerBroken: An entry is malformed, or not chained to the one before.
    """
    for seq, (record, line) in enumerate(CHAIN.lines(path), 1):
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
