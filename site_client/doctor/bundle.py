"""The support bundle: one JSON file that holds only facts known to be harmless.

Settings: numbers, switches and choices as they are; of every text, path and list only that it is set, and how long it
is. Checks: name and color as they are; words without any address, path, and name of this machine, user and site, and
without words that quote others. Nothing is read from the export, the catalog, the keys or the journal.
"""

import getpass
import json
import os
import platform
import re
import socket
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, get_origin, get_type_hints
from urllib.parse import unquote, urlsplit

from site_client.agent.egress.ledger import read
from site_client.agent.egress.verify import first_since, totals
from site_client.agent.status_file import read_status
from site_client.check_result import CheckResult
from site_client.config import SiteSettings
from site_client.errors import LedgerBroken, SpoolRefused, StateRefused
from site_client.spool import AgentSide

_TRAFFIC: Final = timedelta(days=30)
_PATH = re.compile(r"(?<![\w.])/[^\s,;:'\"]+")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\b(?:[0-9a-fA-F]{0,4}:){2,}[0-9a-fA-F]{0,4}\b")
_HOST = re.compile(r"\b(?:[a-zA-Z0-9-]+\.)+[a-zA-Z]{2,}\b(?=:\d)|\b(?:[a-z0-9-]+\.){2,}[a-z]{2,}\b")


def bundle(settings: SiteSettings, results: list[CheckResult]) -> bytes:
    """Return the file."""
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
        "checks": [_redacted(result, hidden) for result in results],
        "agent": _of_agent(settings),
        "trainer": _of_trainer(settings),
    }
    return json.dumps(record, indent=2, ensure_ascii=True).encode()


def redact(text: str, hidden: list[str]) -> str:
    """Replace addresses, paths and the given names by <...>."""
    # Names first: a pattern that matched only a part of a name would leave the rest of it.
    for name in hidden:
        text = re.sub(re.escape(name), "<name>", text, flags=re.IGNORECASE)
    for pattern, word in ((_PATH, "<path>"), (_HOST, "<host>"), (_ADDRESS, "<address>")):
        text = pattern.sub(word, text)
    return text


def _redacted(result: CheckResult, hidden: list[str]) -> dict[str, str]:
    if result.local:
        found, fix = "kept here", ""
    else:
        found, fix = redact(result.found, hidden), redact(result.fix, hidden)
    return {"check": result.check, "color": result.color, "found": found, "fix": fix}


def _names(settings: SiteSettings) -> list[str]:
    """Return every name of this place, longest first, so that no part of one is left over."""
    proxy = urlsplit(settings.aggregator.proxy)
    addresses = (settings.aggregator.address, settings.aggregator.enrolment_address)
    names = {
        *(address.rpartition(":")[0].strip("[]") for address in addresses),
        *(unquote(part or "") for part in (proxy.hostname, proxy.username, proxy.password)),
        *(part or "" for part in (proxy.username, proxy.password)),
        *(socket.gethostname(), socket.gethostname().partition(".")[0], settings.name, _user()),
        *(str(path) for path in (settings.folders.export, settings.folders.state)),
        *(str(path) for path in (*settings.folders.labels, *settings.folders.opt_outs)),
    }
    return sorted((name for name in names if len(name) > 1), key=len, reverse=True)


def _outline(value: Any) -> dict[str, Any]:
    """Return a table of the settings without its texts."""
    hints = get_type_hints(type(value))
    outline: dict[str, Any] = {}
    for item in fields(value):
        inner = getattr(value, item.name)
        if is_dataclass(inner):
            outline[item.name] = _outline(inner)
        # Only types that cannot hold a name; everything else is counted.
        elif isinstance(inner, bool | int | float) or get_origin(hints[item.name]) is Literal:
            outline[item.name] = inner
        elif isinstance(inner, tuple):
            outline[item.name] = f"{len(inner)} given"
        else:
            outline[item.name] = "given" if str(inner) else "empty"
    return outline


def _of_agent(settings: SiteSettings) -> dict[str, Any]:
    """Return state and traffic, without addresses. Empty where the files cannot be read."""
    try:
        status = read_status(settings.folders.agent)
        ledger = settings.folders.agent / "ledger.jsonl"
        traffic = totals(read(ledger, first_since(ledger, datetime.now(UTC) - _TRAFFIC)))
    except (OSError, LedgerBroken, StateRefused):
        return {}
    facts: dict[str, Any] = {
        "traffic_by_day": [(str(total.day), total.messages, total.bytes_out) for total in traffic[-_TRAFFIC.days :]]
    }
    if status is not None:
        facts |= {
            "state": status.state,
            "reasons": list(status.reasons),
            "round": status.round,
            "epoch": status.roster_epoch,
        }
    return facts


def _of_trainer(settings: SiteSettings) -> dict[str, Any]:
    try:
        status = AgentSide.peek(settings.folders.spool)
    except (OSError, SpoolRefused):
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
        name = re.search(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return name[1] if name else ""
