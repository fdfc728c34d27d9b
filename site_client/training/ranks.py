"""One training by several processes of one machine, each with a GPU of its own: who computes what, and their sum.

A step's studies are dealt out; each process computes its own gradients; one message adds them up. The mean over a
step's studies is the same whoever computed it, so that many processes equal one, but for rounding. They talk over
loopback only.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Final, Literal, TypeVar

import torch
from torch import distributed, nn

from site_client.errors import ConfigRefused, RanksApart

# One waits for as long as another prepares, judges or stands still; what has died closes its connection.
_PATIENCE: Final = timedelta(days=7)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """This is process `rank` of `world`. Alone, as ONE, every operation gives back what it got."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """The one process that writes and reports."""
        return self.rank == 0

    def share(self, batch: Iterable[_T]) -> Iterator[_T]:
        """What of a batch is computed here: its places rank, rank + world, and so on; perhaps none."""
        return islice(batch, self.rank, None, self.world)

    def add_up(self, net: nn.Module, *numbers: float) -> tuple[float, ...]:
        """Sums the gradients of `net`, in place, and these numbers, in float32; all have the same bits afterwards.

        One message. A gradient that some lack counts as zero, one that all lack stays None.
        """
        if self.world == 1:
            return numbers
        parameters = list(net.parameters())
        mine = [parameter.grad for parameter in parameters]
        parts = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, mine, strict=True)]
        tail = torch.tensor([*(float(grad is not None) for grad in mine), *numbers], device=parts[0].device)
        message = torch.cat([*(part.flatten() for part in parts), tail])
        distributed.all_reduce(message)
        *sums, tail = torch.split(message, [*(p.numel() for p in parameters), len(tail)])
        told = tail.tolist()
        for parameter, total, holders in zip(parameters, sums, told, strict=False):
            # Laid out as the parameter is, on all alike: their norm is summed in the same order.
            parameter.grad = torch.empty_like(parameter).copy_(total.view_as(parameter)) if holders else None
        return tuple(told[len(parameters) :])

    def meet(self, *where: int) -> None:
        """Waits for all. Raises RanksApart when they are not at the same place of the same work."""
        if self.world == 1:
            return
        extremes = torch.tensor([*where, *(-number for number in where)])
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
        if any(extremes[: len(where)] + extremes[len(where) :]):
            raise RanksApart(f"expected {self.world} processes at one place, got {where} in process {self.rank} only")

    def first(self, make: Callable[[], _T]) -> _T:
        """What the leading process makes, for all of them. Its error is its own; the others raise RanksApart."""
        if self.world == 1:
            return make()
        made: list[_T | None] = [None]
        try:
            if self.leads:
                made = [make()]
        finally:
            distributed.broadcast_object_list(made)
        if made[0] is None:
            raise RanksApart("the first of the processes failed, and says why; nothing is left to do for this one")
        return made[0]


ONE: Final = Ranks()


_TORCHRUN: Final = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


@contextmanager
def of_torchrun(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Ranks]:
    """The processes that `torchrun --nproc-per-node N` started, this one among them; ONE in any other process."""
    rank, world, here = (int(os.environ.get(name, alone)) for name, alone in _TORCHRUN.items())
    if here != world:
        raise ConfigRefused(
            f"expected all processes on one machine, got {here} of {world}; leave out torchrun --nnodes"
        )
    with joined(Ranks(rank, world), device, "env://") as ranks:
        yield ranks


@contextmanager
def joined(ranks: Ranks, device: Literal["auto", "cpu", "cuda"], meeting_point: str) -> Iterator[Ranks]:
    """`ranks`, connected: gloo, and NCCL for what lies on GPUs. Raises ConfigRefused when there are fewer of them.

    `meeting_point`: env:// or file:///path, as torch takes it.
    """
    if ranks.world == 1:
        yield ranks
        return
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus and torch.cuda.device_count() < ranks.world:
        raise ConfigRefused(f"expected a GPU for each of {ranks.world} processes, got {torch.cuda.device_count()}")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = "lo"
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    distributed.init_process_group(backend, meeting_point, _PATIENCE, ranks.world, ranks.rank)
    yield ranks
    # Not after an error: whoever is waited for may be dead.
    distributed.barrier()
    distributed.destroy_process_group()
    gc.collect()  # what an error's traceback still holds of the group would abort the process when it exits
