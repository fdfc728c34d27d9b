"""Prepared studies on disk, so that the second epoch never touches DICOM."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from site_client.ingest.records import SeriesRecord
from site_client.ingest.series.volume import Volume
from site_client.model.inputs import PIPELINE_VERSION, PreparedStudy, prepare
from site_client.training.array_cache import ArrayCache, Arrays

_PARTS: Final = frozenset({"windows", "geometry", "source_slices"})


class StudyCache:
    """Studies at one image size, on a shelf of `max_bytes`. `read` is called only for series that are not there."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        image_size_px: int,
        slices_max: int,
        read: Callable[[SeriesRecord], Volume],
    ) -> None:
        self._shelf = ArrayCache(folder, max_bytes)
        self._image_size_px = image_size_px
        self._slices_max = slices_max
        self._read = read

    def get(self, series: SeriesRecord) -> PreparedStudy:
        """The prepared study, from disk or made now. Errors of `read` pass through, and nothing is stored."""
        name = self.name_of(series)
        found = self._shelf.get(name, _PARTS)
        if found is not None:
            return _study_of(found)
        study = prepare(self._read(series), self._image_size_px, self._slices_max)
        self._shelf.put(name, _arrays_of(study))
        return study

    def name_of(self, series: SeriesRecord) -> str:
        """Over what goes into a prepared study: the series' content, the pipeline's version, sizes. 64 hex digits."""
        what = f"{series.content_hash}|{PIPELINE_VERSION}|{self._image_size_px}|{self._slices_max}"
        return hashlib.sha256(what.encode()).hexdigest()


def _study_of(arrays: Arrays) -> PreparedStudy:
    return PreparedStudy(arrays["windows"], arrays["geometry"], ranges_of(arrays["source_slices"]))


def _arrays_of(study: PreparedStudy) -> Arrays:
    return {"windows": study.windows, "geometry": study.geometry, "source_slices": array_of(study.source_slices)}


def ranges_of(array: NDArray[np.int32]) -> tuple[range, ...]:
    return tuple(range(int(start), int(stop)) for start, stop in array)


def array_of(ranges: tuple[range, ...]) -> NDArray[np.int32]:
    """int32[T,2]."""
    return np.array([(group.start, group.stop) for group in ranges], np.int32)
