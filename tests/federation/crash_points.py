"""Ends one process of a World, or fails its disk, at a chosen call that changes what is on the disk.

A *crash point* is a call of one process that a power cut may precede: fsync, rename, unlink, link, mkdir, rmdir,
truncate, writev; and, of the aggregator, each side of a commit. The same history has the same points, so a first walk
counts them, and one more walk for each ends the process there.

    killed       every earlier call stays, as after kill -9; of a record that is being appended, half is written
    power cut    only what was synced stays: files as they were at their last fsync, folders with the entries that
                 they had at theirs. SQLite's files are left to SQLite, which syncs them itself
    full disk    from this point on, calls that need space raise ENOSPC until `mend`
    broken disk  the same with EIO, and for every call
"""

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy.orm import Session

from aggregator.store import Store
from tests.federation.wire import Killed

Fault = Literal["killed", "power cut", "full disk", "broken disk"]

# Of each call, the argument that names a file of the process, and whether it needs space.
_CALLS = {
    "fsync": True,
    "writev": True,
    "mkdir": True,
    "link": True,
    "rename": False,
    "replace": False,
    "unlink": False,
    "remove": False,
    "rmdir": False,
    "ftruncate": False,
}
_SQLITE = (".sqlite", ".sqlite-wal", ".sqlite-shm")


@dataclass
class _Synced:
    """What a power cut leaves of a folder, by inode; a folder keeps its inode when it gets another name."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=dict)  # entry -> inode
    # A descriptor of each inode, so that no other file gets its number.
    held: dict[int, int] = field(default_factory=dict)

    def note(self, path: Path) -> None:
        """Keep a file's bytes, or a folder's entries."""
        inode = self._hold(path)
        if path.is_dir():
            self.folders[inode] = {entry.name: self._hold(entry) for entry in path.iterdir()}
        else:
            self.files[inode] = path.read_bytes()

    def note_all(self, folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() or path.is_file():
                self.note(path)

    def restore(self, folder: Path) -> None:
        """Make `folder` what the disk holds after a power cut."""
        databases = {path: path.read_bytes() for path in folder.rglob("*") if path.name.endswith(_SQLITE)}
        rebuilt = folder.with_name(folder.name + ".rebuilt")
        self._rebuild(folder.stat().st_ino, rebuilt)
        shutil.rmtree(folder)
        rebuilt.rename(folder)
        for path, data in databases.items():
            path.write_bytes(data)
        self.forget()

    def _rebuild(self, inode: int, target: Path) -> None:
        mode = os.fstat(self.held[inode]).st_mode
        if not stat.S_ISDIR(mode):
            target.write_bytes(self.files.get(inode, b""))  # a name that was synced without its bytes
        else:
            target.mkdir()
            for name, entry in self.folders.get(inode, {}).items():
                self._rebuild(entry, target / name)
        target.chmod(stat.S_IMODE(mode))

    def forget(self) -> None:
        for descriptor in self.held.values():
            os.close(descriptor)
        self.files, self.folders, self.held = {}, {}, {}

    def _hold(self, path: Path) -> int:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        inode = os.fstat(descriptor).st_ino
        if inode in self.held:
            os.close(descriptor)
        else:
            self.held[inode] = descriptor
        return inode


@dataclass
class CrashPoints:
    """Counts the points of a process, and lets `fault` happen at number `at`.

    Attributes:
        fault: None only counts.
        at: From 0.
        is_up: Whether the process runs; set it again when it was booted.
        reached: The points so far, in words.
    """

    fault: Fault | None = None
    at: int = -1
    is_up: bool = True
    reached: list[str] = field(default_factory=list)
    _folder: Path = Path()
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _fails: bool = False
    _paused: bool = False
    _synced: _Synced = field(default_factory=_Synced)

    @contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """Count what the process does in its folder, as long as the block lasts."""
        self._folder = folder
        if self.fault == "power cut":
            self._synced.note_all(self._folder)
        with pytest.MonkeyPatch.context() as patch:
            for name, needs_space in _CALLS.items():
                patch.setattr(os, name, self._watched(name, getattr(os, name), needs_space=needs_space))
            patch.setattr(Store, "write", self._write(Store.write))
            yield
        self._synced.forget()

    @property
    def happened(self) -> bool:
        """Whether the history came as far as the point."""
        return 0 <= self.at < len(self.reached)

    def cut(self) -> None:
        """Let the power be gone: for a process that has ended, before it boots."""
        if self.fault == "power cut":
            with self._unwatched():
                self._synced.restore(self._folder)

    def boot(self, boot: Callable[[], None]) -> None:
        """Start the process again. What it does while it starts are points, too."""
        self.is_up = True
        if self.fault == "power cut":
            with self._unwatched():
                self._synced.note_all(self._folder)
        boot()

    def mend(self) -> None:
        """Let the disk work again."""
        self._fails = False

    def _watched(self, name: str, real: Callable[..., Any], *, needs_space: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            # One at a time: the aggregator stores the sum in a thread of its own.
            with self._lock:
                return checked(*arguments, **named)

        def checked(*arguments: Any, **named: Any) -> Any:
            path = None if self._paused else _path_of(arguments[0], named.get("dir_fd"))
            if path is None or self._folder not in (path, *path.parents):
                return real(*arguments, **named)
            half = (lambda: _write_half(*arguments)) if name == "writev" else None
            self._reach(f"{name} {path.relative_to(self._folder)}", half)
            if self._fails and (needs_space or self.fault == "broken disk"):
                raise OSError(errno.ENOSPC if self.fault == "full disk" else errno.EIO, f"{self.fault} (a test)")
            result = real(*arguments, **named)
            if name == "fsync" and self.fault == "power cut":
                with self._unwatched():
                    self._synced.note(path)
            return result

        return call

    def _write(self, real: Callable[[Store], Any]) -> Callable[[Store], Any]:
        @contextmanager
        def write(store: Store) -> Iterator[Session]:
            ours = str(self._folder) in str(store.engine.url)
            with real(store) as session:
                yield session
                if ours:
                    self._reach("before a commit")
            if ours:
                self._reach("after a commit")

        return write

    def _reach(self, point: str, half: Callable[[], None] | None = None) -> None:
        if not self.is_up:  # what Python runs on its way out of an ended process
            raise Killed
        self.reached.append(point)
        if len(self.reached) - 1 != self.at or self.fault is None:
            return
        if self.fault in ("full disk", "broken disk"):
            self._fails = True
            return
        if half is not None and self.fault == "killed":
            half()
        self.is_up = False
        raise Killed

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        self._paused = True
        yield
        self._paused = False


def _path_of(file: Any, dir_fd: int | None) -> Path | None:
    if isinstance(file, int) or hasattr(file, "fileno"):
        handle = file if isinstance(file, int) else file.fileno()
        return Path(os.readlink(f"/proc/self/fd/{handle}"))
    path = Path(os.fsdecode(file))
    return Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / path if dir_fd is not None else path.absolute()


def _write_half(handle: int, parts: list[bytes]) -> None:
    data = b"".join(bytes(part) for part in parts)
    os.write(handle, data[: len(data) // 2])
