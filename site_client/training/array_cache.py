"""Arrays on disk by name, within a bound: what the caches stand on.

One safetensors file a name. A file is written under another name first and renamed, so that no reader sees half of one;
a damaged file is removed, for its owner to make it again. Least recently used files go first when the folder would
outgrow its bound.
"""

import os
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

Arrays = dict[str, NDArray[Any]]


class ArrayCache:
    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, name: str, expected: Set[str]) -> Arrays | None:
        """The arrays put under this name, which are the expected ones; None when there are none, or no whole ones."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            arrays: Arrays = load_file(path)
        except SafetensorError:
            arrays = {}
        if arrays.keys() != expected:
            path.unlink()
            return None
        os.utime(path)  # used just now: the last to go
        return arrays

    def put(self, name: str, arrays: Arrays) -> None:
        self._make_room(sum(array.nbytes for array in arrays.values()))
        # No fsync: what a power cut spoils is recognized when it is read, and made again.
        path = self._path(name)
        draft = path.with_suffix(f".{os.getpid()}.new")
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, draft)
        draft.rename(path)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _make_room(self, size_bytes: int) -> None:
        files = [(path.stat(), path) for path in self._folder.glob("*.safetensors")]
        excess = sum(stat.st_size for stat, _ in files) + size_bytes - self._max_bytes
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if excess <= 0:
                return
            path.unlink()
            excess -= stat.st_size
