"""The attempts, made from within the units' confinement by systemd itself; and the running services.

The twin of a unit is the unit's own file and drop-ins under another name, in /run, with another ExecStart=. So the
same directives confine it and the service. It is started, awaited and removed. It needs root and systemd as PID 1.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from site_client.config import SiteSettings, load
from site_client.doctor.units import UNIT_FOLDERS, drop_ins, find, is_enabled
from site_client.prove.attempts import Attempt
from site_client.prove.finding import ProofFinding, ProofOutcome
from site_client.typed_json import decode

_RUN: Final = Path("/run/systemd/system")
_CLAIMS: Final = {
    "trainer": "the side that sees patients has no network, writes nothing to the export and has no keys",
    "agent": "the side that has a network sees no patient",
}
_RECEIVER_CLAIM: Final = "the receiver reaches neither the coordinator nor anything of the other two services"
_START_S = 330.0
_PROBE: Final = """[Unit]
ConditionPathExists=
StartLimitIntervalSec=0

[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStart=
ExecStart={python} -m site_client.prove.attempts {side} {arguments}
StandardOutput=truncate:{answers}
# Not confinement, only priority: on a busy machine an idle process would wait for its turn for minutes.
Slice=system.slice
Nice=0
CPUSchedulingPolicy=other
IOSchedulingClass=best-effort
TimeoutStartSec=300
"""


def obstacle() -> str:
    """Return the reason why no twin can be started here; empty when one can."""
    if not _RUN.is_dir() or shutil.which("systemctl") is None:
        return "systemd does not run on this machine"
    if os.geteuid() != 0:
        return "only root may start a unit; run prove as root"
    return ""


def show_walls(config: Path) -> Iterator[ProofFinding]:
    """Show the wall of each side, by its attempts; of the optional receiver, where it is in use."""
    for side, claim in _claims().items():
        unit = f"hemofed-{side}"
        file = find(unit)
        if reason := obstacle() or ("" if file else f"{unit}.service is not installed"):
            yield ProofFinding(claim, ProofOutcome.NOT_SHOWN, (reason,))
            continue
        # `reason` would name a unit without a file.
        assert file is not None
        try:
            arguments = _receiver_arguments(config) if side == "receiver" else [str(config.absolute())]
            yield assess_attempts(claim, _from_twin(side, unit, file, arguments))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            words = (
                f"the twin of {unit} could not be started ({type(error).__name__}); journalctl -u hemofed-prove-{side}"
            )
            yield ProofFinding(claim, ProofOutcome.NOT_SHOWN, (words,))


def assess_attempts(claim: str, attempts: list[Attempt]) -> ProofFinding:
    """Return a finding: broken when one attempt was not answered as it must be. No attempts show nothing."""
    evidence = tuple(_words(attempt) for attempt in attempts)
    if not attempts:
        return ProofFinding(claim, ProofOutcome.NOT_SHOWN, ("the probe gave no answer",))
    is_shown = all(attempt.as_it_must for attempt in attempts)
    return ProofFinding(claim, ProofOutcome.SHOWN if is_shown else ProofOutcome.BROKEN, evidence)


def show_running(settings: SiteSettings) -> Iterator[ProofFinding]:
    """Show the confinement of the running services: network namespace, privileges, system calls, the export."""
    for side in _claims():
        unit = f"hemofed-{side}"
        claim = f"the {side} that runs now is confined"
        pid = 0 if obstacle() else _main_pid(unit)
        if pid == 0:
            yield ProofFinding(claim, ProofOutcome.NOT_SHOWN, (obstacle() or f"{unit} does not run",))
            continue
        try:
            yield check_process(claim, side, pid, settings)
        except OSError as error:
            yield ProofFinding(claim, ProofOutcome.NOT_SHOWN, (f"/proc/{pid} cannot be read ({error.strerror})",))


def check_process(claim: str, side: str, pid: int, settings: SiteSettings) -> ProofFinding:
    """Check the kernel's facts about one process (proc(5))."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value.strip() for name, _, value in lines}
    facts = [
        ("no new privileges (NoNewPrivs)", status["NoNewPrivs"] == "1"),
        ("a filter on system calls (Seccomp 2)", status["Seccomp"] == "2"),
        ("no capability it could gain (CapBnd)", int(status["CapBnd"], 16) == 0),
        ("not root", "0" not in status["Uid"].split()),
    ]
    if side == "trainer":
        devices = [line.split(":")[0].strip() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]]
        # A namespace of its own may still hold a device that was moved into it.
        is_own = os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/1/ns/net")
        facts.append(("a network namespace of its own, with lo as its only device", is_own and devices == ["lo"]))
    elif side == "receiver":
        facts += [
            (f"another folder in the place of {path}: it is hidden", _is_hidden(pid, path))
            for path in (settings.folders.agent, settings.folders.spool)
        ]
    else:
        is_hidden = _is_hidden(pid, settings.folders.export)
        facts.append(("another folder in the place of the export: the export is hidden", is_hidden))
    evidence = tuple(f"{'ok' if holds else 'NO'}  {words}" for words, holds in facts)
    is_shown = all(holds for _, holds in facts)
    return ProofFinding(claim, ProofOutcome.SHOWN if is_shown else ProofOutcome.BROKEN, evidence)


def _is_hidden(pid: int, export: Path) -> bool:
    """Whether the process sees another folder in the place of the export, or none."""
    try:
        seen = Path(f"/proc/{pid}/root{export}").stat()
    except OSError:
        return True
    here = export.stat()
    return (seen.st_dev, seen.st_ino) != (here.st_dev, here.st_ino)


def _claims() -> dict[str, str]:
    return _CLAIMS | ({"receiver": _RECEIVER_CLAIM} if is_enabled("hemofed-receiver") else {})


def _receiver_arguments(config: Path) -> list[str]:
    """Return what the receiver's probe needs of site.toml, which it may not read."""
    settings = load(config)
    host, _, port = settings.aggregator.address.rpartition(":")
    try:
        address = str(socket.getaddrinfo(host.strip("[]"), port)[0][4][0]) if host else ""
    except OSError:
        address = ""  # it does not resolve here; the packet to a stranger is still tried
    folders = settings.folders
    hidden = [folders.agent, folders.spool, folders.trainer / "catalog.sqlite", folders.cache, config.absolute()]
    return [str(config.absolute().with_name("receiver.toml")), address, *map(str, hidden)]


def _quoted(argument: str) -> str:
    """Quote an argument of ExecStart=, systemd.service(5)."""
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _from_twin(side: str, unit: str, file: Path, arguments: list[str]) -> list[Attempt]:
    name = f"hemofed-prove-{side}"
    folder = _RUN / f"{name}.service.d"
    answers = Path("/run") / f"{name}.answers"
    folder.mkdir(mode=0o755, exist_ok=True)
    try:
        # In /run: gone after a reboot, whatever happens to this process.
        (_RUN / f"{name}.service").write_text(file.read_text())
        for path in drop_ins(unit, UNIT_FOLDERS):
            (folder / path.name).write_text(path.read_text())
        words = " ".join(map(_quoted, arguments))
        probe = _PROBE.format(python=sys.executable, side=side, arguments=words, answers=answers)
        # Last in order: no drop-in of the unit overrides it.
        (folder / "zzz-prove.conf").write_text(probe)
        _systemctl("daemon-reload")
        _systemctl("start", f"{name}.service")
        return [decode(Attempt, line, whole=True) for line in answers.read_text().splitlines()]
    finally:
        shutil.rmtree(folder)
        for leftover in (_RUN / f"{name}.service", answers):
            leftover.unlink(missing_ok=True)
        subprocess.run(["systemctl", "reset-failed", name], capture_output=True, check=False, timeout=_START_S)
        _systemctl("daemon-reload")


def _main_pid(unit: str) -> int:
    """Return the unit's process; 0 before it is ready, because until then it is not fully confined."""
    command = ["systemctl", "show", f"{unit}.service", "-p", "MainPID,ActiveState"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_S).stdout
    facts = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    return int(facts.get("MainPID", "0")) if facts.get("ActiveState") == "active" else 0


def _systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], capture_output=True, check=True, timeout=_START_S)


def _words(attempt: Attempt) -> str:
    answer = "done" if attempt.answer is None else f"refused by the kernel: {attempt.answer}"
    demand = "must be refused" if attempt.must_fail else "must succeed"
    return f"ok  {attempt.what}: {answer}" if attempt.as_it_must else f"NO  {attempt.what}: {answer}, and it {demand}"
