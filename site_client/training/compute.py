"""Where the numbers are crunched: device, threads, precision."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

# bf16 pays on large images only: at 256 px a third faster, at 128 px slower (casting costs more than it saves).
_BF16_FROM_PX = 192


@dataclass(frozen=True)
class Compute:
    device: torch.device
    bf16: bool

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def name(self) -> str:
        """Part of what a checkpoint must agree on: numbers of another device or precision differ in the last bits."""
        return f"{self.device.type}-{'bf16' if self.bf16 else 'fp32'}-{torch.get_num_threads()}-{torch.__version__}"


def choose(device: Literal["auto", "cpu", "cuda"], threads: int, image_size_px: int) -> Compute:
    """Sets torch's threads (0: one a core) and decides the rest."""
    if threads:
        torch.set_num_threads(threads)
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    fast_bf16 = cuda or _cpu_has_bf16()
    return Compute(torch.device("cuda" if cuda else "cpu"), fast_bf16 and image_size_px >= _BF16_FROM_PX)


def _cpu_has_bf16() -> bool:
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
