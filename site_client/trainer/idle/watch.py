"""The gate as it runs: reads every signal, asks `decide`, remembers. Four looks a second cost next to nothing.

CPU, pressure, memory and the operator's order are read at every look. What may take its time to answer (D-Bus daemons,
disks that are mounted from elsewhere, the GPU's driver) is read by a thread of its own once a second: a probe that
hangs makes its signals unknown, it never delays a pause.
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
    """Looks and decides. `start` begins the slow probes; `stop` ends them."""

    def __init__(self, settings: SiteSettings, clock: Callable[[], datetime], zone: tzinfo) -> None:
        self._settings, self._clock, self._zone = settings, clock, zone
        self._processor = Processor()
        self._slow = SlowProbes(settings)
        self.decision = IdleDecision(GateState(), ())
        self.signals = Signals()

    def start(self) -> None:
        threading.Thread(target=self._slow.run, name="signals", daemon=True).start()

    def stop(self) -> None:
        self._slow.stopping.set()

    def look(self, own: Collection[int], *, job_at_hand: bool) -> IdleDecision:
        """One sample, one decision. `own`: process ids of the service and its worker."""
        now = Moment(self._clock().astimezone(self._zone), time.monotonic())
        self._slow.own = frozenset(own)
        load = self._processor.look(now.elapsed_s, own)
        signals = replace(
            self._slow.latest(now.elapsed_s),
            foreign_cpu=load.foreign_cpu,
            memory_pressure=load.memory_pressure,
            io_pressure=load.io_pressure,
            memory_free_gib=machine.memory_free_gib(),
            operator=operator.current(self._settings.folders.state),
        )
        self.decision = decide(signals, self._settings.idle, self.decision.gate, now, job_at_hand=job_at_hand)
        self.signals = signals
        return self.decision

    def tell(self) -> None:
        """Writes what was found, in words, for `hemofed-site status`. Replaced by the next."""
        record = GateRecord(
            self._clock(),
            self.decision.mode,
            tuple(finding.words for finding in self.decision.findings),
            tuple(sorted(self.signals.unknown())),
        )
        write_record(self._settings.folders.trainer, record)


class SlowProbes:
    """The probes that may hang, and their newest answers."""

    def __init__(self, settings: SiteSettings) -> None:
        self.stopping = threading.Event()
        self.own: Collection[int] = frozenset()
        self._settings = settings
        self._bus, self._gpus = Bus(), Gpus()
        self._answer: tuple[Signals, float] | None = None

    def run(self) -> None:
        """Until `stopping`."""
        while not self.stopping.is_set():
            self._answer = (self.read(), time.monotonic())
            self.stopping.wait(SLOW_S)
        self._bus.close()

    def latest(self, now_s: float) -> Signals:
        """The last answers, all unknown when they are older than STALE_S."""
        answer = self._answer
        if answer is None:
            return Signals()
        if now_s - answer[1] > STALE_S:
            return Signals()
        return answer[0]

    def read(self) -> Signals:
        """Reads them now."""
        settings = self._settings
        user_idle_s, remote_idle_s = daemons.people(self._bus, time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
        on_battery, on_ups = daemons.power(self._bus)
        without_gpu = settings.training.device == "cpu"
        return Signals(
            gpu=Unknown("training does not use it") if without_gpu else self._gpus.look(self.own),
            user_idle_s=user_idle_s,
            remote_idle_s=remote_idle_s,
            on_battery=on_battery,
            on_ups=on_ups,
            temperature_c=machine.temperature_c(),
            disk_free_gib=machine.disk_free_gib((settings.folders.trainer, settings.folders.cache)),
            programs=machine.running(settings.idle.exclusive_programs),
        )


@dataclass(frozen=True)
class GateRecord:
    """The gate in words, as of `written_at`: what speaks against training, and which signals cannot be read."""

    written_at: AwareTime
    mode: Mode
    words: tuple[str, ...]
    unknown: tuple[str, ...]


def write_record(folder: Path, record: GateRecord) -> None:
    """Replace the record."""
    replace_file(folder / _RECORD, encode(record))


def read_record(folder: Path) -> GateRecord | None:
    """Read the record; None before the first.

    Raises:
        StateRefused: the file is damaged.
    """
    return read_state(GateRecord, folder / _RECORD, "restart the trainer, which writes a new one")


def local_zone(localtime: Path = Path("/etc/localtime")) -> tzinfo:
    """The zone of this machine's wall clock, with its changes to and from summer time: TZ, else /etc/localtime."""
    name = os.environ.get("TZ", "").lstrip(":")
    try:
        if name:
            return ZoneInfo(name)
        with localtime.open("rb") as file:
            return ZoneInfo.from_file(file, key="local")
    except (OSError, ValueError, ZoneInfoNotFoundError):
        return ZoneInfo("UTC")
