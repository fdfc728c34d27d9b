"""Other users of the GPUs, read through NVIDIA's management library (NVML). Optional: the extra `gpu`.

NVML lists processes by the host's process ids. A service in a PID namespace of its own sees other numbers, and would
take its own processes for foreign ones. That errs towards pausing.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from site_client.trainer.idle.readings import GpuUse, Reading, Unknown


class Gpus:
    """NVML, loaded at the first sample, and again after a failure, because a driver may be loaded late."""

    def __init__(self, driver: Path = Path("/proc/driver/nvidia/version")) -> None:
        """`driver`: a file that exists if and only if NVIDIA's driver is loaded."""
        self._driver = driver
        self._nvml: Any = None  # the module; it has no type hints

    def sample(self, own: Collection[int]) -> Reading[GpuUse]:
        """Counts the foreign processes on all GPUs.

        Args:
            own: Process ids of the service and its worker.

        Returns:
            Their numbers; zeros on a machine without NVIDIA's driver, which has no GPU to share.
        """
        if not self._driver.exists():
            return GpuUse(0, 0)
        try:
            import pynvml
        except ImportError:
            return Unknown("nvidia-ml-py is not installed")
        try:
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = pynvml
            compute: set[int] = set()
            graphics: set[int] = set()
            for index in range(pynvml.nvmlDeviceGetCount()):
                device = pynvml.nvmlDeviceGetHandleByIndex(index)
                compute |= {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}
                graphics |= {process.pid for process in pynvml.nvmlDeviceGetGraphicsRunningProcesses(device)}
        except pynvml.NVMLError as error:
            self._nvml = None
            return Unknown(f"NVML answers {type(error).__name__}")
        # One process may use several GPUs: the sets count it once.
        return GpuUse(len(compute - set(own)), len(graphics - set(own)))
