"""Files and folders that survive a crash: built under a dot name, synced, then renamed."""

import hashlib
import os
import shutil
from pathlib import Path


def write_file(path: Path, data: bytes | memoryview, mode: int = 0o600) -> None:
    """Writes a file inside a folder nobody reads yet, durably; `mode` whatever the umask says."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "wb") as file:
        belongs_with_its_folder(handle, path)
        os.fchmod(handle, mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces a file so that a crash at any moment leaves either the old bytes or the new ones, durably."""
    draft = path.with_name(f".{path.name}.new")
    write_file(draft, data, mode)
    draft.rename(path)
    sync_folder(path.parent)


def append_whole(handle: int, what: str, *parts: bytes, durably: bool = False) -> None:
    """Appends all of it or nothing: half of `what` in the middle of a file would spoil everything after it.

    Errors: OSError when the disk is full or, `durably`, does not keep it; the file is then as long as it was.
    """
    before, size_bytes = os.fstat(handle).st_size, sum(map(len, parts))
    try:
        written = os.writev(handle, parts)
        if written != size_bytes:
            raise OSError(f"only {written} of {size_bytes} bytes of a {what} could be kept; is the disk full?")
        if durably:
            os.fsync(handle)
    except OSError:
        os.ftruncate(handle, before)
        raise


def refresh_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces a file that is written anew all the time: no reader finds half of it, but a power cut may empty it."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(data)
    belongs_with_its_folder(draft, path)
    draft.chmod(mode)
    draft.rename(path)


def lend_file(source: Path, target: Path, mode: int) -> None:
    """A second name for a durable file that nobody writes to any more, or a copy where there can be none.

    The mode is the file's: it holds for the first name too.
    """
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or another mount of the same one
        copy_file(source, target, mode)
    else:
        target.chmod(mode)


def copy_file(source: Path, target: Path, mode: int = 0o600) -> None:
    """Copies into a new file, durably."""
    with source.open("rb") as reader, target.open("xb") as writer:
        os.fchmod(writer.fileno(), mode)
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())


def private_folder(path: Path) -> Path:
    """Makes a folder that only its owner can enter, and what is missing above it. Nothing happens when it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        belongs_with_its_folder(path, path)
    return path


def belongs_with_its_folder(file: int | Path, path: Path) -> None:
    """Gives what root has made at `path` to the owner of the folder it lies in.

    `join` and `plan approve` are typed by root, and what they write is read by the agent's own user.
    """
    if os.geteuid() == 0:
        parent = path.parent.stat()
        os.chown(file, parent.st_uid, parent.st_gid)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Removes a file or folder, if there is one. A folder first loses its name: no reader finds half of it."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith("."):
        doomed = path.with_name(f".{path.name}.gone")
        if doomed.exists():
            shutil.rmtree(doomed)
        path = path.rename(doomed)
    shutil.rmtree(path)
    sync_folder(path.parent)


class Building:
    """A folder under a dot name that gets its real name when the block ends well; nothing stays when it does not."""

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
        sync_folder(self._draft)
        self._draft.rename(self._target)
        sync_folder(self._target.parent)


def sweep_drafts(folder: Path) -> None:
    """Removes what a crash left between building and renaming. Only for a folder with one writer."""
    for leftover in folder.glob(".*"):
        remove(leftover)


def sha256_of(path: Path) -> bytes:
    """Digest of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
