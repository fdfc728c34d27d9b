"""Looking for values that must not be anywhere: in every spelling a program may have given them."""

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

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
    hits = []
    for path in _files(places):
        data = path.read_bytes()
        for text, value in wanted.items():
            if text in data or text in str(path.name).encode():
                hits.append(f"{value} in {path}")
    return sorted(set(hits))


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
