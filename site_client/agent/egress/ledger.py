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

The number of entries and the head travel with every poll. So the aggregator's audit shows a ledger whose end was cut
off, which the chain alone cannot; and the aggregator's answer tells this site (`rounds/rollback.py`).
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from site_client.errors import InUse, LedgerBroken
from site_client.files import append_whole, belongs_with_its_folder, private_folder

GENESIS = "0" * 64
# Domain separation: a signature over a ledger line is never one over another kind of message.
_DOMAIN = b"hemofed ledger v1\x00"
_KEYS = {
    *("seq", "utc", "dest", "rpc", "bytes", "sha256", "fields", "decision", "rule", "key", "prev_hash", "sig"),
}
_HEX = re.compile(r"[0-9a-f]+")


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
    sig: str = ""  # hex

    @property
    def left(self) -> bool:
        """Whether the message left."""
        return self.decision is EgressDecision.ALLOWED

    def record(self) -> dict[str, Any]:
        """Return the entry as it stands in the file."""
        return self._unsigned() | {"sig": self.sig}

    def line(self) -> bytes:
        """Return the canonical JSON, without a newline."""
        return _canonical(self.record())

    def hash(self) -> str:
        """Return the SHA-256 of the line, in hex: the `prev_hash` of the next entry."""
        return hashlib.sha256(self.line()).hexdigest()

    def signed_by(self, signer: Ed25519PrivateKey) -> "Entry":
        """Return the entry with its signature."""
        return replace(self, sig=signer.sign(self._to_sign()).hex())

    def is_authentic(self) -> bool:
        """Whether `key` signed the rest of the entry."""
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key)).verify(bytes.fromhex(self.sig), self._to_sign())
        except (InvalidSignature, ValueError):
            return False
        return True

    def _to_sign(self) -> bytes:
        return _DOMAIN + _canonical(self._unsigned())

    def _unsigned(self) -> dict[str, Any]:
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
        }


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
            path: the file, made when it does not exist.
            signer: the site's signing key.
            clock: aware time.
            joining: the ledger may end with another key's signature, of the identity that this host had before.

        Raises:
            LedgerBroken: an entry does not verify.
            InUse: another process has the ledger open.
        """
        self._signer, self._clock, self._path = signer, clock, path
        self.key = signer.public_key().public_bytes_raw().hex()
        private_folder(path.parent)
        # O_APPEND: the kernel writes every line at the end of the file, so none can be overwritten.
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        belongs_with_its_folder(self._handle, path)
        try:
            # Locked before it is read: two writers would both continue from the same head.
            _lock(self._handle)
            torn = _cut_unfinished_line(self._handle)
            self.entries, self.head = self._check(path, joining)
        except BaseException:
            os.close(self._handle)
            raise
        self.repaired_bytes = len(torn)
        if torn:
            why = f"cut an unfinished line of {len(torn)} bytes; the message it was for did not leave"
            # The cut is an entry of its own, so that an auditor sees that bytes were removed, and which.
            self.append(Outgoing("", "", torn, {}, EgressDecision.REPAIRED, why))

    def append(self, outgoing: Outgoing) -> Entry:
        """Record a message. The entry is on disk when this returns.

        Raises:
            OSError: the disk is full, and nothing was recorded.
        """
        entry = Entry(
            seq=self.entries + 1,
            utc=self._clock(),
            dest=outgoing.dest,
            rpc=outgoing.rpc,
            size_bytes=len(outgoing.data),
            sha256=hashlib.sha256(outgoing.data).hexdigest(),
            fields=outgoing.fields,
            decision=outgoing.decision,
            rule=outgoing.rule,
            key=self.key,
            prev_hash=self.head,
        ).signed_by(self._signer)
        line = entry.line()
        # Synced before the message leaves: after a power cut the ledger still holds everything that left.
        append_whole(self._handle, "ledger line", line, b"\n", durably=True)
        # Only after the write: a full disk must not advance the chain.
        self.entries, self.head = entry.seq, hashlib.sha256(line).hexdigest()
        return entry

    def had(self, entries: int, head: str) -> bool:
        """Whether this ledger had the head `head` (hex) when it had so many entries."""
        if entries >= self.entries:
            return (entries, head) == (self.entries, self.head)
        # The line after holds it.
        return str(_line_of(self._path, entries + 1)["prev_hash"]) == head

    def close(self) -> None:
        """Release the lock."""
        os.close(self._handle)

    def _check(self, path: Path, joining: bool) -> tuple[int, str]:
        last: Entry | None = None
        for entry in read(path):
            last = entry
        if last is None:
            return 0, GENESIS
        # One signature suffices at the start: it covers the hash of the line before, and so every line.
        if not last.is_authentic() or (last.key != self.key and not joining):
            raise broken(last.seq)
        return last.seq, last.hash()


def read(path: Path) -> Iterator[Entry]:
    """Yield every entry, oldest first, each checked against the one before; an unfinished last line is left out.

    Signatures are not checked here; `verify.verify` checks them.

    Raises:
        LedgerBroken: an entry is malformed, or not chained to the one before.
    """
    seq, head = 0, GENESIS
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            seq += 1
            entry = _entry(line[:-1], seq)
            if entry.seq != seq or entry.prev_hash != head:
                raise broken(seq)
            head = hashlib.sha256(line[:-1]).hexdigest()
            yield entry


def _line_of(path: Path, seq: int) -> dict[str, Any]:
    """Find the line of an entry by bisection: a ledger of years has millions of lines."""
    with path.open("rb") as file:
        low, high = 0, file.seek(0, os.SEEK_END)  # the line begins in [low, high)
        while low < high:
            middle = (low + high) // 2
            # To the first line that begins at `middle` or behind it.
            file.seek(max(0, middle - 1))
            if middle > 0:
                file.readline()
            begins, line = file.tell(), file.readline()
            if begins >= high:
                high = middle
                continue
            record: dict[str, Any] = json.loads(line)
            if record["seq"] == seq:
                return record
            low, high = (begins + len(line), high) if record["seq"] < seq else (low, middle)
    # The chain was verified when the ledger was opened, and only grows.
    raise broken(seq)


def broken(seq: int) -> LedgerBroken:
    """Return the error about the entry `seq`."""
    return LedgerBroken(
        f"the egress ledger does not verify at entry {seq}: it was changed outside the agent. Keep the file for the "
        "investigation, and restore it from the backup",
        seq,
    )


def _entry(line: bytes, seq: int) -> Entry:
    try:
        record: dict[str, Any] = json.loads(line)
        if set(record) != _KEYS or _HEX.fullmatch(record["sig"]) is None:
            raise broken(seq)
        entry = Entry(
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
        # Canonical: two spellings of one entry would have two hashes.
        if entry.line() != line:
            raise broken(seq)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise broken(seq) from error
    return entry


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InUse("another process of this site has the egress ledger open; stop it first") from error


def _cut_unfinished_line(handle: int) -> bytes:
    """Cut a last line without its newline, and return it; empty when the file ends with a whole line."""
    size = kept = os.fstat(handle).st_size
    while kept > 0:  # backwards in pieces: a ledger of years is not read for its last line
        step = min(65_536, kept)
        at = os.pread(handle, step, kept - step).rfind(b"\n")
        kept -= step
        if at >= 0:
            kept += at + 1
            break
    torn = os.pread(handle, size - kept, kept)
    if torn:
        os.ftruncate(handle, kept)
        os.fsync(handle)
    return torn
