"""A bounded cache of named arrays on disk.

Each name has one safetensors file. A file is written under another name and then renamed, so no reader sees half of
one. A damaged file is removed, and its owner makes it again. The least recently used files go first.
"""

import os
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

Arrays = dict[str, NDArray[Any]]


class ArrayCache:
    """Arrays by name in one folder, `max_bytes` bytes at most. Several processes may share the folder."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Use `folder`, and make it if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, name: str, expected: Set[str]) -> Arrays | None:
        """Read an entry.

        Args:
            name: Its file name without suffix.
            expected: Names of its arrays.

        Returns:
            The arrays in the dtypes and shapes of `put`; None when the entry is absent, damaged or has other arrays.
        """
        path = self._path(name)
        try:
            arrays: Arrays = load_file(path)
        except FileNotFoundError:
            return None
        except SafetensorError:
            arrays = {}
        if arrays.keys() != expected:
            path.unlink(missing_ok=True)
            return None
        # Marks the file as used: the oldest times go first. Another process may have removed it since it was read.
        with suppress(FileNotFoundError):
            os.utime(path)
        return arrays

    def get_some(self, name: str, wanted: Set[str]) -> Arrays | None:
        """Read some arrays of an entry; None when it is absent, damaged or lacks one of them."""
        try:
            with safe_open(self._path(name), framework="numpy") as file:
                return {key: file.get_tensor(key) for key in wanted}
        except (FileNotFoundError, SafetensorError):
            return None

    def put(self, name: str, arrays: Arrays) -> None:
        """Write an entry, after removing the least recently used ones that it has no room beside.

        Args:
            name: Its file name without suffix.
            arrays: Of any dtype and shape. All entries together take `max_bytes` bytes at most.

        Raises:
            OSError: The disk is full.
            SafetensorError: Likewise, where safetensors notices.
        """
        self._make_room(sum(array.nbytes for array in arrays.values()))
        # Cost: fsync would take longer than making the arrays. `get` recognizes a file that a power cut tore.
        path = self._path(name)
        draft = path.with_suffix(f".{os.getpid()}.new")
        try:
            save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, draft)
            draft.rename(path)
        except BaseException:  # half a file would take the space that is missing
            draft.unlink(missing_ok=True)
            raise

    def retain(self, groups: Set[str]) -> int:
        """Remove every entry whose name, up to its first hyphen, is not in `groups`; return how many went."""
        others = [path for path in self._folder.glob("*.safetensors") if path.stem.partition("-")[0] not in groups]
        for path in others:
            path.unlink(missing_ok=True)  # another process may have been first
        return len(others)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _make_room(self, size_bytes: int) -> None:
        files = []
        for path in self._folder.glob("*.safetensors"):
            # Processes that share the folder make room at the same time: a listed file may be gone.
            with suppress(FileNotFoundError):
                files.append((path.stat(), path))
        excess = sum(stat.st_size for stat, _ in files) + size_bytes - self._max_bytes
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= stat.st_size
