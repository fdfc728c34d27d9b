"""`hemofed-site ledger show | totals | verify | export`: the egress ledger as text, and as JSON."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from federation.wire import parse
from google.protobuf.json_format import MessageToDict

from site_client.agent.egress import payloads, verify
from site_client.agent.egress.calls import CALLS
from site_client.agent.egress.ledger import Entry, read
from site_client.agent.egress.verify import Anchor
from site_client.agent.identity import keys
from site_client.config import SiteSettings
from site_client.errors import ConfigRefused
from site_client.files import replace_in_pieces

_SHOWN_CHARACTERS: Final = 64  # of a text or bytes field of a payload; the rest is counted


class LedgerReader:
    """The ledger of this site, for people."""

    def __init__(self, settings: SiteSettings) -> None:
        self._agent = settings.folders.agent
        self._path = self._agent / "ledger.jsonl"
        self._payloads = self._agent / "payloads"

    def show(self, count: int, *, as_json: bool) -> str:
        """Show the newest `count` entries.

        Raises:
            LedgerBroken: The ledger does not verify.
        """
        entries = verify.newest(self._path, count)
        if as_json:
            return _json([entry.record() for entry in entries])
        rows = [
            (
                str(entry.seq),
                f"{entry.utc:%Y-%m-%d %H:%M:%S}",
                entry.dest,
                entry.rpc,
                str(entry.size_bytes),
                entry.decision,
                entry.sha256[:16],  # enough to find it, and the line fits a terminal
            )
            for entry in entries
        ]
        return _table(_HEADINGS, rows, "nothing has been sent from this site yet")

    def show_entry(self, seq: int, *, as_json: bool) -> str:
        """Show one entry, and its decoded payload while it is kept.

        Raises:
            ConfigRefused: There is no such entry.
            LedgerBroken: The ledger does not verify up to there.
        """
        entry = verify.find_entry(self._path, seq)
        if entry is None:
            raise ConfigRefused(f"the egress ledger has no entry {seq}; `hemofed-site ledger show` lists the newest")
        data = payloads.find(self._payloads, seq)
        facts = entry.record() | {"payload": None if data is None else _decoded(entry, data)}
        if as_json:
            return _json(facts)
        payload = "no longer kept (agent.payloads_mib)" if data is None else "\n" + _json(facts["payload"])
        return _facts(facts | {"payload": payload})

    def totals(self, *, as_json: bool) -> str:
        """Show messages and bytes that left, by day and address.

        Raises:
            LedgerBroken: The ledger does not verify.
        """
        days = verify.totals(read(self._path))
        if as_json:
            return _json([asdict(day) for day in days])
        rows = [(total.day.isoformat(), total.dest, str(total.messages), str(total.bytes_out)) for total in days]
        return _table(("day (UTC)", "to", "messages", "bytes"), rows, "nothing has left yet")

    def verify(self, anchor: str | None, *, as_json: bool) -> str:
        """Verify the ledger and every kept payload.

        Raises:
            LedgerBroken: An entry or a payload does not verify; the error names the first.
            ConfigRefused: `anchor` is not of the form <entries>:<head>.
            IdentityRefused: This host has no keys.
        """
        key = keys.load(self._agent / "identity").signing_public.hex()
        verified = verify.verify(self._path, key, _anchor(anchor))
        facts = asdict(verified) | {"payloads_checked": verify.check_payloads(self._path, self._payloads)}
        return _json(facts) if as_json else _facts({"verdict": "unbroken, every line signed"} | facts)

    def export(self, target: Path, form: str) -> str:
        """Write the ledger to `target`: "jsonl", byte for byte, or "csv".

        Raises:
            LedgerBroken: The ledger does not verify.
            OSError: `target` cannot be written.
        """
        if form == "jsonl":
            replace_in_pieces(target, verify.lines(self._path))
        else:
            replace_in_pieces(target, _csv(read(self._path)))
        verified = verify.verify(self._path)
        return f"{verified.entries} entries, head {verified.head}, to {target}"


def verify_file(path: Path, key: str | None, anchor: str | None, *, as_json: bool) -> str:
    """Verify an exported ledger, on any machine.

    Raises:
        LedgerBroken: An entry does not verify; the error names the first.
        ConfigRefused: There is no such file, or `anchor` is not of the form <entries>:<head>.
    """
    if not path.exists():
        raise ConfigRefused(f"expected an exported ledger, got no file at {path}")
    facts = asdict(verify.verify(path, key, _anchor(anchor)))
    return _json(facts) if as_json else _facts({"verdict": "unbroken, every line signed"} | facts)


_HEADINGS = ("entry", "when (UTC)", "to", "call", "bytes", "decision", "sha256")


def _decoded(entry: Entry, data: bytes) -> dict[str, Any]:
    call = CALLS[entry.rpc]
    return {call.request.DESCRIPTOR.name: _readable(MessageToDict(parse(call.request, data)))}


def _readable(value: Any) -> Any:
    """Cut long texts: JSON writes bytes as base64, and no person reads a megabyte of masked words."""
    if isinstance(value, dict):
        return {name: _readable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_readable(inner) for inner in value]
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS:
        return f"{value[:_SHOWN_CHARACTERS]}... ({len(value)} characters)"
    return value


def _anchor(text: str | None) -> Anchor | None:
    try:
        return None if text is None else Anchor.parse(text)
    except ValueError as error:
        raise ConfigRefused("expected --anchor ENTRIES:HEAD, the head in 64 hex digits, as the report says") from error


def _csv(entries: Iterable[Entry]) -> Iterator[bytes]:
    names = ("seq", "utc", "dest", "rpc", "bytes", "decision", "rule", "sha256")
    yield (",".join(names) + "\n").encode()
    for entry in entries:
        text = io.StringIO()
        csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n").writerow(entry.record())
        yield text.getvalue().encode()


def _json(value: object) -> str:
    def plain(fact: object) -> str:
        return fact.isoformat() if isinstance(fact, datetime) else str(fact)

    return json.dumps(value, indent=2, default=plain)


def _facts(facts: dict[str, Any]) -> str:
    return "\n".join(f"{name:<18}{_words(value)}" for name, value in facts.items())


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {kind}" for name, kind in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(f"{key} from entry {seq}" for seq, key in value) or "-"
    return "-" if value is None else str(value)


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], empty: str) -> str:
    if not rows:
        return empty
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (headings, *rows))
    return "\n".join(line.rstrip() for line in lines)
