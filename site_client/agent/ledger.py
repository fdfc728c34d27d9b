"""The egress ledger: a line for every message before it leaves, each line sealed by the next.

Canonical JSON, one object a line: {seq, utc, rpc, bytes, sha256, fields, prev_hash}. `fields` names what is set and
how long it is, never a value. `prev_hash` is the SHA-256 of the line before, without its newline; 64 zeros at the
start. The number of entries and the head travel with every poll, so that the aggregator's audit shows a ledger whose
end was cut off, which the chain alone cannot.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from site_client.errors import LedgerBroken

GENESIS = "0" * 64
_KEYS = {"seq", "utc", "rpc", "bytes", "sha256", "fields", "prev_hash"}


@dataclass(frozen=True)
class Entry:
    """One message that left, or was about to when the machine stopped."""

    seq: int  # 1..
    utc: datetime
    rpc: str  # Service/Method
    size_bytes: int
    sha256: str  # of the serialized message, hex
    fields: dict[str, str]
    prev_hash: str

    def line(self) -> bytes:
        """The canonical JSON, without a newline."""
        record = {
            "seq": self.seq,
            "utc": self.utc.astimezone(UTC).isoformat(timespec="microseconds"),
            "rpc": self.rpc,
            "bytes": self.size_bytes,
            "sha256": self.sha256,
            "fields": self.fields,
            "prev_hash": self.prev_hash,
        }
        return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


class Ledger:
    """The file, open for appending. Opening verifies the whole chain; one process at a time."""

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        """Errors: LedgerBroken. A last line without its newline never belonged to a message that left: it is cut."""
        self._clock = clock
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _cut_unfinished_line(path)
        self.entries, self.head = verify(path)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, rpc: str, message: Message, data: bytes) -> Entry:
        """Records that `data`, the serialized `message`, is about to leave; on disk when this returns."""
        digest = hashlib.sha256(data).hexdigest()
        entry = Entry(self.entries + 1, self._clock(), rpc, len(data), digest, summary(message), self.head)
        line = entry.line()
        os.write(self._handle, line + b"\n")
        os.fsync(self._handle)
        self.entries, self.head = entry.seq, hashlib.sha256(line).hexdigest()
        return entry

    def close(self) -> None:
        os.close(self._handle)


def read(path: Path) -> Iterator[Entry]:
    """Every entry, oldest first, each checked against the one before. Errors: LedgerBroken."""
    seq, head = 0, GENESIS
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            seq += 1
            entry = _entry(line.removesuffix(b"\n"), seq)
            if entry.seq != seq or entry.prev_hash != head or entry.line() != line.removesuffix(b"\n"):
                raise _broken(seq)
            head = hashlib.sha256(entry.line()).hexdigest()
            yield entry


def verify(path: Path) -> tuple[int, str]:
    """Number of entries and head (hex) of an unbroken ledger. Errors: LedgerBroken."""
    seq, head = 0, GENESIS
    for entry in read(path):
        seq, head = entry.seq, hashlib.sha256(entry.line()).hexdigest()
    return seq, head


def summary(message: Message, prefix: str = "") -> dict[str, str]:
    """Which fields are set, and how long: names, types, counts. No value."""
    found: dict[str, str] = {}
    for field, value in message.ListFields():
        name = prefix + field.name
        if field.is_repeated:
            found[name] = f"{len(value)} x {_type_name(field)}"
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            found |= summary(value, f"{name}.")
        else:
            found[name] = f"{_type_name(field)}[{len(value)}]" if isinstance(value, bytes | str) else _type_name(field)
    return found


def _type_name(field: FieldDescriptor) -> str:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return str(field.message_type.name) if field.message_type else "message"
    return _SCALARS.get(field.type, "number")


_SCALARS: dict[int, str] = {
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "flag",
    FieldDescriptor.TYPE_ENUM: "choice",
}


def _entry(line: bytes, seq: int) -> Entry:
    try:
        record: dict[str, Any] = json.loads(line)
        if set(record) != _KEYS:
            raise _broken(seq)
        utc = datetime.fromisoformat(record["utc"])
        return Entry(
            record["seq"], utc, record["rpc"], record["bytes"], record["sha256"], record["fields"], record["prev_hash"]
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise _broken(seq) from error


def _broken(seq: int) -> LedgerBroken:
    return LedgerBroken(
        f"the egress ledger does not verify at entry {seq}: it was changed outside the agent. Keep the file for who "
        "has to look into it, and restore it from the backup",
        seq,
    )


def _cut_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = file.read()
        kept = whole.rfind(b"\n") + 1
        if kept != len(whole):
            file.truncate(kept)
            file.flush()
            os.fsync(file.fileno())
