"""How much of the machine others use: CPU, and time they stall for memory or the disk. Differences of kernel counters.

What hemofed uses itself never counts. Run by its units, both processes are in one cgroup slice, whose `cpu.stat` and
`*.pressure` are subtracted; run otherwise, the CPU time of the service and of its worker is, and I/O pressure stays
unknown because nothing tells whose it is. Sources: proc_stat(5), Documentation/accounting/psi.rst, cgroup-v2.rst.
"""

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from site_client.trainer.idle.readings import Reading, Unknown

SLICE: Final = "hemofed.slice"
SPAN_S: Final = 0.9  # counters tick at 10 ms: a difference over less would be noise
_IDLE_COLUMNS: Final = (3, 4)  # idle, iowait
_COUNTED_COLUMNS: Final = 8  # user nice system idle iowait irq softirq steal; guest time is in user already
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Counters:
    """Seconds since boot, as of `at_s` (monotonic). `own_*`: hemofed's part."""

    at_s: float
    busy_s: float
    total_s: float  # of all cores
    own_busy_s: float
    memory_stall_s: Reading[float]
    io_stall_s: Reading[float]


@dataclass(frozen=True)
class Load:
    """Shares 0..1 since about a second ago."""

    foreign_cpu: Reading[float]
    memory_pressure: Reading[float]
    io_pressure: Reading[float]


class Processor:
    """Remembers the last second of counters. `look` at any rate; `proc` and `cgroups` are the mounts."""

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._slice = _own_slice(proc, cgroups)
        self._past: deque[Counters] = deque()
        self._ended_s: dict[int, float] = {}  # CPU time last seen of each of our processes: an ended one keeps it

    def look(self, at_s: float, own: Iterable[int]) -> Load:
        """`own`: the process ids of the service and its worker, for where there is no slice of our own."""
        try:
            now = self._count(at_s, own)
        except (OSError, ValueError, IndexError) as error:
            self._past.clear()
            why = Unknown(f"/proc/stat cannot be read ({type(error).__name__})")
            return Load(why, why, why)
        while len(self._past) > 1 and at_s - self._past[1].at_s >= SPAN_S:
            self._past.popleft()
        self._past.append(now)
        return _between(self._past[0], now)

    def _count(self, at_s: float, own: Iterable[int]) -> Counters:
        columns = [int(word) for word in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:]]
        counted = columns[:_COUNTED_COLUMNS]
        idle = sum(counted[index] for index in _IDLE_COLUMNS)
        return Counters(
            at_s=at_s,
            busy_s=(sum(counted) - idle) * _TICK_S,
            total_s=sum(counted) * _TICK_S,
            own_busy_s=self._own_cpu_s(own),
            memory_stall_s=self._stall_s("memory"),
            io_stall_s=self._stall_s("io"),
        )

    def _own_cpu_s(self, own: Iterable[int]) -> float:
        if self._slice is not None:
            words = (self._slice / "cpu.stat").read_text().split()
            return int(words[words.index("usage_usec") + 1]) / 1e6
        for process in own:
            used_s = _cpu_time_s(self._proc, process)
            if used_s is not None:
                self._ended_s[process] = used_s
        return sum(self._ended_s.values())

    def _stall_s(self, resource: str) -> Reading[float]:
        try:
            whole_s = _stalled_s(self._proc / "pressure" / resource)
            if self._slice is not None:
                return whole_s - _stalled_s(self._slice / f"{resource}.pressure")
        except (OSError, ValueError):
            return Unknown("this kernel does not report pressure")
        # Our own reading stalls on the disk as a matter of course; memory that we lack, others lack too.
        return whole_s if resource == "memory" else Unknown("without the packaged units nothing tells whose I/O it is")


def _between(then: Counters, now: Counters) -> Load:
    if now.at_s - then.at_s < SPAN_S / 2 or now.total_s <= then.total_s:
        why = Unknown("measured for less than a second")
        return Load(why, why, why)
    foreign_s = (now.busy_s - then.busy_s) - (now.own_busy_s - then.own_busy_s)
    return Load(
        foreign_cpu=_share(foreign_s, now.total_s - then.total_s),
        memory_pressure=_pressure(then.memory_stall_s, now.memory_stall_s, now.at_s - then.at_s),
        io_pressure=_pressure(then.io_stall_s, now.io_stall_s, now.at_s - then.at_s),
    )


def _pressure(then: Reading[float], now: Reading[float], span_s: float) -> Reading[float]:
    if isinstance(now, Unknown) or isinstance(then, Unknown):
        return now if isinstance(now, Unknown) else Unknown("measured for less than a second")
    return _share(now - then, span_s)


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))


def _stalled_s(path: Path) -> float:
    """Seconds in which at least one task stalled: the total= of the "some" line."""
    some = path.read_text().split("\n", 1)[0]
    return int(some.rpartition("total=")[2]) / 1e6


def _cpu_time_s(proc: Path, process: int) -> float | None:
    """Of a process and its waited-for children; None when it has ended."""
    try:
        text = (proc / str(process) / "stat").read_text()
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()  # the name may hold blanks and brackets
    return sum(int(word) for word in after_name[11:15]) * _TICK_S


def _own_slice(proc: Path, cgroups: Path) -> Path | None:
    """The cgroup directory of our slice, when this process runs in it and the kernel accounts for it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().split("\n")
    except OSError:
        return None
    ours = any(line.startswith("0::/") and SLICE in line.split("/") for line in lines)
    folder = cgroups / SLICE
    return folder if ours and (folder / "cpu.stat").exists() else None
