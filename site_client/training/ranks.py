"""One training by several processes of one machine, each with its own GPU.

The studies of a step are dealt out, each process computes its gradients, and one all-reduce adds them up. So the result
equals that of one process but for rounding. The processes talk over loopback only.
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

# A process may wait days for one that prepares studies or is suspended. A dead process closes its connection at once.
_PATIENCE: Final = timedelta(days=7)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `world`. In a world of one process every operation returns its input."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes and reports."""
        return self.rank == 0

    def share(self, batch: Iterable[_T]) -> Iterator[_T]:
        """Yield the batch's items for this process: those at rank, rank + world and so on, perhaps none."""
        return islice(batch, self.rank, None, self.world)

    def add_up(self, net: nn.Module, *numbers: float) -> tuple[float, ...]:
        """Sum gradients and numbers over all processes, in one message and in float32.

        All processes have the same bits afterwards. A gradient that some processes lack counts as zero there; one that
        all lack stays None.

        Args:
            net: Its float32 gradients are replaced by their sums.
            numbers: More summands.

        Returns:
            The sums of `numbers`, rounded to float32.
        """
        if self.world == 1:
            return numbers
        parameters = list(net.parameters())
        own = [parameter.grad for parameter in parameters]
        gradients = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, own, strict=True)]
        tail = torch.tensor([*(float(grad is not None) for grad in own), *numbers], device=gradients[0].device)
        message = torch.cat([*(gradient.flatten() for gradient in gradients), tail])
        distributed.all_reduce(message)
        *sums, tail = torch.split(message, [*(p.numel() for p in parameters), len(tail)])
        tail_sums = tail.tolist()
        for parameter, total, holders in zip(parameters, sums, tail_sums, strict=False):
            # In the parameter's layout, equal in all processes: the gradient norm is then summed in the same order.
            parameter.grad = torch.empty_like(parameter).copy_(total.view_as(parameter)) if holders else None
        return tuple(tail_sums[len(parameters) :])

    def meet(self, *position: int) -> None:
        """Wait for all processes.

        Raises:
            RanksApart: Not all gave the same position.
        """
        if self.world == 1:
            return
        # The largest p and the largest -p add up to 0 only if all processes gave the same p: one message tells.
        extremes = torch.tensor([*position, *(-number for number in position)])
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
        if any(extremes[: len(position)] + extremes[len(position) :]):
            raise RanksApart(
                f"expected {self.world} processes at one position, got {position} in process {self.rank} only"
            )

    def first(self, make: Callable[[], _T]) -> _T:
        """Call `make` in the leading process and return its result in all processes.

        Raises:
            RanksApart: `make` raised an error; the leading process raises that one.
        """
        if self.world == 1:
            return make()
        made: list[_T | None] = [None]
        try:
            if self.leads:
                made = [make()]
        finally:
            # Also after an error: the other processes wait for this message, and None tells them.
            distributed.broadcast_object_list(made)
        if made[0] is None:
            raise RanksApart("the leading process failed; its own message says why")
        return made[0]


ONE: Final = Ranks()

_TORCHRUN: Final = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}  # and their defaults


@contextmanager
def of_torchrun(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Ranks]:
    """Join the processes that `torchrun --nproc-per-node N` started; without torchrun yield ONE.

    Raises:
        ConfigRefused: They are on several machines, or there are fewer GPUs than processes.
    """
    rank, world, local_world = (int(os.environ.get(name, default)) for name, default in _TORCHRUN.items())
    if local_world != world:
        raise ConfigRefused(
            f"expected all processes on one machine, got {local_world} of {world}; leave out torchrun --nnodes"
        )
    with joined(Ranks(rank, world), device, "env://") as ranks:
        yield ranks


@contextmanager
def joined(ranks: Ranks, device: Literal["auto", "cpu", "cuda"], meeting_point: str) -> Iterator[Ranks]:
    """Connect the processes: NCCL between GPUs, gloo for the rest.

    Args:
        ranks: This process.
        device: "auto" takes GPUs where there are some.
        meeting_point: env:// or file:///path, as torch takes it.

    Yields:
        `ranks`.

    Raises:
        ConfigRefused: There are fewer GPUs than processes.
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
    # Danger: no barrier after an error, because the other processes may be dead.
    distributed.barrier()
    distributed.destroy_process_group()
    # Danger: a traceback that still holds the group would abort the process at its exit.
    gc.collect()
