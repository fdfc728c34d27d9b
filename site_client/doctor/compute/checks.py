"""The checks that need PyTorch: whether it can use the card that is there, and how long a round takes here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from federation.plan import TrainingPlan

from site_client.check_result import Check, CheckResult, green, grey, red
from site_client.config import SiteSettings
from site_client.doctor.compute.training_time import check_training_time


def checks(settings: SiteSettings, plan: TrainingPlan | None, *, quick: bool) -> dict[str, Check]:
    """Return the checks, by name. Unless it has to be quick, a training step of `plan` is timed."""
    named: dict[str, Check] = {"gpu": lambda: check_gpu(settings)}
    if not quick:
        # The hours of site.toml are those of the wall clock here.
        named["round time"] = lambda: check_training_time(settings, plan, datetime.now().astimezone())
    return named


@dataclass(frozen=True)
class TorchCuda:
    """The word of PyTorch itself: the CUDA it was built with, None without, and the number of cards that it can use."""

    version: str | None
    cards: int

    @classmethod
    def here(cls) -> "TorchCuda":
        """Ask this process's PyTorch."""
        return cls(torch.version.cuda, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def check_gpu(
    settings: SiteSettings,
    proc: Path = Path("/proc"),
    devices: Path = Path("/dev"),
    ask_torch: Callable[[], TorchCuda] = TorchCuda.here,
) -> Iterator[CheckResult]:
    """Check the parts of the driver that a confined service cannot load by itself, and then ask PyTorch."""
    if settings.training.device == "cpu":
        yield grey("gpu", 'training.device is "cpu"')
    elif not (proc / "driver" / "nvidia" / "version").exists():
        if settings.training.device == "cuda":
            yield red(
                "gpu", 'training.device is "cuda" and there is no NVIDIA driver', "Install the driver, or set cpu"
            )
        else:
            yield grey("gpu", "no NVIDIA driver: training uses the CPU")
    elif not (devices / "nvidia-uvm").exists():
        fix = "Load nvidia_uvm at boot: echo nvidia_uvm > /etc/modules-load.d/nvidia-uvm.conf"
        yield red("gpu", "nvidia_uvm is not loaded", fix)
    else:
        yield _of_torch(ask_torch())


def _of_torch(cuda: TorchCuda) -> CheckResult:
    if cuda.version is None:
        fix = 'Training uses the CPU. Set training.device = "cpu"; or ask the coordinator for a package with CUDA'
        return red("gpu", "there is a card, and this package's PyTorch has no CUDA", fix)
    if not cuda.cards:
        fix = "Compare the driver with nvidia-smi: an older driver than this CUDA needs cannot be used; then restart"
        return red("gpu", f"there is a card, and PyTorch with CUDA {cuda.version} cannot use it", fix)
    return green("gpu", f"PyTorch with CUDA {cuda.version} can use {cuda.cards} card{'s' if cuda.cards > 1 else ''}")
