"""Where the numbers are crunched: device, threads, precision, processes."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from site_client.model.network import Network, SequenceNet
from site_client.training.ranks import ONE, Ranks

# bf16 pays on a CPU with large images: at 256 px a third faster, at 128 px slower (casting costs more than it saves).
# On a GPU the casts are so many kernels more to launch, for arithmetic that takes as long as in TF32.
_BF16_FROM_PX = 192
# The hungriest architecture's activations take about .3 GiB a slice of 256 px: a third of the card, which others may
# use too.
_SLICES_A_GIB = 1.0
_CHUNK_MIN = 16


@dataclass(frozen=True)
class Compute:
    """`slices_a_pass`: a step's studies go through the network together until they hold so many; 1: each goes alone."""

    device: torch.device
    bf16: bool
    ranks: Ranks = ONE
    slices_a_pass: int = 1

    def place(self, net: Network) -> Network:
        """Moves `net` to the device, in place, and lets it use what memory a GPU has."""
        if isinstance(net, SequenceNet) and self.device.type == "cuda":
            net.chunk = max(_CHUNK_MIN, self.slices_a_pass)
        return net.to(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def name(self) -> str:
        """Part of what a checkpoint must agree on: numbers of another device or precision differ in the last bits."""
        many = "" if self.ranks.world == 1 else f"{self.ranks.world}x"
        return f"{many}{self.kind}-{torch.get_num_threads()}-{torch.__version__}"

    @property
    def kind(self) -> str:
        """Device and precision."""
        return f"{self.device.type}-{'bf16' if self.bf16 else 'fp32'}"


def choose(
    device: Literal["auto", "cpu", "cuda"],
    threads: int,
    image_size_px: int,
    ranks: Ranks = ONE,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> Compute:
    """Sets torch's threads (0: one a core, among all processes) and decides the rest. "auto": bf16 where it pays."""
    if threads or ranks.world > 1:
        torch.set_num_threads(threads or max(1, torch.get_num_threads() // ranks.world))
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda and ranks.world > 1:
        torch.cuda.set_device(ranks.rank)  # what "cuda" means in this process
    pays = not cuda and _cpu_has_bf16() and image_size_px >= _BF16_FROM_PX
    bf16 = pays if precision == "auto" else precision == "bf16"
    if not cuda:
        return Compute(torch.device("cpu"), bf16, ranks)
    return Compute(torch.device("cuda"), bf16, ranks, _slices_a_pass(image_size_px))


def _slices_a_pass(image_size_px: int) -> int:
    """A GPU waits for its kernels to be launched unless each has much to do; its memory says how much."""
    gib = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
    return max(1, int(gib * _SLICES_A_GIB * (256 / image_size_px) ** 2))


def _cpu_has_bf16() -> bool:
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
