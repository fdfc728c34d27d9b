"""What the agent shows the hospital about itself: <state>/agent/status.json, replaced after every turn."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from site_client.files import refresh_file

_TIMES = ("written_at", "certificate_expires_at", "last_contact_at")


@dataclass(frozen=True)
class AgentStatus:
    """The agent's own facts, as of `written_at`. Digests and ids in hex."""

    written_at: datetime
    state: str
    reasons: tuple[str, ...]
    run_id: str | None
    round: int | None
    model_digest: str | None
    roster_epoch: int
    certificate_expires_at: datetime
    last_contact_at: datetime | None  # since this agent was started
    last_error: str  # one sentence; empty when the last turn went well
    ledger_entries: int
    roster: tuple[str, ...] = ()  # the hospitals whose keys this site believes


def in_words(view: AgentStatus) -> str:
    """One line for `systemctl status`: state, reasons, round, and what went wrong last."""
    line = view.state.removeprefix("SITE_").lower().replace("_", " ")
    if view.reasons:
        line += f": {', '.join(view.reasons)}"
    if view.round is not None:
        line += f"; round {view.round}"
    return f"{line}; {view.last_error}" if view.last_error else line


def write_status(folder: Path, view: AgentStatus) -> None:
    """Replaces the last one."""
    plain = {key: value.isoformat() if isinstance(value, datetime) else value for key, value in asdict(view).items()}
    refresh_file(folder / "status.json", json.dumps(plain, sort_keys=True).encode())


def read_status(folder: Path) -> AgentStatus | None:
    """The agent's last word; None before its first, and after a power cut until its next."""
    path = folder / "status.json"
    data = path.read_bytes() if path.exists() else b""
    if not data:
        return None
    record: dict[str, Any] = json.loads(data)
    for key in _TIMES:
        record[key] = datetime.fromisoformat(record[key]) if record[key] else None
    record["reasons"] = tuple(record["reasons"])
    record["roster"] = tuple(record.get("roster", ()))
    return AgentStatus(**record)
