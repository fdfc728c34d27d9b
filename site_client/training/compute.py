"""The compute of a training: device, threads, precision, processes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from site_client.model.network import Network, SequenceNet
from site_client.training.ranks import ONE, Ranks

# Cost: on a CPU bf16 is a third faster at 256 px and slower at 128 px, where casting costs more than it saves. On a GPU
# the casts are additional kernels to launch, and the arithmetic takes as long as in TF32.
_BF16_FROM_PX = 192
# The activations of the largest architecture take about .3 GiB a slice of 256 px. So this fills a third of a card,
# which other programs may use too.
_SLICES_A_GIB = 1.0
# On a CPU a pass costs a constant: standardizing the kernels of densenet121 takes as long as twelve slices of 48 px. A
# chunk has room for what a full pass may hold beyond its number: a second chunk would cost the constant twice and
# compute all activations again. 64 slices of 64 px take less memory than 16 of 256 px.
_SLICES_A_PASS_CPU = 16
_PIXELS_A_PASS_CPU = 32 * 64**2


@dataclass(frozen=True)
class Compute:
    """The machine and the precision of the arithmetic.

    Attributes:
        device: CPU or one GPU.
        bf16: Whether autocast uses bfloat16.
        ranks: The processes that share a step.
        slices_a_pass: The studies of a step go through the network together until they hold so many slices; with 1
            each study goes alone.
    """

    device: torch.device
    bf16: bool
    ranks: Ranks = ONE
    slices_a_pass: int = 1

    def place(self, net: Network) -> Network:
        """Move `net` to the device, in place. A full pass goes through its backbone at once."""
        if isinstance(net, SequenceNet):
            room = 2 if self.device.type == "cpu" and self.slices_a_pass > _SLICES_A_PASS_CPU else 1
            net.chunk = max(net.chunk, room * self.slices_a_pass)
        return net.to(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of forward passes in training: bfloat16 where `bf16`, else float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Yield the context of forward passes whose outputs are kept: no gradients, float32.

        So probabilities do not depend on the machine beyond rounding. Without the flag a GPU would convolve in TF32,
        which moves them in the third digit.
        """
        # Danger: the flag is the process's, not this context's. Training after an evaluation has to find it as it was.
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.backends.cudnn.allow_tf32 = before

    @property
    def name(self) -> str:
        """Processes, device, precision, threads and torch's version: all that changes the last bits of a result."""
        processes = "" if self.ranks.world == 1 else f"{self.ranks.world}x"
        return f"{processes}{self.kind}-{torch.get_num_threads()}-{torch.__version__}"

    @property
    def kind(self) -> str:
        """Device and precision, such as "cpu-bf16" or "cuda-fp32"."""
        return f"{self.device.type}-{'bf16' if self.bf16 else 'fp32'}"


def choose(
    device: Literal["auto", "cpu", "cuda"],
    threads: int,
    image_size_px: int,
    ranks: Ranks = ONE,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> Compute:
    """Set torch's threads in this process and choose the rest.

    Args:
        device: "auto" takes a GPU where there is one.
        threads: Threads of torch; 0 gives each core one, shared among the processes of `ranks`.
        image_size_px: Side of a slice in pixels. It decides precision and slices a pass.
        ranks: The processes that share a step.
        precision: "auto" takes bfloat16 where it is faster.
    """
    if threads or ranks.world > 1:
        torch.set_num_threads(threads or max(1, torch.get_num_threads() // ranks.world))
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda and ranks.world > 1:
        torch.cuda.set_device(ranks.rank)  # the GPU that "cuda" names in this process
    if cuda:
        # Launching kernels costs more than small ones compute, so a pass takes as many slices as memory has room for.
        gib = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        slices_a_pass = max(1, int(gib * _SLICES_A_GIB * (256 / image_size_px) ** 2))
        return Compute(torch.device("cuda"), precision == "bf16", ranks, slices_a_pass)
    capabilities = torch.cpu.get_capabilities()
    has_bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    faster = has_bf16 and image_size_px >= _BF16_FROM_PX
    bf16 = faster if precision == "auto" else precision == "bf16"
    slices_a_pass = max(_SLICES_A_PASS_CPU, _PIXELS_A_PASS_CPU // image_size_px**2)
    return Compute(torch.device("cpu"), bf16, ranks, slices_a_pass)
