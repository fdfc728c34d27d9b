"""The egress ledger: a line for every message before it leaves, each line sealed by the next and signed by this site.

Canonical JSON, one object a line:

    seq        1, 2, 3 ...
    utc        when, by this machine's clock
    dest       to whom, host:port
    rpc        Service/Method
    bytes      length of the serialized message; beside it TLS and HTTP/2 add what docs/HOSPITAL.md states
    sha256     of the serialized message
    fields     names of what is set, and how long it is; never a value
    decision   "allowed": it left, or was about to when the machine stopped. "refused": the guard kept it here.
               "dry_run": the guard passed it, and policy.dry_run kept it here. "repaired": no message; a line that a
               crash left unfinished was cut
    rule       what the guard checked, or why it refused
    key        Ed25519 public key that signs this line: the site's own, or one it had before it joined anew
    prev_hash  SHA-256 of the line before, signature included, newline not; 64 zeros at the start
    sig        Ed25519 over "hemofed ledger v1" || 0x00 || the object without `sig`

The number of entries and the head travel with every poll, so that the aggregator's audit shows a ledger whose end was
cut off, which the chain alone cannot.
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
_DOMAIN = b"hemofed ledger v1\x00"
_KEYS = {
    *("seq", "utc", "dest", "rpc", "bytes", "sha256", "fields", "decision", "rule", "key", "prev_hash", "sig"),
}
_HEX = re.compile(r"[0-9a-f]+")


class EgressDecision(StrEnum):
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
        """Whether it was let go."""
        return self.decision is EgressDecision.ALLOWED

    def record(self) -> dict[str, Any]:
        """As it stands in the file."""
        return self._unsigned() | {"sig": self.sig}

    def line(self) -> bytes:
        """The canonical JSON, without a newline."""
        return _canonical(self.record())

    def hash(self) -> str:
        return hashlib.sha256(self.line()).hexdigest()

    def signed_by(self, signer: Ed25519PrivateKey) -> "Entry":
        return replace(self, sig=signer.sign(self._to_sign()).hex())

    def is_authentic(self) -> bool:
        """Whether `key` signed all the rest."""
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
    """What is about to leave, or was kept from leaving, and what the guard said to it."""

    dest: str
    rpc: str
    data: bytes
    fields: dict[str, str]
    decision: EgressDecision
    rule: str


class Ledger:
    """The file, open for appending by one process. Opening verifies the whole chain and the newest signature, which
    covers everything before it."""

    def __init__(
        self, path: Path, signer: Ed25519PrivateKey, clock: Callable[[], datetime], *, joining: bool = False
    ) -> None:
        """A last line without its newline never belonged to a message that left: it is cut, and an entry says so.

        joining: the ledger may end with another key's signature, of the identity this host had before.
        Errors: LedgerBroken; InUse when another process has it open.
        """
        self._signer, self._clock = signer, clock
        self._key = signer.public_key().public_bytes_raw().hex()
        private_folder(path.parent)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        belongs_with_its_folder(self._handle, path)
        try:
            _lock(self._handle)
            torn = _cut_unfinished_line(self._handle)
            self.entries, self.head = self._check(path, joining)
        except BaseException:
            os.close(self._handle)
            raise
        self.repaired_bytes = len(torn)
        if torn:
            why = f"cut an unfinished line of {len(torn)} bytes; the message it was for did not leave"
            self.append(Outgoing("", "", torn, {}, EgressDecision.REPAIRED, why))

    def append(self, outgoing: Outgoing) -> Entry:
        """Records it; on disk when this returns. Errors: OSError when the disk is full, and nothing is recorded."""
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
            key=self._key,
            prev_hash=self.head,
        ).signed_by(self._signer)
        line = entry.line()
        append_whole(self._handle, "ledger line", line, b"\n", durably=True)
        self.entries, self.head = entry.seq, hashlib.sha256(line).hexdigest()
        return entry

    def close(self) -> None:
        os.close(self._handle)

    def _check(self, path: Path, joining: bool) -> tuple[int, str]:
        last: Entry | None = None
        for entry in read(path):
            last = entry
        if last is None:
            return 0, GENESIS
        if not last.is_authentic() or (last.key != self._key and not joining):
            raise broken(last.seq)
        return last.seq, last.hash()


def read(path: Path) -> Iterator[Entry]:
    """Every entry, oldest first, each checked against the one before; an unfinished last line is left out.

    Signatures are not checked here: `audit.verify` does. Errors: LedgerBroken.
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


def broken(seq: int) -> LedgerBroken:
    return LedgerBroken(
        f"the egress ledger does not verify at entry {seq}: it was changed outside the agent. Keep the file for who "
        "has to look into it, and restore it from the backup",
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
        if entry.line() != line:
            raise broken(seq)
    except (ValueError, TypeError, AttributeError) as error:
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
    """What was cut; empty when the file ends with a whole line."""
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
