"""Checks of the units on this machine: installed, running, their confinement, and drop-ins that weaken it."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from site_client.check_result import CheckResult, green, grey, red

UNITS: Final = {"hemofed-agent": 1.2, "hemofed-trainer": 0.6}  # the highest exposure, on systemd-analyze's scale to 10
OPTIONAL: Final = {"hemofed-receiver": 1.5}  # not enabled by the package
_ROOTS: Final = ("/etc", "/run", "/usr/lib", "/lib")
UNIT_FOLDERS: Final = tuple(Path(root, "systemd", "system") for root in _ROOTS)
_TIMEOUT_S = 30.0
_YES: Final = (
    *(
        "PrivateNetwork",
        "PrivateUsers",
        "PrivateTmp",
        "PrivateMounts",
        "ProtectHome",
        "ProtectClock",
        "ProtectHostname",
    ),
    *("NoNewPrivileges", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups"),
    *("RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute"),
)
_EXACT: Final = {
    "ProtectSystem": "strict",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "DevicePolicy": "closed",
    "KeyringMode": "private",
    "SystemCallArchitectures": "native",
    "LimitCORE": "0",
}
_NEVER_EMPTY: Final = (
    "InaccessiblePaths",
    "SystemCallFilter",
    "RestrictAddressFamilies",
    "IPAddressDeny",
    "ReadOnlyPaths",
    "TemporaryFileSystem",
)
_EVERYBODY: Final = frozenset(("any", "0.0.0.0/0", "::/0"))
_NEVER: Final = {  # a drop-in that sets these opens a door
    "hemofed-agent": ("BindPaths", "BindReadOnlyPaths"),
    "hemofed-trainer": ("IPAddressAllow", "JoinsNamespaceOf", "NetworkNamespacePath"),
    "hemofed-receiver": ("SupplementaryGroups",),
}


def check_units(folders: tuple[Path, ...] = UNIT_FOLDERS) -> Iterator[CheckResult]:
    """Check every unit: its state, its score, its drop-ins."""
    for unit, most in (UNITS | OPTIONAL).items():
        file = find(unit, folders)
        if unit in OPTIONAL and (file is None or not is_enabled(unit)):
            yield grey("units", f"{unit} is optional and not enabled")
            continue
        if file is None:
            reason = f"{unit}.service is not installed; without units the kernel enforces no wall"
            yield grey("units", reason, "Install the package, or deploy/systemd")
            continue
        yield from _state(unit)
        added = drop_ins(unit, folders)
        yield from _score(unit, file, added, most)
        for path in added:
            weakened = list(weakens(unit, path.read_text(errors="replace")))
            for directive in weakened:
                yield red("drop-ins", f"{unit}: {path.name} weakens {directive}", f"Remove {directive} from {path}")
            if not weakened:
                yield green("drop-ins", f"{unit}: {path.name} weakens nothing")


def is_enabled(unit: str) -> bool:
    """Whether the unit starts at boot, or runs now."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        return False
    shown = _run(["systemctl", "show", f"{unit}.service", "-p", "UnitFileState,ActiveState"]).stdout
    return "UnitFileState=enabled" in shown or "ActiveState=active" in shown


def find(unit: str, folders: tuple[Path, ...] = UNIT_FOLDERS) -> Path | None:
    """Return the unit file that counts, the first one in systemd's own order; None without any."""
    return next((folder / f"{unit}.service" for folder in folders if (folder / f"{unit}.service").exists()), None)


def drop_ins(unit: str, folders: tuple[Path, ...] = UNIT_FOLDERS) -> list[Path]:
    """Return a unit's drop-ins in the order in which systemd reads them.

    Of two with one name, systemd reads the one in the first folder.
    """
    by_name: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob(f"{unit}.service.d/*.conf"):
            by_name.setdefault(path.name, path)
    return [by_name[name] for name in sorted(by_name)]


def weakens(unit: str, text: str) -> Iterator[str]:
    """Yield the directives of a drop-in that weaken the wall of the shipped units."""
    for key, value in re.findall(r"^[ \t]*([A-Za-z]+)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE):
        # The trainer never had MemoryDenyWriteExecute: PyTorch compiles.
        needed = key in _YES and not (key == "MemoryDenyWriteExecute" and unit == "hemofed-trainer")
        # A drop-in may repeat a directive with another spelling of yes.
        off = needed and value.lower() not in ("yes", "true", "on", "1", "invisible")
        other = key in _EXACT and value != _EXACT[key]
        emptied = key in _NEVER_EMPTY and not value
        families = key == "RestrictAddressFamilies" and unit == "hemofed-trainer" and value not in ("", "AF_UNIX")
        root = key in ("User", "Group") and value in ("root", "0", "")
        # A list without "~" allows; a "~" list forbids more, which is fine.
        calls = key == "SystemCallFilter" and "@privileged" in value and not value.startswith("~")
        # Whoever may talk to all may talk to the coordinator.
        wide = key == "IPAddressAllow" and unit == "hemofed-receiver" and not _EVERYBODY.isdisjoint(value.split())
        if off or other or emptied or families or root or calls or wide or key in _NEVER[unit]:
            yield key


def _state(unit: str) -> Iterator[CheckResult]:
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        yield grey("units", f"{unit}: systemd does not run here, so its state cannot be told")
        return
    command = ["systemctl", "show", f"{unit}.service", "-p", "ActiveState,Result,NRestarts"]
    shown = _run(command).stdout
    facts = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if facts.get("ActiveState") == "active":
        yield green("units", f"{unit} is active, restarted {facts.get('NRestarts', '?')} times")
    else:
        state = f"{facts.get('ActiveState', 'unknown')} ({facts.get('Result', 'unknown')})"
        yield red("units", f"{unit} is {state}", f"systemctl start {unit}; journalctl -u {unit} says why it ended")


def _score(unit: str, file: Path, added: list[Path], most: float) -> Iterator[CheckResult]:
    """Score the unit with its drop-ins, which systemd-analyze reads only beside the unit file."""
    if shutil.which("systemd-analyze") is None:
        yield grey("hardening", f"{unit}: systemd-analyze is not installed")
        return
    with tempfile.TemporaryDirectory(prefix="hemofed-") as folder:
        copy = Path(folder) / f"{unit}.service"
        copy.write_bytes(file.read_bytes())
        # Without its drop-ins the score would be that of the shipped unit, not of this machine.
        beside = copy.with_suffix(".service.d")
        beside.mkdir()
        for path in added:
            (beside / path.name).write_bytes(path.read_bytes())
        done = _run(["systemd-analyze", "security", "--offline=yes", "--no-pager", str(copy)])
    match = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    if match is None:
        yield grey("hardening", f"{unit}: systemd-analyze gives no score")
    elif float(match[1]) > most:
        yield red("hardening", f"{unit}: exposure {match[1]}, at most {most}", f"See: systemd-analyze security {unit}")
    else:
        yield green("hardening", f"{unit}: exposure {match[1]} of 10, at most {most}")


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)


def supplementary_groups(unit: str) -> list[str]:
    """Return the groups that drop-ins add, so that a check reads with the service's own rights."""
    text = "\n".join(path.read_text(errors="replace") for path in drop_ins(unit))
    return [
        name
        for value in re.findall(r"^[ \t]*SupplementaryGroups[ \t]*=(.*)$", text, re.MULTILINE)
        for name in value.split()
    ]
