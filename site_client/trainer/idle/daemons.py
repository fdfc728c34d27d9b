"""Signals from daemons of this machine, over the system bus: people from logind, power supply from UPower.

Of a session it reads class, state, whether it is remote, and since when it is idle. It never reads a user's name.
Sources: org.freedesktop.login1(5); UPower's reference manual, *Type* and *State* of a Device.
"""

from typing import Any, Final

from site_client.bus import Bus, BusError
from site_client.trainer.idle import machine
from site_client.trainer.idle.readings import NEVER_S, Reading, Unknown

_LOGIN: Final = "org.freedesktop.login1"
_POWER: Final = "org.freedesktop.UPower"
_POWER_PATH: Final = "/org/freedesktop/UPower"
_UPS, _DISCHARGING = 3, 2  # UPower: Type of a device, State of a device


def user_idle_s(bus: Bus, now_us: int) -> tuple[Reading[float], Reading[float]]:
    """Reads for how long no person has touched this machine.

    Args:
        bus: the system bus.
        now_us: microseconds of CLOCK_MONOTONIC, on which logind dates a session's idleness.

    Returns:
        Seconds since the last touch at the console, and in any remote session. NEVER_S without a session of that kind.
    """
    try:
        listed = bus.call(_LOGIN, "/org/freedesktop/login1", f"{_LOGIN}.Manager", "ListSessions")[0]
        sessions = [bus.get_all(_LOGIN, path, f"{_LOGIN}.Session") for *_, path in listed]
    except BusError as error:
        return Unknown(str(error)), Unknown(str(error))
    # The login screen is a session of class "greeter", and one that is closing belongs to a person who has left.
    sessions = [session for session in sessions if session["Class"] == "user" and session["State"] != "closing"]
    console = [_session_idle_s(session, now_us) for session in sessions if not session["Remote"]]
    remote = [_session_idle_s(session, now_us) for session in sessions if session["Remote"]]
    return min(console, default=NEVER_S), min(remote, default=NEVER_S)


def power_supply(bus: Bus) -> tuple[Reading[bool], Reading[bool]]:
    """Reads whether the machine runs on a battery, and whether on an emergency supply.

    Without UPower the kernel tells about the battery, and the emergency supply is unknown.
    """
    try:
        on_battery = bool(bus.get(_POWER, _POWER_PATH, _POWER, "OnBattery"))
        paths = bus.call(_POWER, _POWER_PATH, _POWER, "EnumerateDevices")[0]
        devices = [bus.get_all(_POWER, path, f"{_POWER}.Device") for path in paths]
    except BusError as error:
        return machine.on_battery(), Unknown(str(error))
    # UPower counts a discharging UPS as a battery too: it must not be reported as both.
    on_ups = any(device["Type"] == _UPS and device["State"] == _DISCHARGING for device in devices)
    return on_battery and not on_ups, on_ups


def _session_idle_s(session: dict[str, Any], now_us: int) -> float:
    if not session["IdleHint"]:
        return 0.0
    return max(0.0, (now_us - int(session["IdleSinceHintMonotonic"])) / 1e6)
