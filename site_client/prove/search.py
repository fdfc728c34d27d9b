"""Looking for values that must not be anywhere: in every spelling a program may have given them.

Values are of four characters or more.
"""

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy as np

_START = 3  # bytes; every spelling is longer
DIGESTS = ("md5", "sha1", "sha256")


def spellings(values: Iterable[str]) -> dict[bytes, str]:
    """Bytes to look for -> the value they stand for. Digests in raw and in hex."""
    found: dict[bytes, str] = {}
    for value in values:
        plain = [value.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
        if value.encode("utf-8", "ignore") and _fits_latin(value):
            plain.append(value.encode("latin-1"))
        for raw in plain:
            found |= dict.fromkeys((raw, raw.hex().encode(), raw.hex().upper().encode()), value)
            found |= dict.fromkeys(_base64(raw), value)
        found[quote(value, safe="").encode()] = value
        for name in DIGESTS:
            digest = hashlib.new(name, value.encode(), usedforsecurity=False)
            found |= dict.fromkeys((digest.digest(), digest.hexdigest().encode()), value)
    return found


def findings(wanted: dict[bytes, str], places: Iterable[Path]) -> list[str]:
    """ "<value> in <file>" for every hit in these files, or below these folders; names of files count, too."""
    search = _Search(wanted)
    hits = set()
    for path in _files(places):
        for value in (*search.in_bytes(path.read_bytes()), *search.in_bytes(str(path.name).encode())):
            hits.add(f"{value} in {path}")
    return sorted(hits)


class _Search:
    """Many texts at once: a bitmap of their first three bytes leaves few places where any of them can begin."""

    def __init__(self, wanted: dict[bytes, str]) -> None:
        self._by_start: dict[bytes, list[bytes]] = {}
        self._wanted = wanted
        self._begins = np.zeros(1 << 24, bool)
        for text in wanted:
            self._by_start.setdefault(text[:_START], []).append(text)
            self._begins[int.from_bytes(text[:_START], "big")] = True

    def in_bytes(self, data: bytes) -> set[str]:
        """The values whose spellings stand in `data`."""
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


def _files(places: Iterable[Path]) -> Iterable[Path]:
    for place in places:
        yield from [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())


def _base64(raw: bytes) -> set[bytes]:
    """In the middle of a longer text base64 looks different by where it begins: three ways, without the edges."""
    found = set()
    for lead in range(3):
        coded = base64.b64encode(bytes(lead) + raw)
        found.add(coded[4 * (lead > 0) : len(coded) - 4 * ((lead + len(raw)) % 3 > 0)])
    return {one for one in found if len(one) >= 8}


def _fits_latin(value: str) -> bool:
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True
