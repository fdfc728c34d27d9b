"""Files and folders that survive a crash: built under a dot name, synced, then renamed."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

_log = structlog.get_logger()
# A disk that is full, read-only or failing: it passes without a change to a file of ours.
DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
DAMAGED: Final = ".damaged"  # ends the name of a file that was set aside


def write_file(path: Path, data: bytes | memoryview, mode: int = 0o600) -> None:
    """Write a file inside a folder that no process reads yet, durably, with `mode` independent of the umask."""
    _write(path, [data], mode)


def write_in_pieces(path: Path, pieces: Iterable[bytes], mode: int = 0o600) -> None:
    """Write a file as `write_file` does, by more bytes than fit into memory."""
    _write(path, pieces, mode)


def _write(path: Path, pieces: Iterable[bytes | memoryview], mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "wb") as file:
        # Owner and mode before the first byte: no moment in which another user could read it.
        belongs_with_its_folder(handle, path)
        os.fchmod(handle, mode)
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file, durably; a crash at any moment leaves either the old bytes or the new ones."""
    replace_in_pieces(path, [data], mode)


def replace_in_pieces(path: Path, pieces: Iterable[bytes], mode: int = 0o600) -> None:
    """Replace a file as `replace_file` does, by more bytes than fit into memory."""
    draft = path.with_name(f".{path.name}.new")
    _write(draft, pieces, mode)
    _rename_over(draft, path)
    sync_folder(path.parent)


def append_whole(handle: int, what: str, *parts: bytes, durably: bool = False) -> None:
    """Append all parts or nothing: half a record in the middle of a file would spoil every record after it.

    Args:
        handle: Of a file open for appending.
        what: The record's noun, for the message.
        parts: The record's bytes, in order.
        durably: Whether to sync.

    Raises:
        OSError: The disk is full, or could not sync. The file is then as long as before.
    """
    before, size_bytes = os.fstat(handle).st_size, sum(map(len, parts))
    try:
        # One call for all parts: two writes could leave the first one alone in the file.
        written = os.writev(handle, parts)
        if written != size_bytes:
            why = f"only {written} of {size_bytes} bytes of a {what} could be kept; is the disk full?"
            raise OSError(errno.ENOSPC, why)
        if durably:
            os.fsync(handle)
    except OSError:
        # Also what writev has written in part: the next record must begin where this one would have.
        os.ftruncate(handle, before)
        raise


def refresh_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file that is written again and again: a reader never sees half of it, but a power cut may empty it."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(data)
    belongs_with_its_folder(draft, path)
    draft.chmod(mode)
    _rename_over(draft, path)


def set_aside(path: Path, why: str, way_on: str) -> None:
    """Give a damaged file another name, so that a new one can take its place, and log that.

    `hemofed-site status` lists the files that were set aside in the agent's folder, until a person removes them.

    Args:
        path: The file, or the folder that stands in its place. An earlier one that was set aside is removed.
        why: A clause.
        way_on: What happens now, a clause.
    """
    target = path.with_name(path.name + DAMAGED)
    remove(target)
    path.rename(target)
    sync_folder(path.parent)
    _log.warning("damaged file set aside", file=path.name, now=target.name, why=why, way_on=way_on)


def _rename_over(draft: Path, path: Path) -> None:
    try:
        draft.rename(path)
    except IsADirectoryError:
        set_aside(path, "it was a folder", "a new file takes its place")
        draft.rename(path)


def lend_file(source: Path, target: Path, mode: int) -> None:
    """Give a durable file, which no process writes any more, a second name; or copy it where a link is impossible.

    The mode belongs to the file: it holds for the first name too.
    """
    try:
        # A link costs no space and no copy of hundreds of MB.
        target.hardlink_to(source)
    except OSError:  # another file system, or another mount of the same one
        copy_file(source, target, mode)
    else:
        target.chmod(mode)


def copy_file(source: Path, target: Path, mode: int = 0o600) -> None:
    """Copy into a new file, durably."""
    with source.open("rb") as reader, target.open("xb") as writer:
        os.fchmod(writer.fileno(), mode)
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter, and its missing parents, durably. Nothing happens when it exists."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # The umask can only narrow 0700 further.
        path.mkdir(mode=0o700)
        belongs_with_its_folder(path, path)
        # A synced file is lost all the same if its folder's own name is.
        sync_folder(path.parent)
    return path


def belongs_with_its_folder(file: int | Path, path: Path) -> None:
    """Give a file that root has made at `path` to the owner of its folder.

    Root types `join` and `plan approve`, and the agent's own user reads their files.
    """
    if os.geteuid() == 0:
        parent = path.parent.stat()
        os.chown(file, parent.st_uid, parent.st_gid)


def is_in_memory(folder: Path) -> bool:
    """Whether a folder lies on a file system that is in memory only (tmpfs, ramfs)."""
    place, kind = folder.resolve(), ""
    # proc(5): mount points in the order of mounting; the last one above the folder holds it.
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mounted_at = Path(before.split()[4].encode().decode("unicode_escape"))
        if mounted_at == place or mounted_at in place.parents:
            kind = after.split()[0]
    return kind in ("tmpfs", "ramfs")


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or folder, if there is one. A folder first loses its name: a reader never sees half of it."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    # A second crash between the rename and the removal leaves a dot name, which `sweep_drafts` removes.
    if not path.name.startswith("."):
        # Renamed first, because rmtree takes many steps, and a reader could open the folder between two of them.
        doomed = path.with_name(f".{path.name}.gone")
        if doomed.exists():
            shutil.rmtree(doomed)
        path = path.rename(doomed)
    shutil.rmtree(path)
    sync_folder(path.parent)


class Building:
    """A folder under a dot name. It gets its real name when the block ends, and is removed when the block raises."""

    def __init__(self, target: Path, mode: int = 0o700) -> None:
        self._target, self._mode = target, mode
        self._draft = target.with_name(f".{target.name}")

    def __enter__(self) -> Path:
        remove(self._draft)
        self._draft.mkdir()
        self._draft.chmod(self._mode)
        return self._draft

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            remove(self._draft)
            return
        # The folder's entries, then its name, then the name's folder: any other order may name a half-written folder.
        sync_folder(self._draft)
        self._draft.rename(self._target)
        sync_folder(self._target.parent)


def sweep_drafts(folder: Path) -> None:
    """Remove the drafts that a crash left before their rename. Only for a folder with one writer."""
    for leftover in folder.glob(".*"):
        remove(leftover)


def sha256_of(path: Path) -> bytes:
    """Return the SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
