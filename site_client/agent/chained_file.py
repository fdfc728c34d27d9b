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
from typing import Any, BinaryIO, Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from site_client.errors import InUse, LedgerBroken, StateUnreadable
from site_client.files import DISK_ERRORS, append_whole, belongs_with_its_folder, private_folder, sync_folder
from site_client.typed_json import HexBytes

GENESIS = "0" * 64
Position: TypeAlias = tuple[int, str]  # number of lines so far, and the hash of the newest in hex
START: Final[Position] = 0, GENESIS
_HEX: Final = re.compile(r"[0-9a-f]+")


class Signature(HexBytes):
    """An Ed25519 signature."""

    LENGTH = 64


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

    def lines(self, path: Path, after: Position = START) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield every record and its line without the newline, oldest first; an unfinished last line is left out.

        Each is checked against the one before. Signatures are not checked here.

        Args:
            path: The file; one that does not exist has no lines.
            after: The position that the first line continues.

        Raises:
            LedgerBroken: A line is malformed, or not chained to the one before.
            StateUnreadable: The file cannot be read.
        """
        file = open_to_read(path)
        if file is not None:
            with file:
                yield from self.lines_in(file, after)

    def lines_in(self, file: BinaryIO, after: Position) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the lines of an open file, as `lines` does."""
        seq, head = after
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
        after: The position that the first line continues.
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
        after: Callable[[], Position] = lambda: START,
    ) -> None:
        """Lock and verify the file.

        A last line without its newline never belonged to a message that left: it is cut.

        Args:
            path: The file, made when it does not exist.
            chain: The form of its lines.
            signer: The site's signing key.
            clock: Aware time.
            joining: The file may end with another key's signature, of the identity that this host had before.
            after: The position that the first line continues; called once the file is locked.

        Raises:
            LedgerBroken: An entry does not verify.
            InUse: Another process has the file open.
            StateUnreadable: It is no file, or may not be written.
        """
        self._path, self._signer, self._clock, self._chain = path, signer, clock, chain
        self.key = signer.public_key().public_bytes_raw().hex()
        self._is_name_synced = True
        private_folder(path.parent)
        try:
            self._handle = _open_to_append(path)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise
            raise StateUnreadable.of(path.name, error) from error
        try:
            # Locked before it is read: two writers would both continue from the same head.
            self._lock()
            self.after = after()
            self.torn = _cut_unfinished_line(self._handle)
            self.entries, self.head = self._check(joining)
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
        self._sync_name()
        # Synced before anything leaves: after a power cut the ledger still holds everything that left.
        append_whole(self._handle, "ledger line", line, b"\n", durably=True)
        # Only after the write: a full disk must not advance the chain.
        self.entries, self.head = self.entries + 1, line_hash(line)
        return record

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return os.fstat(self._handle).st_size

    def begin_anew(self) -> None:
        """Put an empty file in this one's place, which continues its lines. The caller has kept this one elsewhere.

        Raises:
            OSError: The disk is full; this file is still the one that is open.
        """
        draft = self._path.with_name(f".{self._path.name}.new")
        draft.unlink(missing_ok=True)
        handle = _open_to_append(draft)
        try:
            # Locked before it has its name: at no moment can another process open the ledger and lock it.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(self._path)
        except BaseException:
            os.close(handle)
            raise
        os.close(self._handle)
        self._handle, self.after, self._is_name_synced = handle, (self.entries, self.head), False
        self._sync_name()

    def close(self) -> None:
        """Release the lock."""
        os.close(self._handle)

    def _sync_name(self) -> None:
        # Asked again where the disk failed here: before a line counts, a power cut must not bring the last file back.
        if not self._is_name_synced:
            sync_folder(self._path.parent)
            self._is_name_synced = True

    def _check(self, joining: bool) -> Position:
        last: tuple[dict[str, Any], bytes] | None = None
        for line in self._chain.lines(self._path, self.after):
            last = line
        if last is None:
            return self.after
        record, text = last
        # One signature suffices at the start: it covers the hash of the line before, and so every line.
        if not self._chain.is_authentic(record) or (record["key"] != self.key and not joining):
            raise self._chain.broken(record["seq"])
        return record["seq"], line_hash(text)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A file that lost its name between the two calls: its owner has begun the next one.
            if not os.path.samestat(os.fstat(self._handle), self._path.stat()):
                raise BlockingIOError
        except OSError as error:
            raise InUse(f"another process of this site has the {self._chain.name} open; stop it first") from error


def canonical(record: dict[str, Any]) -> bytes:
    """Return canonical JSON, without a newline."""
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def line_hash(line: bytes) -> str:
    """Return the hash of a line without its newline, in hex: the `prev_hash` of the next."""
    return hashlib.sha256(line).hexdigest()


def open_to_read(path: Path) -> BinaryIO | None:
    """Open a ledger's file; None when there is none.

    Raises:
        StateUnreadable: The file cannot be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateUnreadable.of(path.name, error) from error


def last_line_hash(file: BinaryIO) -> str:
    """Return the hash of a file's last whole line, in hex; without one, that of no bytes. Reads the file's end only."""
    handle = file.fileno()
    end = _after_last_newline(handle, os.fstat(handle).st_size)
    begins = _after_last_newline(handle, max(0, end - 1))
    return line_hash(os.pread(handle, max(0, end - 1 - begins), begins))


def _open_to_append(path: Path) -> int:
    # O_APPEND: the kernel writes every line at the end of the file, so none can be overwritten.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    belongs_with_its_folder(handle, path)
    return handle


def _cut_unfinished_line(handle: int) -> bytes:
    """Cut a last line without its newline, and return it; empty when the file ends with a whole line."""
    size = os.fstat(handle).st_size
    kept = _after_last_newline(handle, size)
    torn = os.pread(handle, size - kept, kept)
    if torn:
        os.ftruncate(handle, kept)
        os.fsync(handle)
    return torn


def _after_last_newline(handle: int, end: int) -> int:
    """Return the offset behind the last newline before `end`; 0 without one."""
    while end > 0:  # backwards in pieces: a long file is not read for its last line
        step = min(4096, end)
        at = os.pread(handle, step, end - step).rfind(b"\n")
        if at >= 0:
            return end - step + at + 1
        end -= step
    return 0
