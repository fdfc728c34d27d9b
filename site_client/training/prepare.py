"""Prepare every study of a set, or of the catalog, in the cache; with several processes where there are cores."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial

import torch

from site_client.config import SiteSettings
from site_client.errors import NothingUsable, SeriesUnreadable
from site_client.ingest.catalog.catalog import open_catalog
from site_client.ingest.records import StudyRecord
from site_client.ingest.series.volume import read_volume
from site_client.training.augment import Augmentation
from site_client.training.cache import StudyCache
from site_client.training.data import Loader, Split, split_patients


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


def labelled_split(
    settings: SiteSettings,
    size_px: int,
    slices_max: int,
    slices_per_study: int,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[Loader, Split]:
    """Prepare the catalog's labelled studies, and split them as the trainer does.

    Args:
        settings: Of the site.
        size_px: Side of the model's input in pixels.
        slices_max: Most slices of a study.
        slices_per_study: Of a study in a training step; 0 for all.
        device: The loader's.
        say: Called with a sentence for each study that cannot be read.

    Raises:
        NothingUsable: No labelled patient that is trained on can be read.
    """
    with closing(open_catalog(settings)) as catalog:
        studies = catalog.dataset().studies
    cache = StudyCache(settings.folders.cache, settings.training.cache_max_bytes, size_px, slices_max, read_volume)
    loader = Loader(cache, Augmentation(), device, slices_per_study)
    usable, _ = prepare_all(studies, loader, say)
    split = split_patients(usable, settings.training.validation_fraction)
    if not split.training:
        raise NothingUsable("expected labelled patients that are trained on, got none; see `hemofed-site catalog`")
    return loader, split


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
