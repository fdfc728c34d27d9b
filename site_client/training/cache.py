"""Prepared studies on disk, so that the second epoch reads no DICOM."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from site_client.errors import SeriesUnreadable
from site_client.ingest.reasons import Reason
from site_client.ingest.records import SeriesRecord
from site_client.ingest.series.volume import Volume
from site_client.model.inputs import PIPELINE_VERSION, PreparedStudy, prepare
from site_client.training.array_cache import ArrayCache

_ARRAYS: Final = frozenset({"windows", "geometry", "source_slices"})
_LAYOUT: Final = frozenset({"geometry", "source_slices"})


class StudyCache:
    """Prepared studies at one image size. `read` is called only for series that are not in the cache."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        image_size_px: int,
        slices_max: int,
        read: Callable[[SeriesRecord], Volume],
    ) -> None:
        """Cache at most `max_bytes` bytes in `folder`. For the sizes see `site_client.model.inputs.prepare`."""
        self._cache = ArrayCache(folder, max_bytes)
        self._image_size_px = image_size_px
        self._slices_max = slices_max
        self._read = read

    def get(self, series: SeriesRecord) -> PreparedStudy:
        """Return the prepared study, from disk or made now.

        Returns:
            Windows uint8[T,3,H,W] and geometry f32[T,4], see `PreparedStudy`.

        Raises:
            SeriesUnreadable: From `read`, or Q_STORAGE because the disk of the cache is full; nothing is stored.
        """
        name = self.name_of(series)
        arrays = self._cache.get(name, _ARRAYS)
        if arrays is not None:
            return PreparedStudy(arrays["windows"], arrays["geometry"], ranges_of(arrays["source_slices"]))
        study = prepare(self._read(series), self._image_size_px, self._slices_max)
        arrays = {
            "windows": study.windows,
            "geometry": study.geometry,
            "source_slices": array_of(study.source_slices),
        }
        try:
            self._cache.put(name, arrays)
        except (OSError, SafetensorError):
            # Left out and counted: every epoch would decode the study again.
            raise SeriesUnreadable(
                "a prepared study cannot be stored: the disk is full or failing; free space on that of folders.cache",
                Reason.Q_STORAGE.name,
            ) from None
        return study

    def layout(self, series: SeriesRecord) -> tuple[NDArray[np.float32], tuple[range, ...]]:
        """Return geometry f32[T,4] and source slices of a study, without reading its pixels if it is in the cache.

        Raises:
            SeriesUnreadable: From `read`.
        """
        arrays = self._cache.get_some(self.name_of(series), _LAYOUT)
        if arrays is None:
            study = self.get(series)
            return study.geometry, study.source_slices
        return arrays["geometry"], ranges_of(arrays["source_slices"])

    def name_of(self, series: SeriesRecord) -> str:
        """Return 48 hex digits of the series' content, a hyphen, and 16 of the pipeline's version and the sizes.

        The digits are the first ones of SHA-256.
        """
        text = f"{PIPELINE_VERSION}|{self._image_size_px}|{self._slices_max}"
        return f"{_group_of(series)}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def forget_others(folder: Path, kept: Iterable[SeriesRecord]) -> int:
    """Remove prepared images of every series but these, at all sizes.

    The others are of studies that were deleted, or whose patients opted out.

    Args:
        folder: The cache's.
        kept: Series of the dataset that is trained on next.

    Returns:
        The number of files that were removed.
    """
    # Nothing is put into this cache, so its bound of 0 bytes has no meaning.
    return ArrayCache(folder, 0).retain({_group_of(series) for series in kept}) if folder.exists() else 0


def _group_of(series: SeriesRecord) -> str:
    return hashlib.sha256(series.content_hash.encode()).hexdigest()[:48]


def ranges_of(array: NDArray[np.int32]) -> tuple[range, ...]:
    """Return the T ranges of an int32[T,2] of starts and stops."""
    return tuple(range(int(start), int(stop)) for start, stop in array)


def array_of(ranges: tuple[range, ...]) -> NDArray[np.int32]:
    """Return int32[T,2], starts and stops of T ranges."""
    return np.array([(group.start, group.stop) for group in ranges], np.int32)
