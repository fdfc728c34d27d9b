"""<state>/agent/status.json: the agent's state for the hospital's own eyes, replaced after every turn of its loop."""

import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, TypeAlias

from federation.vocabulary import SiteState
from msgspec import Meta

from site_client.errors import StateRefused
from site_client.files import refresh_file
from site_client.records import AwareTime, Count, Reasons, RoundNumber, RunHex
from site_client.typed_json import encode, read_state

CLOCK_TOLERANCE_S: Final = 300.0  # as docs/HOSPITAL.md says, and as certificates are backdated
CLOCK_FIX: Final = (
    "Enable NTP (systemd-timesyncd, chrony); if this clock is right, tell the coordinator that the aggregator's is not"
)
_DigestHex: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


@dataclass(frozen=True)
class AgentStatus:
    """The agent's own facts, as of `written_at`. Digests and ids in hex."""

    written_at: AwareTime
    state: SiteState
    reasons: Reasons
    run_id: RunHex | None
    round: RoundNumber | None
    model_digest: _DigestHex | None
    roster_epoch: Count
    certificate_expires_at: AwareTime | None
    last_contact_at: AwareTime | None  # since this agent was started
    last_error: str  # one sentence; empty when the last turn succeeded
    ledger_entries: Count
    roster: tuple[str, ...] = ()  # the hospitals whose keys this site believes
    roster_waiting: tuple[str, ...] = ()  # those of them that do not count yet
    roster_expires_at: AwareTime | None = None
    suspended: bool = False  # the coordinator lets no new round take this site
    set_aside: tuple[str, ...] = ()  # damaged files that were replaced, by the names that they have now
    rolled_back: str = ""  # how the run of the round went back to an earlier model; empty when it did not
    clock_ahead_s: float | None = None  # of the aggregator's, at the last contact; negative: behind; None: not compared


def clock_in_words(ahead_s: float) -> str:
    """Return how this machine's clock stands to the aggregator's, and what to do where it is off."""
    way = "ahead of" if ahead_s > 0 else "behind"
    if not is_clock_off(ahead_s):
        return f"this machine's clock is {abs(ahead_s):.0f} s {way} the aggregator's"
    fix = CLOCK_FIX[0].lower() + CLOCK_FIX[1:]
    return f"this machine's clock is {abs(ahead_s) / 60:.0f} min {way} the aggregator's; {fix}"


def is_clock_off(ahead_s: float) -> bool:
    """Whether the difference is more than is tolerated."""
    return abs(ahead_s) > CLOCK_TOLERANCE_S


def in_words(status: AgentStatus) -> str:
    """Return one line for `systemctl status`: state, reasons, round, and the last error."""
    line = status.state.removeprefix("SITE_").lower().replace("_", " ")
    if status.reasons:
        line += f": {', '.join(status.reasons)}"
    if status.suspended:
        line += "; suspended by the coordinator: no new round takes this site"
    if status.round is not None:
        line += f"; round {status.round}"
    return f"{line}; {status.last_error}" if status.last_error else line


def write_status(folder: Path, status: AgentStatus) -> None:
    """Replace the status file."""
    # Not synced, which would cost a disk write at every turn: the next turn replaces a lost file.
    refresh_file(folder / "status.json", encode(status))


def write_refusal(folder: Path, now: datetime, refusal: str) -> None:
    """Say in the status file why the agent does not run. Nothing happens where the folder cannot take it."""
    try:
        before = read_status(folder)
    except StateRefused:
        before = None
    if before is None:
        before = AgentStatus(now, SiteState.ATTENTION, (), None, None, None, 0, None, None, "", 0)
    stopped = replace(
        before, written_at=now, state=SiteState.ATTENTION, reasons=(), last_error=f"the agent has stopped: {refusal}"
    )
    with suppress(OSError):
        write_status(folder, stopped)


def read_status(folder: Path) -> AgentStatus | None:
    """Read the status file; None before the first one, and after a power cut until the next.

    Raises:
        StateRefused: The file is damaged.
    """
    path = folder / "status.json"
    with suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            return None
    return read_state(AgentStatus, path, "the agent writes a new one with its next turn")
