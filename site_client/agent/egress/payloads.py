"""What left, byte for byte, kept for as long as there is room, so that a ledger's entry can be opened and looked at.

    <state>/agent/payloads/<seq of the first one, 12 digits>.pack     records: seq uint64 LE, length uint32 LE, bytes

Append-only files of a few MiB; the oldest file goes when the limit is reached. They are for people at the hospital: the
ledger does not need them. The join request is not kept, because the one-time token is in it.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from site_client.files import append_whole, belongs_with_its_folder, private_folder

PACK_BYTES = 8 * 1024 * 1024
_RECORD = struct.Struct("<QI")


class Payloads:
    """The writer; one process at a time. `limit_bytes` 0 keeps nothing."""

    def __init__(self, folder: Path, limit_bytes: int, pack_bytes: int = PACK_BYTES) -> None:
        self._folder, self._limit_bytes, self._pack_bytes = folder, limit_bytes, pack_bytes
        private_folder(folder)
        packs = _packs(folder)
        for pack in packs[-1:]:
            os.truncate(pack, _whole_bytes(pack))  # a crash may have left half a record
        # Oldest first, and known here: a look at the folder for every message would cost more than the writing.
        self._sizes = {pack: pack.stat().st_size for pack in packs}

    def keep(self, seq: int, data: bytes) -> None:
        """Keeps what the entry `seq` is about, whole or not at all, and forgets the oldest beyond the limit.

        Errors: OSError.
        """
        if self._limit_bytes == 0:
            return
        size_bytes = _RECORD.size + len(data)
        path = next(reversed(self._sizes), None)
        if path is None or self._sizes[path] + size_bytes > self._pack_bytes:
            path = self._folder / f"{seq:012d}.pack"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            belongs_with_its_folder(handle, path)
            append_whole(handle, "payload", _RECORD.pack(seq, len(data)), data)
        finally:
            os.close(handle)
        self._sizes[path] = self._sizes.get(path, 0) + size_bytes
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        held = sum(self._sizes.values())
        for pack in list(self._sizes)[:-1]:
            if held <= self._limit_bytes:
                return
            held -= self._sizes.pop(pack)
            pack.unlink(missing_ok=True)


def kept(folder: Path) -> Iterator[tuple[int, bytes]]:
    """(seq, bytes) of everything kept, oldest first. For somebody who looks while the agent writes."""
    for pack in _packs(folder):
        try:
            data = pack.read_bytes()
        except FileNotFoundError:  # the agent has just forgotten it
            continue
        yield from _records(data)


def find(folder: Path, seq: int) -> bytes | None:
    """What the entry was about; None when it is no longer kept, or never was."""
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


def _whole_bytes(pack: Path) -> int:
    return sum(_RECORD.size + len(data) for _, data in _records(pack.read_bytes()))
