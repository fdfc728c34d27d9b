"""Signals from daemons of this machine, over the system bus: people from logind, power supply from UPower.

Of a session it reads id, class, state, type, terminal, whether it is remote, and since when it is idle. It never reads
a user's name. logind calls a terminal idle only after half an hour; so the time of its last input is read from the
terminal itself, whose time of access the kernel moves with every input, by steps of eight seconds.
Sources: org.freedesktop.login1(5); UPower's reference manual, *Type* and *State* of a Device.
"""

import re
import time
from pathlib import Path
from typing import Any, Final

from site_client.bus import Bus, BusError
from site_client.trainer.idle import machine
from site_client.trainer.idle.readings import NEVER_S, LoginSession, Reading, Unknown

_LOGIN: Final = "org.freedesktop.login1"
_POWER: Final = "org.freedesktop.UPower"
_POWER_PATH: Final = "/org/freedesktop/UPower"
_TERMINAL: Final = re.compile(r"(pts/[0-9]+|tty[A-Za-z]*[0-9]+)")
_SCREENS: Final = ("x11", "wayland", "mir")
_UPS, _DISCHARGING = 3, 2  # UPower: Type of a device, State of a device


def sessions(bus: Bus, now_us: int, devices: Path = Path("/dev")) -> Reading[tuple[LoginSession, ...]]:
    """Reads which people are logged in.

    Args:
        bus: The system bus.
        now_us: Microseconds of CLOCK_MONOTONIC, on which logind dates a session's idleness.
        devices: Where terminals are.
    """
    try:
        listed = bus.call(_LOGIN, "/org/freedesktop/login1", f"{_LOGIN}.Manager", "ListSessions")[0]
        facts = [bus.get_all(_LOGIN, path, f"{_LOGIN}.Session") for *_, path in listed]
    except BusError as error:
        return Unknown(str(error))
    # The login screen is a session of class "greeter", and one that is closing belongs to a person who has left.
    return tuple(
        _session(session, now_us, devices)
        for session in facts
        if session["Class"] == "user" and session["State"] != "closing"
    )


def idle_s(found: Reading[tuple[LoginSession, ...]], *, remote: bool, with_bare: bool = True) -> Reading[float]:
    """Finds the seconds since the last touch in any session at the console, or in any remote one.

    Args:
        found: By `sessions`.
        remote: Whether the remote ones are meant.
        with_bare: Whether those count in which no person can type.

    Returns:
        NEVER_S without a session of that kind.
    """
    if isinstance(found, Unknown):
        return found
    times = (session.idle_s for session in found if session.is_remote is remote and (with_bare or not session.is_bare))
    return min(times, default=NEVER_S)


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


def _session(session: dict[str, Any], now_us: int, devices: Path) -> LoginSession:
    terminal, kind = str(session.get("TTY", "")), str(session.get("Type", ""))
    # A desktop's terminal is the one that it was started on; its own programs take the input.
    touched_s = _terminal_idle_s(terminal, devices) if kind == "tty" else None
    idle = _hinted_idle_s(session, now_us) if touched_s is None else touched_s
    return LoginSession(str(session["Id"]), bool(session["Remote"]), terminal, kind in _SCREENS, idle)


def _terminal_idle_s(terminal: str, devices: Path) -> float | None:
    if _TERMINAL.fullmatch(terminal) is None:
        return None
    try:
        return max(0.0, time.time() - (devices / terminal).stat().st_atime)
    except OSError:  # the unit has no such device: logind's word counts
        return None


def _hinted_idle_s(session: dict[str, Any], now_us: int) -> float:
    if not session["IdleHint"]:
        return 0.0
    return max(0.0, (now_us - int(session["IdleSinceHintMonotonic"])) / 1e6)
