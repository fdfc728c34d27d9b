"""The incoming folder: the one place where the receiver writes images. The trainer reads it as a part of its export.

    <incoming>/.arriving/           files that are still being received; emptied at every start
    <incoming>/<2>/<24>-<24>.dcm    hex: HMAC of the SOP Instance UID, HMAC of the file's bytes, under a secret of here

The name tells nothing to a reader without the secret, and no sender can choose it. The same bytes always get the same
name, so an object that is sent twice is one file. Other bytes under the same UID get another name: ingest decides about
them. An object counts as stored once its bytes, its name and its folder are on disk.
"""

import hashlib
import hmac
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from site_client.files import replace_file, sync_folder

_ARRIVING: Final = ".arriving"  # hidden: ingest does not look into it
_KEY_BYTES: Final = 12
_SECRET_BYTES: Final = 32
_PREAMBLE: Final = 128
_META_MAX: Final = 1 << 12
_INSTANCE_ELEMENT: Final = b"\x02\0\x03\0UI"  # group 0002 is explicit VR little endian
_FILE_MODE: Final = 0o640  # the group may read: the trainer is in it
_FOLDER_MODE: Final = 0o750
NAME: Final = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{22})-([0-9a-f]{24})\.dcm")


class Incoming:
    """The folder. Its methods may be called by several threads."""

    def __init__(self, root: Path, secret: bytes) -> None:
        """Take the folder, which exists, and remove what a crash has left unfinished.

        Args:
            root: The folder; its group is that of the trainer's export.
            secret: 32 bytes that key the names.
        """
        self.root, self._secret = root, secret
        self.arriving = root / _ARRIVING
        self.arriving.mkdir(mode=0o700, exist_ok=True)
        self.sweep(unchanged_s=0)

    def put(self, arrived: Path, instance_uid: str) -> bool:
        """Give a received file its place, durably.

        Args:
            arrived: A whole DICOM file in `arriving`. It is renamed, or removed when its bytes are here already.
            instance_uid: (0008,0018) *SOP Instance UID*, as its sender named it.

        Returns:
            Whether it is new.

        Raises:
            OSError: The disk is full or failing. `arrived` may still be there.
        """
        with arrived.open("rb") as file:
            target = self._path(instance_uid, self._key(b"bytes|", hashlib.file_digest(file, "sha256").digest()))
            os.fchmod(file.fileno(), _FILE_MODE)
            os.fsync(file.fileno())
        if target.exists():
            arrived.unlink()
            return False
        if not target.parent.exists():
            target.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            sync_folder(self.root)
        arrived.rename(target)
        # Before the sender is told: it may delete its own copy.
        sync_folder(target.parent)
        return True

    def new_file(self) -> IO[bytes]:
        """Return a new file in `arriving`, for `put`. Its `name` is its path."""
        return (self.arriving / f"{os.urandom(16).hex()}.partial").open("xb")

    def has(self, instance_uid: str) -> bool:
        """Whether at least one object of this SOP Instance UID is stored."""
        key = self._key(b"uid|", instance_uid.encode())
        return any((self.root / key[:2]).glob(f"{key}-*.dcm"))

    def is_own(self, name: str) -> bool:
        """Whether the file of this name, below the root, is one that the receiver wrote, unchanged."""
        match = NAME.fullmatch(name)
        if match is None:
            return False
        with (self.root / name).open("rb") as file:
            key = self._key(b"bytes|", hashlib.file_digest(file, "sha256").digest())
        return hmac.compare_digest(key, match[3])

    def names(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield name below the root and state of every stored file, in no order."""
        for folder in self.root.glob("[0-9a-f][0-9a-f]"):
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = f"{folder.name}/{entry.name}"
                    if NAME.fullmatch(name) and entry.is_file(follow_symlinks=False):
                        yield name, entry.stat(follow_symlinks=False)

    def free_bytes(self) -> int:
        """Return what the disk has left for this user."""
        figures = os.statvfs(self.root)
        return figures.f_bavail * figures.f_frsize

    def sweep(self, unchanged_s: float) -> None:
        """Remove arriving files that nothing was written to for so many seconds: their senders are gone."""
        for path in self.arriving.iterdir():
            try:
                if time.time() - path.stat().st_mtime >= unchanged_s:
                    path.unlink()
            except FileNotFoundError:  # it has got its place meanwhile
                continue

    def _path(self, instance_uid: str, content_key: str) -> Path:
        key = self._key(b"uid|", instance_uid.encode())
        return self.root / key[:2] / f"{key}-{content_key}.dcm"

    def _key(self, domain: bytes, data: bytes) -> str:
        return hmac.digest(self._secret, domain + data, "sha256")[:_KEY_BYTES].hex()


def instance_of(path: Path) -> str:
    """Read (0002,0003) *Media Storage SOP Instance UID* of a DICOM file; "" when it is none (PS3.10 section 7.1).

    It reads the file's first bytes itself: no library parses an answer of the network here.
    """
    with path.open("rb") as file:
        start = file.read(_META_MAX)
    if start[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
        return ""
    place = start.find(_INSTANCE_ELEMENT, _PREAMBLE + 4)
    value = place + len(_INSTANCE_ELEMENT) + 2
    if place < 0 or value > len(start):
        return ""
    length = int.from_bytes(start[value - 2 : value], "little")
    return start[value : value + length].rstrip(b"\0 ").decode("ascii", errors="replace")


def load_secret(path: Path) -> bytes:
    """Read the secret that keys the names, or make it. A new one only means that repeats are not recognized."""
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        secret = os.urandom(_SECRET_BYTES)
        replace_file(path, secret)
    return secret
