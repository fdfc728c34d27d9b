"""Memory, disk, temperature, power supply and running programs, out of /proc and /sys."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from site_client.trainer.idle.readings import Reading, Unknown

_GIB: Final = 1 << 30
_NAME_LENGTH: Final = 15  # of a process as /proc/<pid>/comm gives it (TASK_COMM_LEN less its zero)


def memory_free_gib(proc: Path = Path("/proc")) -> Reading[float]:
    """What can be had without swapping: MemAvailable."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return Unknown("/proc/meminfo cannot be read")
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return found[0] * 1024 / _GIB if found else Unknown("/proc/meminfo says nothing about available memory")


def disk_free_gib(folders: Iterable[Path]) -> Reading[float]:
    """The least that is free to us on any disk of these folders; of the nearest parent for one not made yet."""
    free = []
    for folder in folders:
        there = next((path for path in (folder, *folder.parents) if path.exists()), None)
        if there is not None:
            try:
                figures = os.statvfs(there)
            except OSError:
                return Unknown("the disk of the state or cache folder does not answer")
            free.append(figures.f_bavail * figures.f_frsize / _GIB)
    return min(free) if free else Unknown("neither state nor cache folder exists")


def temperature_c(sys: Path = Path("/sys")) -> Reading[float]:
    """Of the hottest thermal zone."""
    found = []
    for path in (sys / "class" / "thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(path.read_text()) / 1000)
        except (OSError, ValueError):  # a zone that is switched off answers with an error; another may answer
            continue
    return max(found) if found else Unknown("this machine has no thermal zone")


def on_battery(sys: Path = Path("/sys")) -> Reading[bool]:
    """From the kernel's power supplies; a machine without any is on mains. For where UPower does not answer."""
    if not (sys / "class").is_dir():
        return Unknown("/sys is not there")
    supplies = [path for path in (sys / "class" / "power_supply").glob("*") if _word(path / "scope") != "Device"]
    mains = [_word(path / "online") for path in supplies if _word(path / "type") in ("Mains", "USB")]
    batteries = [_word(path / "status") for path in supplies if _word(path / "type") == "Battery"]
    if not batteries or "1" in mains:
        return False
    return True if mains else "Discharging" in batteries


def running(wanted: Iterable[str], proc: Path = Path("/proc")) -> Reading[frozenset[str]]:
    """Which of these programs run, by process name. Unknown where other users' processes are hidden from us."""
    names = {name[:_NAME_LENGTH]: name for name in wanted}
    if not names:
        return frozenset()
    if not (proc / "1" / "comm").exists():
        return Unknown("other users' processes are hidden; drop-in: ProtectProc=default")
    found = {_word(path) for path in proc.glob("[0-9]*/comm")}
    return frozenset(names[name] for name in found & set(names))


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # not there, or a process that has just ended
        return ""
