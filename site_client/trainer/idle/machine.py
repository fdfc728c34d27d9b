"""Memory, disk, temperature, power supply and running programs, read from /proc and /sys."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from site_client.trainer.idle.readings import Reading, Unknown

_GIB: Final = 1 << 30
_NAME_LENGTH: Final = 15  # of a process in /proc/<pid>/comm: TASK_COMM_LEN less its terminating zero


def memory_free_gib(proc: Path = Path("/proc")) -> Reading[float]:
    """Reads the memory in GiB that is available without swapping (proc_meminfo(5), MemAvailable)."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return Unknown("/proc/meminfo cannot be read")
    available_kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return available_kib[0] * 1024 / _GIB if available_kib else Unknown("/proc/meminfo does not state MemAvailable")


def disk_free_gib(folders: Iterable[Path]) -> Reading[float]:
    """Reads the smallest free space in GiB among the disks of these folders, as an ordinary user may use it."""
    free = []
    for folder in folders:
        # A folder that is not made yet will lie on the disk of its nearest parent.
        existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
        if existing is not None:
            try:
                figures = os.statvfs(existing)
            except OSError:
                return Unknown("the disk of the state or cache folder does not answer")
            free.append(figures.f_bavail * figures.f_frsize / _GIB)
    return min(free) if free else Unknown("neither state nor cache folder exists")


def temperature_c(sys: Path = Path("/sys")) -> Reading[float]:
    """Reads the temperature of the hottest thermal zone in degrees Celsius."""
    temperatures = []
    for path in (sys / "class" / "thermal").glob("thermal_zone*/temp"):
        try:
            temperatures.append(int(path.read_text()) / 1000)
        except (OSError, ValueError):  # a zone that is switched off answers with an error; another zone may answer
            continue
    return max(temperatures) if temperatures else Unknown("this machine has no thermal zone")


def on_battery(sys: Path = Path("/sys")) -> Reading[bool]:
    """Reads from the kernel whether the machine runs on a battery. For machines where UPower does not answer.

    A machine without any power supply in /sys runs on mains: servers and virtual machines are such.
    """
    if not (sys / "class").is_dir():
        return Unknown("/sys is not mounted")
    # Scope "Device" marks the battery of a mouse or a headset.
    supplies = [path for path in (sys / "class" / "power_supply").glob("*") if _word(path / "scope") != "Device"]
    mains = [_word(path / "online") for path in supplies if _word(path / "type") in ("Mains", "USB")]
    batteries = [_word(path / "status") for path in supplies if _word(path / "type") == "Battery"]
    if not batteries or "1" in mains:
        return False
    return True if mains else "Discharging" in batteries


def running(programs: Iterable[str], proc: Path = Path("/proc")) -> Reading[frozenset[str]]:
    """Finds which of these programs run, by process name. Unknown where other users' processes are hidden."""
    names = {name[:_NAME_LENGTH]: name for name in programs}
    if not names:
        return frozenset()
    if not (proc / "1" / "comm").exists():
        return Unknown("other users' processes are hidden; drop-in: ProtectProc=default")
    processes = {_word(path) for path in proc.glob("[0-9]*/comm")}
    return frozenset(names[name] for name in processes & set(names))


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the file does not exist, or its process has just ended
        return ""
