"""Where the work runs: in this process, in some processes, or on Ray. One verb, `submit`, and the same results."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class RayMissing(RuntimeError):
    """--ray was asked for and Ray is not installed."""


@contextmanager
def start_pool(workers: int, ray: bool) -> Iterator[Executor]:
    """Every task has one thread of torch, wherever it runs: results do not depend on the place."""
    one_thread()
    if ray:
        with _RayPool() as pool:
            yield pool
    elif workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=one_thread) as processes:
            yield processes
    else:
        yield _Here()


def one_thread() -> None:
    torch.set_num_threads(1)


class _Here(Executor):
    """Runs a task when it is submitted."""

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(work(*args, **kwargs))
        return future


class _RayPool(Executor):
    """Ray's workers: of this machine, or of the cluster that RAY_ADDRESS names. One processor core a task."""

    def __init__(self) -> None:
        try:
            import ray  # an extra of its own: not needed, and large
        except ImportError as error:
            raise RayMissing(
                "expected Ray for --ray, got none; install it with .venv/bin/pip install 'hemofed[ray]'"
            ) from error
        self._ray = ray
        ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = self._ray.remote(_on_one_thread).remote(partial(work, *args, **kwargs)).future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._ray.shutdown()


def _on_one_thread(work: Callable[[], T]) -> T:
    one_thread()
    return work()
