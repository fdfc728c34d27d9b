"""The bytes of every message that left, kept while there is room, so that a person can read an entry's payload.

    <state>/agent/payloads/<seq of the first one, 12 digits>.pack     records: seq uint64 LE, length uint32 LE, bytes

Append-only files of a few MiB; the oldest file goes when the limit is reached. They serve people at the hospital; the
ledger does not need them. The join request is not kept, because it holds the one-time token.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from site_client.files import append_whole, belongs_with_its_folder, private_folder, set_aside

PACK_BYTES = 8 * 1024 * 1024
_RECORD = struct.Struct("<QI")


class Payloads:
    """The writer; one process at a time. `limit_bytes` 0 keeps nothing."""

    def __init__(self, folder: Path, limit_bytes: int, pack_bytes: int = PACK_BYTES) -> None:
        """Use the folder, and cut a record that a crash left unfinished."""
        self._folder, self._limit_bytes, self._pack_bytes = folder, limit_bytes, pack_bytes
        private_folder(folder)
        packs = _packs(folder)
        for pack in [pack for pack in packs if not pack.is_file()]:
            set_aside(pack, "it is no regular file", "payloads are kept in another file")
            packs.remove(pack)
        for pack in packs[-1:]:
            # Cut a record that a crash left unfinished: every later record in the file would be unreadable.
            os.truncate(pack, sum(_RECORD.size + len(data) for _, data in _records(pack.read_bytes())))
        # Sizes by file, oldest first. A listing of the folder for every message would cost more than the writing.
        self._sizes = {pack: pack.stat().st_size for pack in packs}

    def keep(self, seq: int, data: bytes) -> None:
        """Keep the payload of entry `seq`, whole or not at all, and remove the oldest files beyond the limit.

        Raises:
            OSError: The disk is full.
        """
        if self._limit_bytes == 0:
            return
        size_bytes = _RECORD.size + len(data)
        path = next(reversed(self._sizes), None)
        if path is None or self._sizes[path] + size_bytes > self._pack_bytes:
            # Named by its first entry, so that `find` opens one file only.
            path = self._folder / f"{seq:012d}.pack"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            belongs_with_its_folder(handle, path)
            append_whole(handle, "payload", _RECORD.pack(seq, len(data)), data)
        finally:
            os.close(handle)
        self._sizes[path] = self._sizes.get(path, 0) + size_bytes
        total_bytes = sum(self._sizes.values())
        for pack in list(self._sizes)[:-1]:  # never the newest, which is being written
            if total_bytes <= self._limit_bytes:
                return
            total_bytes -= self._sizes.pop(pack)
            pack.unlink(missing_ok=True)


def kept(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (seq, bytes) of every kept payload, oldest first. Safe while the agent writes."""
    for pack in _packs(folder):
        try:
            data = pack.read_bytes()
        except FileNotFoundError:  # the agent has just removed it
            continue
        yield from _records(data)


def find(folder: Path, seq: int) -> bytes | None:
    """Return the payload of entry `seq`; None when it is not kept."""
    packs = [pack for pack in _packs(folder) if int(pack.stem) <= seq]
    if not packs:
        return None
    return dict(_records(packs[-1].read_bytes())).get(seq)


def _packs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pack"))


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _RECORD.size <= len(data):
        seq, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size + length
        if at > len(data):
            return
        yield seq, data[at - length : at]
