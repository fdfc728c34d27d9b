"""Executors for the tasks: this process, several processes, or Ray. The results are the same."""

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
    """Ray is not installed, and `--ray` was given."""


@contextmanager
def start_pool(workers: int, ray: bool) -> Iterator[Executor]:
    """Yield an executor whose tasks run on one torch thread each, so that results do not depend on it.

    Args:
        workers: Processes, without Ray.
        ray: Whether to use Ray.

    Raises:
        RayMissing: Ray is not installed.
    """
    one_thread()
    if ray:
        with _RayPool() as pool:
            yield pool
    elif workers > 1:
        # Danger: a fork would inherit locks that threads of torch hold.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=one_thread) as processes:
            yield processes
    else:
        yield _Here()


def one_thread() -> None:
    """Give torch one thread in this process."""
    torch.set_num_threads(1)


class _Here(Executor):
    """Runs a task when it is submitted."""

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(work(*args, **kwargs))
        return future


class _RayPool(Executor):
    """Ray's workers, on this machine or on the cluster of RAY_ADDRESS. Each task has one processor core."""

    def __init__(self) -> None:
        try:
            import ray  # an extra of its own, because it is large
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
