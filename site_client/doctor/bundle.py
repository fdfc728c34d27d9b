"""What may be sent to whoever helps: one JSON file, made of what is known to be harmless.

Settings: numbers, switches and choices as they are; of every text, path and list only that it is set, and how long.
Checks: name and color as they are; words with every address, path, name of this machine, user and site taken out, and
without the words that quote what others wrote. Nothing is read from the export, the catalog, the keys or the journal.
"""

import getpass
import json
import os
import platform
import re
import socket
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints
from urllib.parse import unquote, urlsplit

from site_client.agent.egress.ledger import read
from site_client.agent.egress.verify import totals
from site_client.agent.status_file import read_status
from site_client.config import SiteSettings
from site_client.doctor.result import CheckResult
from site_client.errors import LedgerBroken
from site_client.spool import AgentSide

_PATH = re.compile(r"(?<![\w.])/[^\s,;:'\"]+")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\b(?:[0-9a-fA-F]{0,4}:){2,}[0-9a-fA-F]{0,4}\b")
_HOST = re.compile(r"\b(?:[a-zA-Z0-9-]+\.)+[a-zA-Z]{2,}\b(?=:\d)|\b(?:[a-z0-9-]+\.){2,}[a-z]{2,}\b")


def bundle(settings: SiteSettings, lines: list[CheckResult]) -> bytes:
    """The file."""
    hidden = _names(settings)
    record = {
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": {
            "hemofed": version("hemofed"),
            "python": platform.python_version(),
            "kernel": os.uname().release,
            "system": _system(),
        },
        "settings": _outline(settings),
        "checks": [_told(line, hidden) for line in lines],
        "agent": _of_agent(settings),
        "trainer": _of_trainer(settings),
    }
    return json.dumps(record, indent=2, ensure_ascii=True).encode()


def redact(text: str, hidden: list[str]) -> str:
    """Addresses, paths and the given names become <...>."""
    for name in hidden:
        text = re.sub(re.escape(name), "<name>", text, flags=re.IGNORECASE)
    for pattern, word in ((_PATH, "<path>"), (_HOST, "<host>"), (_ADDRESS, "<address>")):
        text = pattern.sub(word, text)
    return text


def _told(line: CheckResult, hidden: list[str]) -> dict[str, str]:
    words = ("kept here", "") if line.local else (redact(line.found, hidden), redact(line.fix, hidden))
    return {"check": line.check, "color": line.color, "found": words[0], "fix": words[1]}


def _names(settings: SiteSettings) -> list[str]:
    """Whatever names this place: longest first, so that no part of one is left over."""
    proxy = urlsplit(settings.aggregator.proxy)
    addresses = (settings.aggregator.address, settings.aggregator.enrolment_address)
    found = {
        *(address.rpartition(":")[0].strip("[]") for address in addresses),
        *(unquote(part or "") for part in (proxy.hostname, proxy.username, proxy.password)),
        *(part or "" for part in (proxy.username, proxy.password)),
        *(socket.gethostname(), socket.gethostname().partition(".")[0], settings.name, _user()),
        *(str(path) for path in (settings.folders.export, settings.folders.state, *settings.folders.labels)),
    }
    return sorted((name for name in found if len(name) > 1), key=len, reverse=True)


def _outline(value: Any) -> dict[str, Any]:
    """A settings table without its texts."""
    hints = get_type_hints(type(value))
    told: dict[str, Any] = {}
    for item in fields(value):
        inner = getattr(value, item.name)
        if is_dataclass(inner):
            told[item.name] = _outline(inner)
        elif isinstance(inner, bool | int | float) or get_origin(hints[item.name]) is Literal:
            told[item.name] = inner
        elif isinstance(inner, tuple):
            told[item.name] = f"{len(inner)} given"
        else:
            told[item.name] = "given" if str(inner) else "empty"
    return told


def _of_agent(settings: SiteSettings) -> dict[str, Any]:
    """State and traffic, without to whom. Empty where it cannot be read."""
    try:
        view = read_status(settings.folders.agent)
        days = [
            (str(one.day), one.messages, one.bytes_out) for one in totals(read(settings.folders.agent / "ledger.jsonl"))
        ]
    except (OSError, LedgerBroken):
        return {}
    facts: dict[str, Any] = {"traffic_by_day": days[-30:]}
    if view is not None:
        facts |= {"state": view.state, "reasons": list(view.reasons), "round": view.round, "epoch": view.roster_epoch}
    return facts


def _of_trainer(settings: SiteSettings) -> dict[str, Any]:
    try:
        status = AgentSide.peek(settings.folders.spool)
    except OSError:
        return {}
    if status is None:
        return {}
    return {"state": status.state, "reasons": list(status.reasons), "progress_percent": status.progress_percent}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name
        return ""


def _system() -> str:
    try:
        found = re.search(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""
