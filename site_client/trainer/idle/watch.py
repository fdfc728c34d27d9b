"""The idle gate as it runs: it samples every signal, asks `decide`, and keeps the state.

Every sample, four a second, reads CPU, pressure, memory and the operator's order. A thread of its own reads, once a
second, the signals whose source may hang: D-Bus daemons, disks that are mounted from elsewhere, the GPU's driver. A
source that hangs makes its signals unknown, and it never delays a pause.
"""

import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from site_client.bus import Bus
from site_client.config import SiteSettings
from site_client.files import replace_file
from site_client.records import AwareTime
from site_client.trainer.idle import daemons, machine, operator
from site_client.trainer.idle.decide import GateState, IdleDecision, Mode, decide
from site_client.trainer.idle.gpu import Gpus
from site_client.trainer.idle.processor import Processor
from site_client.trainer.idle.readings import Moment, Signals, Unknown
from site_client.typed_json import encode, read_state

SLOW_S: Final = 1.0
STALE_S: Final = 10.0
_RECORD = "gate.json"


class Watch:
    """Samples the machine and decides. `start` starts the slow probes; `stop` ends them."""

    def __init__(self, settings: SiteSettings, clock: Callable[[], datetime], zone: tzinfo) -> None:
        """Decides nothing yet: no worker may run before the first sample.

        Args:
            settings: Of this site.
            clock: The wall clock, aware.
            zone: The time zone of the policy's windows.
        """
        self._settings, self._clock, self._zone = settings, clock, zone
        self._processor = Processor()
        self._slow = SlowProbes(settings)
        self.decision = IdleDecision(GateState(), ())
        self.signals = Signals()

    def start(self) -> None:
        """Starts the slow probes."""
        threading.Thread(target=self._slow.run, name="signals", daemon=True).start()

    def stop(self) -> None:
        """Ends the slow probes after their current round; does not wait for it, because it may hang."""
        self._slow.stopping.set()

    def sample(self, own: Collection[int], *, job_at_hand: bool) -> IdleDecision:
        """Takes one sample and decides.

        Args:
            own: Process ids of the service, its worker and the worker's rank processes.
            job_at_hand: A job is in progress.
        """
        now = Moment(self._clock().astimezone(self._zone), time.monotonic())
        self._slow.own = frozenset(own)
        load = self._processor.sample(now.elapsed_s, own)
        signals = replace(
            self._slow.latest(now.elapsed_s),
            foreign_cpu=load.foreign_cpu,
            memory_pressure=load.memory_pressure,
            io_pressure=load.io_pressure,
            memory_free_gib=machine.memory_free_gib(),
            operator=operator.current(self._settings.folders.state),
        )
        # `decide` keeps nothing: its memory travels in the decision before.
        self.decision = decide(signals, self._settings.idle, self.decision.gate, now, job_at_hand=job_at_hand)
        self.signals = signals
        return self.decision

    def write_record(self) -> None:
        """Writes the last decision in words, for `hemofed-site status`, in place of the record before."""
        record = GateRecord(
            self._clock(),
            self.decision.mode,
            tuple(pause.words for pause in self.decision.pause_reasons),
            tuple(sorted(self.signals.unknown())),
        )
        write_record(self._settings.folders.trainer, record)


class SlowProbes:
    """The probes that may hang, and their newest values."""

    def __init__(self, settings: SiteSettings) -> None:
        """Reads nothing yet; `run` does, in a thread of its own."""
        self.stopping = threading.Event()
        self.own: Collection[int] = frozenset()
        self._settings = settings
        self._bus, self._gpus = Bus(), Gpus()
        # Values and their time in one tuple: the loop reads it in another thread, and must not see half of a change.
        self._newest: tuple[Signals, float] | None = None

    def run(self) -> None:
        """Reads all probes once a second until `stopping`."""
        while not self.stopping.is_set():
            self._newest = (self.read(), time.monotonic())
            self.stopping.wait(SLOW_S)
        self._bus.close()  # by the thread that uses it

    def latest(self, now_s: float) -> Signals:
        """Gives the newest values; all are unknown before the first, and when the newest are older than STALE_S."""
        newest = self._newest
        return Signals() if newest is None or now_s - newest[1] > STALE_S else newest[0]

    def read(self) -> Signals:
        """Reads the probes now."""
        settings = self._settings
        sessions = daemons.sessions(self._bus, time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
        with_bare = settings.idle.bare_sessions == "pause"
        # Each of these may wait seconds for a daemon, a disk or a driver: never call `read` from the loop.
        on_battery, on_ups = daemons.power_supply(self._bus)
        without_gpu = settings.training.device == "cpu"
        return Signals(
            gpu=Unknown("training does not use it") if without_gpu else self._gpus.sample(self.own),
            user_idle_s=daemons.idle_s(sessions, remote=False),
            remote_idle_s=daemons.idle_s(sessions, remote=True, with_bare=with_bare),
            sessions=() if isinstance(sessions, Unknown) else sessions,
            on_battery=on_battery,
            on_ups=on_ups,
            temperature_c=machine.temperature_c(),
            disk_free_gib=machine.disk_free_gib((settings.folders.trainer, settings.folders.cache)),
            programs=machine.running(settings.idle.exclusive_programs),
        )


@dataclass(frozen=True)
class GateRecord:
    """The gate in words, as of `written_at`: reasons to pause, and the signals that cannot be read."""

    written_at: AwareTime
    mode: Mode
    words: tuple[str, ...]
    unknown: tuple[str, ...]


def write_record(folder: Path, record: GateRecord) -> None:
    """Replaces the gate's record in the trainer's folder."""
    replace_file(folder / _RECORD, encode(record))


def read_record(folder: Path) -> GateRecord | None:
    """Reads the gate's last record from the trainer's folder; None before the first.

    Raises:
        StateRefused: The file is damaged.
    """
    return read_state(GateRecord, folder / _RECORD, "restart the trainer, which writes a new one")


def local_zone(localtime: Path = Path("/etc/localtime")) -> tzinfo:
    """Finds this machine's time zone with its changes to and from summer time: TZ, else /etc/localtime, else UTC."""
    name = os.environ.get("TZ", "").lstrip(":")
    try:
        if name:
            return ZoneInfo(name)
        with localtime.open("rb") as file:
            return ZoneInfo.from_file(file, key="local")
    except (OSError, ValueError, ZoneInfoNotFoundError):
        return ZoneInfo("UTC")
