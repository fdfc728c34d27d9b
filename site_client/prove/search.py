"""Search of files for values that must not be in them, in every spelling that a program may have used.

Values have four characters or more.
"""

import base64
import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np

_START: Final = 3  # bytes; every spelling is longer
DIGESTS: Final = ("md5", "sha1", "sha256")


def spellings(values: Iterable[str]) -> dict[bytes, str]:
    """Return the bytes to search for, with the value each stands for. Digests raw and in hex."""
    wanted: dict[bytes, str] = {}
    for value in values:
        plain = [value.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
        with suppress(UnicodeEncodeError):  # a value outside Latin-1 has no such spelling
            plain.append(value.encode("latin-1"))
        for raw in plain:
            wanted |= dict.fromkeys((raw, raw.hex().encode(), raw.hex().upper().encode()), value)
            wanted |= dict.fromkeys(_base64(raw), value)
        wanted[quote(value, safe="").encode()] = value
        for name in DIGESTS:
            digest = hashlib.new(name, value.encode(), usedforsecurity=False)
            wanted |= dict.fromkeys((digest.digest(), digest.hexdigest().encode()), value)
    return wanted


def findings(wanted: dict[bytes, str], places: Iterable[Path]) -> list[str]:
    """Return "<value> in <file>" for every hit in these files, or below these folders, or in a file's name."""
    search = _Search(wanted)
    hits = set()
    files: list[Path] = []
    for place in places:
        files += [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    for path in files:
        for value in (*search.in_bytes(path.read_bytes()), *search.in_bytes(str(path.name).encode())):
            hits.add(f"{value} in {path}")
    return sorted(hits)


class _Search:
    """Searches for many texts at once: a bitmap of their first three bytes leaves few places where one can begin."""

    def __init__(self, wanted: dict[bytes, str]) -> None:
        self._by_start: dict[bytes, list[bytes]] = {}
        self._wanted = wanted
        # 16 MiB, once: a search text by text over gigabytes would take hours.
        self._begins = np.zeros(1 << 24, bool)
        for text in wanted:
            self._by_start.setdefault(text[:_START], []).append(text)
            self._begins[int.from_bytes(text[:_START], "big")] = True

    def in_bytes(self, data: bytes) -> set[str]:
        """Return the values whose spellings are in `data`."""
        raw = np.frombuffer(data, np.uint8).astype(np.uint32)
        if len(raw) < _START:
            return set()
        starts = np.flatnonzero(self._begins[(raw[:-2] << 16) | (raw[1:-1] << 8) | raw[2:]])
        return {
            self._wanted[text]
            for at in starts.tolist()
            for text in self._by_start[data[at : at + _START]]
            if data.startswith(text, at)
        }


def _base64(raw: bytes) -> set[bytes]:
    """Return base64 as it appears inside a longer text: three ways, by the offset, without the edges."""
    inner = set()
    for lead in range(3):
        coded = base64.b64encode(bytes(lead) + raw)
        inner.add(coded[4 * (lead > 0) : len(coded) - 4 * ((lead + len(raw)) % 3 > 0)])
    return {text for text in inner if len(text) >= 8}
