"""Prepare every study of a set in the cache, with several processes where there are cores."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from site_client.errors import NothingUsable, SeriesUnreadable
from site_client.ingest.records import StudyRecord
from site_client.training.data import Loader


def prepare_all(
    studies: Sequence[StudyRecord], loader: Loader, say: Callable[[str], None], workers: int = 1
) -> tuple[tuple[StudyRecord, ...], int]:
    """Put every study into the cache.

    Args:
        studies: Of any number.
        loader: Its cache is filled.
        say: Called with a sentence for each study that cannot be read.
        workers: Processes.

    Returns:
        The studies that can be read, and the number of their prepared slices.

    Raises:
        NothingUsable: No study can be read.
    """
    readable, slices = [], 0
    for study, prepared in zip(studies, _prepared(studies, loader, workers), strict=True):
        if isinstance(prepared, str):
            say(f"one study is left out: {prepared}")
            continue
        slices += prepared
        readable.append(study)
    if not readable:
        raise NothingUsable("expected studies that can be read, got none; `hemofed-site catalog` says why")
    return tuple(readable), slices


def _prepared(studies: Sequence[StudyRecord], loader: Loader, workers: int) -> Iterator[int | str]:
    """Yields for each study the number of its slices, or the reason code of an unreadable one."""
    prepare = partial(_prepare, loader)
    if workers == 1:
        yield from map(prepare, studies)
        return
    # Danger: a fork would inherit locks that threads of torch hold, and no thread to release them.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(prepare, studies, chunksize=4)


def _prepare(loader: Loader, study: StudyRecord) -> int | str:
    try:
        return loader.prepare(study)
    except SeriesUnreadable as error:
        return error.code
