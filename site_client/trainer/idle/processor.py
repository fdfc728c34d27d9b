"""The machine's use by others: CPU, and stalls for memory or the disk, as differences of kernel counters.

hemofed's own use never counts. Under its systemd units both processes are in one cgroup slice, and the slice's
`cpu.stat` and `*.pressure` are subtracted. Without the units the CPU time of the service and its worker is subtracted,
and I/O pressure stays unknown, because nothing tells whose it is.
Sources: proc_stat(5), Documentation/accounting/psi.rst, cgroup-v2.rst.
"""

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from site_client.trainer.idle.readings import Reading, Unknown

SLICE: Final = "hemofed.slice"
SPAN_S: Final = 0.9  # counters tick at 10 ms: a difference over a shorter span would be noise
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
    """Shares 0..1 over about the last second."""

    foreign_cpu: Reading[float]
    memory_pressure: Reading[float]
    io_pressure: Reading[float]


class Processor:
    """Keeps the counters of the last second, so that samples may come at any rate."""

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        """`proc` and `cgroups`: where these file systems are mounted."""
        self._proc = proc
        self._slice = _own_slice(proc, cgroups)
        self._past: deque[Counters] = deque()
        self._own_cpu_s: dict[int, float] = {}  # last CPU time of each own process; an ended process keeps its entry

    def sample(self, at_s: float, own: Iterable[int]) -> Load:
        """Reads the counters and compares them with those of about a second ago.

        Args:
            at_s: Seconds of the monotonic clock.
            own: Process ids of the service and its worker, for machines without the units' slice.
        """
        try:
            now = self._count(at_s, own)
        except (OSError, ValueError, IndexError) as error:
            self._past.clear()  # a difference across the gap would spread one burst over all of it
            why = Unknown(f"/proc/stat cannot be read ({type(error).__name__})")
            return Load(why, why, why)
        while len(self._past) > 1 and at_s - self._past[1].at_s >= SPAN_S:
            self._past.popleft()
        self._past.append(now)
        then = self._past[0]
        # Also after a clock or counter that stood still: nothing is divided by 0, and the signal is unknown.
        if now.at_s - then.at_s < SPAN_S / 2 or now.total_s <= then.total_s:
            why = Unknown("measured for less than a second")
            return Load(why, why, why)
        foreign_s = (now.busy_s - then.busy_s) - (now.own_busy_s - then.own_busy_s)
        return Load(
            foreign_cpu=_share(foreign_s, now.total_s - then.total_s),
            memory_pressure=_pressure(then.memory_stall_s, now.memory_stall_s, now.at_s - then.at_s),
            io_pressure=_pressure(then.io_stall_s, now.io_stall_s, now.at_s - then.at_s),
        )

    def _count(self, at_s: float, own: Iterable[int]) -> Counters:
        columns = [int(word) for word in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:]]
        counted = columns[:_COUNTED_COLUMNS]
        idle = sum(counted[index] for index in _IDLE_COLUMNS)
        return Counters(
            at_s=at_s,
            busy_s=(sum(counted) - idle) * _TICK_S,
            total_s=sum(counted) * _TICK_S,
            own_busy_s=self._own_busy_s(own),
            memory_stall_s=self._stall_s("memory"),
            io_stall_s=self._stall_s("io"),
        )

    def _own_busy_s(self, own: Iterable[int]) -> float:
        if self._slice is not None:
            words = (self._slice / "cpu.stat").read_text().split()
            return int(words[words.index("usage_usec") + 1]) / 1e6
        for process_id in own:
            used_s = _cpu_time_s(self._proc, process_id)
            if used_s is not None:
                self._own_cpu_s[process_id] = used_s
        # Ended processes too: without them the sum would fall, and their time would count as foreign.
        return sum(self._own_cpu_s.values())

    def _stall_s(self, resource: str) -> Reading[float]:
        try:
            whole_s = _stalled_s(self._proc / "pressure" / resource)
            if self._slice is not None:
                return whole_s - _stalled_s(self._slice / f"{resource}.pressure")
        except (OSError, ValueError):
            return Unknown("this kernel does not report pressure")
        # Training reads from the disk all the time and so stalls on it. Memory that hemofed lacks, others lack too.
        return whole_s if resource == "memory" else Unknown("without the packaged units nothing tells whose I/O it is")


def _pressure(then: Reading[float], now: Reading[float], span_s: float) -> Reading[float]:
    if isinstance(now, Unknown):
        return now
    return Unknown("measured for less than a second") if isinstance(then, Unknown) else _share(now - then, span_s)


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole))


def _stalled_s(path: Path) -> float:
    """Reads the seconds in which at least one task stalled: total= of the line "some", in microseconds."""
    some = path.read_text().split("\n", 1)[0]
    return int(some.rpartition("total=")[2]) / 1e6


def _cpu_time_s(proc: Path, process_id: int) -> float | None:
    """Reads the CPU time of a process and of its waited-for children; None when it has ended."""
    try:
        text = (proc / str(process_id) / "stat").read_text()
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()  # the name may hold blanks and brackets
    return sum(int(word) for word in after_name[11:15]) * _TICK_S  # utime stime cutime cstime


def _own_slice(proc: Path, cgroups: Path) -> Path | None:
    """Finds the cgroup folder of our slice if this process runs in it and the kernel accounts for it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().split("\n")
    except OSError:
        return None
    in_slice = any(line.startswith("0::/") and SLICE in line.split("/") for line in lines)
    folder = cgroups / SLICE
    return folder if in_slice and (folder / "cpu.stat").exists() else None
