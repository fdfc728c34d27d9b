"""What daemons of this machine know: people from logind, power supply from UPower. Over the system bus.

Read of a session: class, state, remote or not, idle since when. Never a user's name. Sources:
org.freedesktop.login1(5), UPower's reference manual (Device Type and State).
"""

from typing import Any, Final

from site_client.bus import Bus, BusError
from site_client.trainer.idle import machine
from site_client.trainer.idle.readings import NEVER_S, Reading, Unknown

_LOGIN: Final = "org.freedesktop.login1"
_POWER: Final = "org.freedesktop.UPower"
_POWER_PATH: Final = "/org/freedesktop/UPower"
_UPS, _DISCHARGING = 3, 2  # UPower: Type of a device, State of a device


def people(bus: Bus, now_us: int) -> tuple[Reading[float], Reading[float]]:
    """Seconds since somebody did something: at the console, and in any remote session. NEVER_S with nobody there.

    `now_us`: CLOCK_MONOTONIC in microseconds, which logind reckons in.
    """
    try:
        sessions = bus.call(_LOGIN, "/org/freedesktop/login1", f"{_LOGIN}.Manager", "ListSessions")[0]
        found = [bus.get_all(_LOGIN, path, f"{_LOGIN}.Session") for *_, path in sessions]
    except BusError as error:
        return Unknown(str(error)), Unknown(str(error))
    working = [session for session in found if session["Class"] == "user" and session["State"] != "closing"]
    at_console = [_idle_s(session, now_us) for session in working if not session["Remote"]]
    remote = [_idle_s(session, now_us) for session in working if session["Remote"]]
    return min(at_console, default=NEVER_S), min(remote, default=NEVER_S)


def power(bus: Bus) -> tuple[Reading[bool], Reading[bool]]:
    """Whether the machine runs on a battery, and whether on an emergency supply. Without UPower the kernel is asked."""
    try:
        on_battery = bool(bus.get(_POWER, _POWER_PATH, _POWER, "OnBattery"))
        devices = bus.call(_POWER, _POWER_PATH, _POWER, "EnumerateDevices")[0]
        facts = [bus.get_all(_POWER, path, f"{_POWER}.Device") for path in devices]
    except BusError as error:
        return machine.on_battery(), Unknown(str(error))
    on_ups = any(fact["Type"] == _UPS and fact["State"] == _DISCHARGING for fact in facts)
    return on_battery and not on_ups, on_ups


def _idle_s(session: dict[str, Any], now_us: int) -> float:
    if not session["IdleHint"]:
        return 0.0
    return max(0.0, (now_us - int(session["IdleSinceHintMonotonic"])) / 1e6)
