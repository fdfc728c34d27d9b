"""Who else uses the GPUs, through NVIDIA's management library. Optional: `pip install hemofed[gpu]`.

Processes are listed in the host's numbers, and a confined service may see them as foreign though they are its own:
ours are told by their process ids, so where NVML and this process disagree about numbers (a PID namespace of its own)
this errs towards pausing.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from site_client.trainer.idle.readings import GpuUse, Reading, Unknown


class Gpus:
    """NVML, loaded when first asked; asked again after it failed, because a driver may be loaded late."""

    def __init__(self, driver: Path = Path("/proc/driver/nvidia/version")) -> None:
        self._driver = driver
        self._nvml: Any = None  # the module; it has no type hints

    def look(self, own: Collection[int]) -> Reading[GpuUse]:
        """A machine without NVIDIA's driver has no GPU to share: nobody uses it."""
        if not self._driver.exists():
            return GpuUse(0, 0)
        try:
            import pynvml
        except ImportError:
            return Unknown("nvidia-ml-py is not installed; install hemofed[gpu]")
        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = pynvml
            return _count(pynvml, own)
        except pynvml.NVMLError as error:
            self._nvml = None
            return Unknown(f"NVML answers {type(error).__name__}")


def _count(nvml: Any, own: Collection[int]) -> GpuUse:
    compute: set[int] = set()
    graphics: set[int] = set()
    for index in range(nvml.nvmlDeviceGetCount()):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        compute |= {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)}
        graphics |= {process.pid for process in nvml.nvmlDeviceGetGraphicsRunningProcesses(device)}
    return GpuUse(len(compute - set(own)), len(graphics - set(own)))
