"""An append-only file of signed lines, each hashed into the next: the form that the ledgers of a site share.

A line is canonical JSON, one object. Beside the facts of its ledger it has

    seq        1, 2, 3 ...
    utc        time, by this machine's clock
    key        Ed25519 public key that signs this line: the site's own, or one it had before it joined anew
    prev_hash  SHA-256 of the line before, signature included, newline not; 64 zeros at the start
    sig        Ed25519 over the ledger's domain || 0x00 || the object without `sig`
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from site_client.errors import InUse, LedgerBroken, StateUnreadable
from site_client.files import DISK_ERRORS, append_whole, belongs_with_its_folder, private_folder

GENESIS = "0" * 64
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Chain:
    """The form of one ledger's lines.

    Attributes:
        name: Of the ledger, in messages.
        domain: Of its signatures; a signature over a line is then never one over another kind of message.
    """

    name: str
    domain: str

    def signed(self, record: dict[str, Any], signer: Ed25519PrivateKey) -> dict[str, Any]:
        """Return the record with its signature."""
        return record | {"sig": signer.sign(self._to_sign(record)).hex()}

    def is_authentic(self, record: dict[str, Any]) -> bool:
        """Whether `key` signed the rest of the record."""
        unsigned = {name: value for name, value in record.items() if name != "sig"}
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(record["key"]))
            key.verify(bytes.fromhex(record["sig"]), self._to_sign(unsigned))
        except (InvalidSignature, ValueError):
            return False
        return True

    def lines(self, path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield every record and its line without the newline, oldest first; an unfinished last line is left out.

        Each is checked against the one before. Signatures are not checked here.

        Raises:
            LedgerBroken: A line is malformed, or not chained to the one before.
        """
        seq, head = 0, GENESIS
        if not path.exists():
            return
        try:
            file = path.open("rb")
        except OSError as error:
            raise StateUnreadable.of(path.name, error) from error
        with file:
            for whole in file:
                if not whole.endswith(b"\n"):
                    return
                seq, line = seq + 1, whole[:-1]
                record = self._parsed(line, seq)
                if record["seq"] != seq or record["prev_hash"] != head:
                    raise self.broken(seq)
                head = line_hash(line)
                yield record, line

    def line_of(self, path: Path, seq: int) -> dict[str, Any]:
        """Find the record `seq` by bisection: a ledger of years has millions of lines.

        Raises:
            LedgerBroken: There is none.
        """
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
        raise self.broken(seq)

    def broken(self, seq: int) -> LedgerBroken:
        """Return the error about the entry `seq`."""
        return LedgerBroken(
            f"the {self.name} does not verify at entry {seq}: it was changed outside the agent. Keep the file for the "
            "investigation, and restore it from the backup",
            seq,
        )

    def _parsed(self, line: bytes, seq: int) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(line)
            # Canonical: two spellings of one entry would have two hashes.
            if canonical(record) != line or _HEX.fullmatch(record["sig"]) is None:
                raise self.broken(seq)
            _ = record["seq"], record["key"], record["prev_hash"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self.broken(seq) from error
        return record

    def _to_sign(self, record: dict[str, Any]) -> bytes:
        return self.domain.encode() + b"\x00" + canonical(record)


class ChainedFile:
    """A ledger's file, open for appending by one process.

    Opening verifies the whole chain and the newest signature, which covers everything before it.

    Attributes:
        key: Hex of the public key that signs new lines.
        entries: Number of lines.
        head: Hash of the newest, in hex.
        torn: The bytes of an unfinished last line that opening cut; empty without one.
    """

    def __init__(
        self,
        path: Path,
        chain: Chain,
        signer: Ed25519PrivateKey,
        clock: Callable[[], datetime],
        *,
        joining: bool = False,
    ) -> None:
        """Lock and verify the file.

        A last line without its newline never belonged to a message that left: it is cut.

        Args:
            path: The file, made when it does not exist.
            chain: The form of its lines.
            signer: The site's signing key.
            clock: Aware time.
            joining: The file may end with another key's signature, of the identity that this host had before.

        Raises:
            LedgerBroken: An entry does not verify.
            InUse: Another process has the file open.
            StateUnreadable: It is no file, or may not be written.
        """
        self._signer, self._clock, self._chain = signer, clock, chain
        self.key = signer.public_key().public_bytes_raw().hex()
        private_folder(path.parent)
        # O_APPEND: the kernel writes every line at the end of the file, so none can be overwritten.
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise
            raise StateUnreadable.of(path.name, error) from error
        belongs_with_its_folder(self._handle, path)
        try:
            # Locked before it is read: two writers would both continue from the same head.
            self._lock()
            self.torn = _cut_unfinished_line(self._handle)
            self.entries, self.head = self._check(path, joining)
        except BaseException:
            os.close(self._handle)
            raise

    def append(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Append a line with these facts. It is on disk when this returns.

        Returns:
            The record, as it stands in the file.

        Raises:
            OSError: The disk is full, and nothing was recorded.
        """
        record = self._chain.signed(
            facts
            | {
                "seq": self.entries + 1,
                "utc": self._clock().astimezone(UTC).isoformat(timespec="microseconds"),
                "key": self.key,
                "prev_hash": self.head,
            },
            self._signer,
        )
        line = canonical(record)
        # Synced before anything leaves: after a power cut the ledger still holds everything that left.
        append_whole(self._handle, "ledger line", line, b"\n", durably=True)
        # Only after the write: a full disk must not advance the chain.
        self.entries, self.head = self.entries + 1, line_hash(line)
        return record

    def close(self) -> None:
        """Release the lock."""
        os.close(self._handle)

    def _check(self, path: Path, joining: bool) -> tuple[int, str]:
        last: tuple[dict[str, Any], bytes] | None = None
        for line in self._chain.lines(path):
            last = line
        if last is None:
            return 0, GENESIS
        record, text = last
        # One signature suffices at the start: it covers the hash of the line before, and so every line.
        if not self._chain.is_authentic(record) or (record["key"] != self.key and not joining):
            raise self._chain.broken(record["seq"])
        return record["seq"], line_hash(text)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUse(f"another process of this site has the {self._chain.name} open; stop it first") from error


def canonical(record: dict[str, Any]) -> bytes:
    """Return canonical JSON, without a newline."""
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def line_hash(line: bytes) -> str:
    """Return the hash of a line without its newline, in hex: the `prev_hash` of the next."""
    return hashlib.sha256(line).hexdigest()


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
