"""Prepared studies on disk, so that the second epoch never touches DICOM.

One safetensors file a study, named by what went into it: the series' content, the pipeline's version, the image size
and the limit of slices. A file is written under another name first and renamed, so that no reader sees half of one; a
damaged file is removed and made again. Least recently used files go first when the folder would outgrow its bound.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from site_client.ingest.records import SeriesRecord
from site_client.ingest.volume import Volume
from site_client.model.inputs import PIPELINE_VERSION, PreparedStudy, prepare


class StudyCache:
    """Studies at one image size. `read` is called only for series that are not in the cache."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        image_size_px: int,
        slices_max: int,
        read: Callable[[SeriesRecord], Volume],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes
        self._image_size_px = image_size_px
        self._slices_max = slices_max
        self._read = read

    def get(self, series: SeriesRecord) -> PreparedStudy:
        """The prepared study, from disk or made now. Errors of `read` pass through, and nothing is stored."""
        path = self._path(series)
        found = _load(path)
        if found is None:
            found = prepare(self._read(series), self._image_size_px, self._slices_max)
            self._make_room(found.windows.nbytes)
            _save(path, found)
        return found

    def _path(self, series: SeriesRecord) -> Path:
        what = f"{series.content_hash}|{PIPELINE_VERSION}|{self._image_size_px}|{self._slices_max}"
        return self._folder / f"{hashlib.sha256(what.encode()).hexdigest()}.safetensors"

    def _make_room(self, size_bytes: int) -> None:
        files = [(path.stat(), path) for path in self._folder.glob("*.safetensors")]
        excess = sum(stat.st_size for stat, _ in files) + size_bytes - self._max_bytes
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if excess <= 0:
                return
            path.unlink()
            excess -= stat.st_size


def _load(path: Path) -> PreparedStudy | None:
    if not path.exists():
        return None
    try:
        arrays = load_file(path)
        ranges = tuple(range(int(start), int(stop)) for start, stop in arrays["source_slices"])
        found = PreparedStudy(arrays["windows"], arrays["geometry"], ranges)
    except (SafetensorError, KeyError):
        path.unlink()
        return None
    os.utime(path)  # used just now: the last to go
    return found


def _save(path: Path, study: PreparedStudy) -> None:
    # No fsync: what a power cut spoils is recognized when it is read, and made again.
    draft = path.with_suffix(f".{os.getpid()}.new")
    ranges = np.array([(group.start, group.stop) for group in study.source_slices], np.int32)
    save_file({"windows": study.windows, "geometry": study.geometry, "source_slices": ranges}, draft)
    draft.rename(path)
