"""Where the numbers are crunched: device, threads, precision, processes."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from site_client.training.ranks import ONE, Ranks

# bf16 pays on large images only: at 256 px a third faster, at 128 px slower (casting costs more than it saves).
_BF16_FROM_PX = 192


@dataclass(frozen=True)
class Compute:
    device: torch.device
    bf16: bool
    ranks: Ranks = ONE

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
    pays = (cuda or _cpu_has_bf16()) and image_size_px >= _BF16_FROM_PX
    return Compute(torch.device("cuda" if cuda else "cpu"), pays if precision == "auto" else precision == "bf16", ranks)


def _cpu_has_bf16() -> bool:
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
