"""Readers: how the rest of hemofed reads a file of the export. No other process of ours parses or decodes one."""

import atexit
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import LifoQueue
from typing import Any, Final, Protocol, TypeVar

from site_client.ingest.files.addresses import ListedMember
from site_client.ingest.files.reader import Reader
from site_client.ingest.files.slices import Slice, unreadable
from site_client.ingest.reasons import Reason

PROCESSES_MAX: Final = 4  # more would wait for the disk
_BATCH: Final = 16  # files a request, where several processes share the work

Item = TypeVar("Item")
Result = TypeVar("Result")


class SliceSource(Protocol):
    """Anything that decodes files: a reader, or all of them."""

    def slices(self, paths: Sequence[Path], step: int = 1) -> "list[Slice | Reason]":
        """Decodes files, in order; a file that cannot be used gives a reason. For `step` see `Slice`."""
        ...


class Readers:
    """Several readers, and a thread for each that waits for its answers."""

    def __init__(self, processes: int) -> None:
        """Starts nothing; each reader starts its process when it is asked."""
        self._readers = [Reader() for _ in range(processes)]
        # The last one first: who asks one question after the other needs one process.
        self._idle: LifoQueue[Reader] = LifoQueue()
        for reader in self._readers:
            self._idle.put(reader)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="reader")

    def start(self) -> None:
        """Starts one process and does not wait, for callers that have imports of their own to do.

        Raises:
            IngestError: No reader process can be started.
        """
        self._with_reader(Reader.start)

    def decoders(self) -> tuple[str, ...]:
        """Lists the transfer syntaxes that can be decoded here.

        Raises:
            IngestError: No reader process can be started.
        """
        return self._with_reader(Reader.decoders)

    def map(self, work: Callable[[Reader, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Calls `work` with a reader for every item, in as many threads as there are readers.

        `items` is drawn from the caller's own thread, a few ahead of the results.

        Yields:
            The results, in the order of the items.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._threads.submit(self._with_reader, work, item))
                if len(waiting) > 2 * len(self._readers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def slices(self, paths: Sequence[Path], step: int = 1) -> list[Slice | Reason]:
        """Decodes files, in order, in all processes at once.

        Raises:
            IngestError: No reader process can be started.
        """
        batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
        parts = self.map(lambda reader, batch: reader.slices(batch, step), batches)
        return [image for part in parts for image in part]

    def sop_uids(self, paths: Sequence[Path]) -> list[str | Reason]:
        """Reads the SOP instance UID of each file.

        Raises:
            IngestError: No reader process can be started.
        """
        return self._with_reader(Reader.sop_uids, paths)

    def archive(self, path: Path) -> list[ListedMember] | Reason:
        """Lists the members of an archive.

        Raises:
            IngestError: No reader process can be started.
        """
        return self._with_reader(Reader.archive, path)

    def release(self) -> None:
        """Ends the processes, which take memory; the next question starts others. For when no question is asked."""
        for reader in self._readers:
            reader.close()

    def close(self) -> None:
        """Ends all processes and threads."""
        self._threads.shutdown()
        self.release()

    def _with_reader(self, work: Callable[..., Result], *arguments: Any) -> Result:
        reader = self._idle.get()
        try:
            return work(reader, *arguments)
        finally:
            self._idle.put(reader)


def shared_readers() -> Readers:
    """Gives this process's readers: as many as it may use cores, and PROCESSES_MAX at most."""
    return _readers_of(os.getpid())


@cache
def _readers_of(process: int) -> Readers:
    # By process: after a fork the child would share the parent's pipes. One of several that share the work needs one.
    is_one_of_several = multiprocessing.parent_process() is not None
    readers = Readers(1 if is_one_of_several else min(PROCESSES_MAX, len(os.sched_getaffinity(process))))
    atexit.register(readers.close)
    return readers


def whole(results: Iterable[Result | Reason]) -> list[Result]:
    """Gives the results of files that can all be used.

    Raises:
        SeriesUnreadable: One of them cannot; the code is its reason.
    """
    usable: list[Result] = []
    for result in results:
        if isinstance(result, Reason):
            raise unreadable(result)
        usable.append(result)
    return usable
