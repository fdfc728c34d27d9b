"""Rules that pause training, by the hospital's policy. Pure functions without memory and clock, one line a rule.

There are two kinds. Others need the machine (`needs_of_others`): after that, training waits for sustained calm. The
hospital does not want training now (`orders`): training resumes as soon as the order ends, if the machine is calm.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from federation.vocabulary import StateReason

from site_client.config import IdleSettings
from site_client.trainer.idle.readings import Moment, PauseReason, Signals, Unknown
from site_client.windows import parse_days, parse_window

FREES_MEMORY_AT_ONCE: Final = frozenset(
    {StateReason.MEMORY, StateReason.GPU_BUSY, StateReason.SHUTDOWN}
)  # a suspended process keeps its memory


def needs_of_others(signals: Signals, policy: IdleSettings) -> tuple[PauseReason, ...]:
    """Lists every busy signal. An unknown signal is not busy; `denials` names those that must not be unknown."""
    # All of them, not the first: the status lists every reason.
    return tuple(
        [
            *_load(signals, policy),
            *_memory(signals, policy),
            *_gpu(signals, policy),
            *_people(signals, policy),
            *_power(signals, policy),
            *_limits(signals, policy),
            *_programs(signals),
        ]
    )


def denials(signals: Signals, policy: IdleSettings) -> tuple[PauseReason, ...]:
    """Lists the unknown signals without which training must not run: foreign CPU use and the power supply."""
    # A policy that allows any value needs no measurement.
    needed = {"foreign_cpu": policy.foreign_cpu_max < 1, "on_battery": policy.battery == "pause"}
    unknown = signals.unknown()
    return tuple(
        PauseReason(StateReason.UNKNOWN_SIGNAL, f"{WORDS[name]} cannot be told: {unknown[name].why}")
        for name, wanted in needed.items()
        if wanted and name in unknown
    )


def orders(signals: Signals, policy: IdleSettings, now: Moment, *, job_at_hand: bool) -> tuple[PauseReason, ...]:
    """Lists the orders of the hospital's operators and of its calendar."""
    return tuple([*_operator(signals, now, job_at_hand), *_calendar(policy, now)])


def is_in_hours(policy: IdleSettings, wall: datetime) -> bool:
    """Whether the calendar lets training run at a time, aware and in the zone of the windows."""
    return not any(_calendar(policy, Moment(wall, 0.0)))


def _load(signals: Signals, policy: IdleSettings) -> Iterator[PauseReason]:
    if _above(signals.foreign_cpu, policy.foreign_cpu_max):
        yield PauseReason(
            StateReason.FOREIGN_CPU, f"other programs use {_percent(signals.foreign_cpu, policy.foreign_cpu_max)} CPU"
        )
    if _above(signals.io_pressure, policy.io_pressure_max):
        yield PauseReason(
            StateReason.IO,
            f"other programs wait for the disk {_percent(signals.io_pressure, policy.io_pressure_max)} of time",
        )


def _memory(signals: Signals, policy: IdleSettings) -> Iterator[PauseReason]:
    if _above(signals.memory_pressure, policy.memory_pressure_max):
        share = _percent(signals.memory_pressure, policy.memory_pressure_max)
        yield PauseReason(StateReason.MEMORY, f"programs wait for memory {share} of time")
    free = signals.memory_free_gib
    if not isinstance(free, Unknown) and free < policy.memory_free_min_gib:
        yield PauseReason(
            StateReason.MEMORY, f"{free:.1f} GiB of memory are free (at least {policy.memory_free_min_gib:g})"
        )


def _gpu(signals: Signals, policy: IdleSettings) -> Iterator[PauseReason]:
    gpu = signals.gpu
    if isinstance(gpu, Unknown) or policy.gpu_others == "ignore":
        return
    # A desktop always draws, so programs that only draw count under "any" alone.
    if gpu.compute or (gpu.graphics and policy.gpu_others == "any"):
        yield PauseReason(
            StateReason.GPU_BUSY, f"{gpu.compute} computing and {gpu.graphics} drawing programs of others on the GPU"
        )


def _people(signals: Signals, policy: IdleSettings) -> Iterator[PauseReason]:
    for reason, idle_s, least_s, presence in (
        (StateReason.USER_ACTIVE, signals.user_idle_s, policy.user_idle_min_s, "a person is at the console"),
        (
            StateReason.REMOTE_SESSION,
            signals.remote_idle_s,
            policy.remote_idle_min_s,
            "a person is working in a remote session",
        ),
    ):
        if not isinstance(idle_s, Unknown) and idle_s < least_s:
            is_remote = reason is StateReason.REMOTE_SESSION
            words = [
                session.words
                for session in signals.sessions
                if session.is_remote is is_remote
                and session.idle_s < least_s
                and not (session.is_bare and policy.bare_sessions == "ignore")
            ]
            where = f": {'; '.join(words)}" if words else ""
            yield PauseReason(reason, f"{presence}, last touch {idle_s:.0f} s ago (at least {least_s:.0f}){where}")


def _power(signals: Signals, policy: IdleSettings) -> Iterator[PauseReason]:
    if policy.battery == "pause" and signals.on_battery is True:
        yield PauseReason(StateReason.BATTERY, "the machine runs on its battery")
    if policy.battery == "pause" and signals.on_ups is True:
        yield PauseReason(StateReason.UPS, "the machine runs on its emergency supply")


def _limits(signals: Signals, policy: IdleSettings) -> Iterator[PauseReason]:
    if _above(signals.temperature_c, policy.temperature_max_c):
        yield PauseReason(
            StateReason.THERMAL,
            f"the machine is at {signals.temperature_c:.0f} °C (up to {policy.temperature_max_c:g})",
        )
    free = signals.disk_free_gib
    if not isinstance(free, Unknown) and free < policy.disk_free_min_gib:
        yield PauseReason(StateReason.DISK, f"{free:.1f} GiB of disk are free (at least {policy.disk_free_min_gib:g})")


def _programs(signals: Signals) -> Iterator[PauseReason]:
    if not isinstance(signals.programs, Unknown) and signals.programs:
        yield PauseReason(
            StateReason.EXCLUSIVE_APP, f"running, and wants the machine alone: {', '.join(sorted(signals.programs))}"
        )


def _operator(signals: Signals, now: Moment, job_at_hand: bool) -> Iterator[PauseReason]:
    pause = signals.operator
    # "After this round" lets the job in progress end, and holds back the next one.
    if pause is None or (pause.until is not None and now.wall >= pause.until) or (pause.after_round and job_at_hand):
        return
    until = "hemofed-site resume" if pause.until is None else f"{pause.until.astimezone(now.wall.tzinfo):%d %b %H:%M}"
    yield PauseReason(StateReason.OPERATOR, f"paused by hand until {until}")


def _calendar(policy: IdleSettings, now: Moment) -> Iterator[PauseReason]:
    # `wall` is in the hospital's zone: hours and dates are those on the clock in the room.
    if policy.windows and not any(parse_window(text).contains(now.wall) for text in policy.windows):
        yield PauseReason(StateReason.WINDOW, f"outside the hours for training ({'; '.join(policy.windows)})")
    for text in policy.blackout:
        first, last = parse_days(text)
        if first <= now.wall.date() <= last:
            yield PauseReason(StateReason.BLACKOUT, f"no training on {text}")


def _above(value: float | Unknown, limit: float) -> bool:
    return not isinstance(value, Unknown) and value > limit


def _percent(value: float | Unknown, limit: float) -> str:
    # Callers have compared the value with the limit.
    assert not isinstance(value, Unknown)
    return f"{100 * value:.0f} % (up to {100 * limit:.0f} %)"


WORDS: Final = {
    "foreign_cpu": "the CPU use of others",
    "memory_pressure": "how long programs wait for memory",
    "io_pressure": "how long others wait for the disk",
    "memory_free_gib": "free memory",
    "gpu": "who uses the GPU",
    "user_idle_s": "whether a person is at the console",
    "remote_idle_s": "whether a person works in a remote session",
    "on_battery": "battery or mains",
    "on_ups": "whether an emergency supply feeds the machine",
    "temperature_c": "the temperature",
    "disk_free_gib": "free disk",
    "programs": "which programs run",
}
