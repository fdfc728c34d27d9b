"""The attempts, made from within the units' confinement by systemd itself; and the services that run, as they are.

The twin of a unit is the unit's own file and drop-ins under another name, in /run, with another ExecStart=: what
confines it is what confines the service. It is started, awaited and removed. It needs root and systemd as PID 1.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from site_client.config import SiteSettings
from site_client.doctor.units import UNIT_FOLDERS, drop_ins, find
from site_client.prove.attempts import Attempt
from site_client.prove.finding import Outcome, ProofFinding

_RUN: Final = Path("/run/systemd/system")
_CLAIMS: Final = {
    "trainer": "the side that sees patients has no network, writes nothing to the export and has no keys",
    "agent": "the side that has a network sees no patient",
}
_START_S = 330.0
_PROBE: Final = """[Unit]
ConditionPathExists=
StartLimitIntervalSec=0

[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStart=
ExecStart={python} -m site_client.prove.attempts {side} {config}
StandardOutput=truncate:{answers}
# Not confinement, only whose turn it is: on a busy machine an idle process would wait for its turn for minutes.
Slice=system.slice
Nice=0
CPUSchedulingPolicy=other
IOSchedulingClass=best-effort
TimeoutStartSec=300
"""


def why_not() -> str:
    """Why no twin can be started here; empty when one can."""
    if not _RUN.is_dir() or shutil.which("systemctl") is None:
        return "systemd does not run on this machine"
    if os.geteuid() != 0:
        return "only root may start a unit; run prove as root"
    return ""


def show_walls(config: Path) -> Iterator[ProofFinding]:
    """One finding a side."""
    for side, claim in _CLAIMS.items():
        unit = f"hemofed-{side}"
        file = find(unit)
        if why := why_not() or ("" if file else f"{unit}.service is not installed"):
            yield ProofFinding(claim, Outcome.NOT_SHOWN, (why,))
            continue
        # `why` would name a unit without a file.
        assert file is not None
        try:
            yield judge(claim, _from_twin(side, unit, file, config))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            words = (
                f"the twin of {unit} could not be started ({type(error).__name__}); journalctl -u hemofed-prove-{side}"
            )
            yield ProofFinding(claim, Outcome.NOT_SHOWN, (words,))


def judge(claim: str, attempts: list[Attempt]) -> ProofFinding:
    """Broken when one attempt was not answered as it must be. No attempts show nothing."""
    evidence = tuple(_words(one) for one in attempts)
    if not attempts:
        return ProofFinding(claim, Outcome.NOT_SHOWN, ("the probe gave no answer",))
    good = all(one.as_it_must for one in attempts)
    return ProofFinding(claim, Outcome.SHOWN if good else Outcome.BROKEN, evidence)


def show_running(settings: SiteSettings) -> Iterator[ProofFinding]:
    """The services that run now: their network namespace, privileges, system call filter, and view of the export."""
    for side in _CLAIMS:
        unit = f"hemofed-{side}"
        claim = f"the {side} that runs now is confined"
        pid = 0 if why_not() else _main_pid(unit)
        if pid == 0:
            yield ProofFinding(claim, Outcome.NOT_SHOWN, (why_not() or f"{unit} does not run",))
            continue
        try:
            yield look_at(claim, side, pid, settings)
        except OSError as error:
            yield ProofFinding(claim, Outcome.NOT_SHOWN, (f"/proc/{pid} cannot be read ({error.strerror})",))


def look_at(claim: str, side: str, pid: int, settings: SiteSettings) -> ProofFinding:
    """What the kernel says of one process."""
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
        own = os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/1/ns/net")
        facts.append(("a network namespace of its own, with nothing in it but lo", own and devices == ["lo"]))
    else:
        facts.append(
            ("another thing where the export is: the export is hidden", _is_hidden(pid, settings.folders.export))
        )
    evidence = tuple(f"{'ok' if true else 'NO'}  {words}" for words, true in facts)
    return ProofFinding(claim, Outcome.SHOWN if all(true for _, true in facts) else Outcome.BROKEN, evidence)


def _is_hidden(pid: int, export: Path) -> bool:
    """Whether the process sees something else at the export's place, or nothing."""
    try:
        seen = Path(f"/proc/{pid}/root{export}").stat()
    except OSError:
        return True
    here = export.stat()
    return (seen.st_dev, seen.st_ino) != (here.st_dev, here.st_ino)


def _from_twin(side: str, unit: str, file: Path, config: Path) -> list[Attempt]:
    name = f"hemofed-prove-{side}"
    folder = _RUN / f"{name}.service.d"
    answers = Path("/run") / f"{name}.answers"
    folder.mkdir(mode=0o755, exist_ok=True)
    try:
        (_RUN / f"{name}.service").write_text(file.read_text())
        for path in drop_ins(unit, UNIT_FOLDERS):
            (folder / path.name).write_text(path.read_text())
        probe = _PROBE.format(python=sys.executable, side=side, config=config.absolute(), answers=answers)
        (folder / "zzz-prove.conf").write_text(probe)
        _systemctl("daemon-reload")
        _systemctl("start", f"{name}.service")
        return [Attempt(**json.loads(line)) for line in answers.read_text().splitlines()]
    finally:
        shutil.rmtree(folder)
        for left in (_RUN / f"{name}.service", answers):
            left.unlink(missing_ok=True)
        subprocess.run(["systemctl", "reset-failed", name], capture_output=True, check=False, timeout=_START_S)
        _systemctl("daemon-reload")


def _main_pid(unit: str) -> int:
    """0 unless it has said that it is ready: before, a process is still on its way into its confinement."""
    command = ["systemctl", "show", f"{unit}.service", "-p", "MainPID,ActiveState"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_S).stdout
    facts = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    return int(facts.get("MainPID", "0")) if facts.get("ActiveState") == "active" else 0


def _systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], capture_output=True, check=True, timeout=_START_S)


def _words(one: Attempt) -> str:
    answer = "done" if one.answer is None else f"refused by the kernel: {one.answer}"
    demand = "must be refused" if one.must_fail else "must succeed"
    return f"ok  {one.what}: {answer}" if one.as_it_must else f"NO  {one.what}: {answer}, and it {demand}"
