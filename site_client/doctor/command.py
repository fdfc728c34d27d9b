"""Runs the checks and renders their results.

The halves are processes of their own. When root calls, each runs as the user of its unit and with the groups that the
unit's drop-ins give it, so that "readable" means readable by the service.
"""

import grp
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from federation.errors import FederationError

from site_client.check_result import CheckResult, Color, carry_out, from_json_line, green, grey, red
from site_client.config import SiteSettings, load
from site_client.doctor.receiver import check_receiver
from site_client.doctor.units import check_units, supplementary_groups
from site_client.errors import ConfigRefused, SiteError

CLEAN: Final = 0
SOMETHING_RED: Final = 2  # 1 is the status of every command for an expected failure
_HALVES: Final = {"network": "hemofed-agent", "data": "hemofed-trainer", "compute": "hemofed-trainer"}
_HALF_S: Final = 300.0  # two training steps on a slow machine take a minute of it
_SIGNS: Final = {
    Color.GREEN: "\033[32m+\033[0m",
    Color.AMBER: "\033[33m!\033[0m",
    Color.RED: "\033[31mx\033[0m",
    Color.GREY: "\033[90m-\033[0m",
}
_PLAIN: Final = {Color.GREEN: "ok  ", Color.AMBER: "see ", Color.RED: "FIX ", Color.GREY: "--  "}


def examine(config: Path, *, quick: bool = False) -> list[CheckResult]:
    """Run every check; a quick one times no training step.

    A site.toml that cannot be used is one red line, and no other check is made.
    """
    try:
        settings = load(config)
    except ConfigRefused as error:
        fix = "Use http://, not https://" if "proxies do not work" in str(error) else "Correct site.toml"
        return [red("configuration", str(error), fix, local=True)]
    results = [green("configuration", "site.toml is understood")]
    plan = b"" if quick else _newest_plan(settings)
    results += _half("network", config)
    results += _half("data", config)
    results += _half("compute", config, *(["--quick"] if quick else []), given=plan)
    # As root: the receiver's user reads none of the site's settings, and the site's users none of the receiver's.
    receiver = carry_out({"receiver": lambda: check_receiver(settings, config.with_name("receiver.toml"))})
    return [*results, *check_units(), *receiver]


def render_text(results: list[CheckResult], *, colors: bool) -> str:
    """Return one line for each check with the fix under it, and the counts."""
    signs = _SIGNS if colors else _PLAIN
    lines = []
    for result in results:
        lines.append(f"{signs[result.color]} {result.check:<20}{result.found}")
        if result.fix:
            lines.append(f"{'':<{5 if not colors else 2}}{'':<20}-> {result.fix}")
    count = {color: sum(result.color is color for result in results) for color in Color}
    amber = f"{count[Color.AMBER]} amber, " if count[Color.AMBER] else ""
    total = f"{count[Color.GREEN]} green, {amber}{count[Color.RED]} red, {count[Color.GREY]} not checked"
    return "\n".join([*lines, total])


def render_json(results: list[CheckResult]) -> str:
    """Return [{check, color, found, fix, local}, ...]."""
    return json.dumps([asdict(result) for result in results], indent=2)


def exit_status(results: list[CheckResult]) -> int:
    """Return 0 with nothing red, 2 otherwise."""
    # Grey is no fault: a machine without GPU or systemd can be in order. Amber works as it is.
    return SOMETHING_RED if any(result.color is Color.RED for result in results) else CLEAN


def _newest_plan(settings: SiteSettings) -> bytes:
    """Return the newest plan that the agent has kept, also one that waits for a decision; empty without one."""
    from site_client.agent.rounds.plans import Plans

    try:
        plans = Plans(settings.folders.agent / "plans").all()
    except (SiteError, FederationError, OSError):
        return b""
    return plans[0].plan.to_bytes() if plans else b""


def _half(half: str, config: Path, *options: str, given: bytes = b"") -> Iterator[CheckResult]:
    """Run a half's checks as its unit's user, with `given` as standard input."""
    user = _HALVES[half]
    # Two processes, each with its own user and libraries, as the two services have them.
    command = [sys.executable, "-m", f"site_client.doctor.{half}", str(config.absolute()), *options]
    try:
        try:
            done = _run(command, given, **_as_service(user))
        except PermissionError:
            yield grey(half, f"{user} may not run this Python; checked as root instead, which may read everything")
            done = _run(command, given)
    except subprocess.TimeoutExpired:
        yield red(half, f"its checks did not end within {_HALF_S:.0f} s", "Is the export's file server answering?")
        return
    try:
        yield from [from_json_line(line) for line in done.stdout.decode().splitlines()]
    except ValueError:
        done.returncode = done.returncode or 1
    if done.returncode:  # its standard error is not shown: a traceback may quote a file of the export
        yield red(half, f"its checks ended with status {done.returncode}", f"{user} must be able to read site.toml")


def _run(command: list[str], given: bytes, **service: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        command, input=given, capture_output=True, check=False, timeout=_HALF_S, cwd="/", umask=0o077, **service
    )


def _as_service(user: str) -> dict[str, Any]:
    """Return the arguments of subprocess for running as that user, if root calls and there is such a user."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return {}
    if os.geteuid() != 0:
        return {}
    # subprocess sets the groups itself: without this a check would run with root's groups.
    known = {group.gr_name: group.gr_gid for group in grp.getgrall()}
    extra = [known[name] for name in supplementary_groups(user) if name in known]
    member = [group.gr_gid for group in grp.getgrall() if user in group.gr_mem]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": sorted({*extra, *member})}
