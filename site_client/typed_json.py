"""Typed JSON: the small files of a site, and the lines that its processes write to each other.

A file or line is one dataclass, list or table. msgspec checks types and bounds, which stand beside the fields as
`Annotated[..., msgspec.Meta(...)]`. Bytes stand as hex, times as ISO 8601 with their zone.

In files of the state folder one wrong bit could be another decision. They have a second line, the SHA-256 of the first
in hex. Files of version 0.1.0 have none and are read as they are.

The size is checked before the text is parsed. Nothing outside this module sees an error of msgspec, whose messages
repeat the refused value: a file that the trainer wrote must not bring such a value into the agent's log.
"""

import hashlib
import json
import re
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, Self, TypeVar

import msgspec

from site_client.errors import StateRefused, StateUnreadable
from site_client.untrusted_files import read_regular

SIZE_MAX: Final = 1 << 20  # bytes; the longest file, an agent's status with 500 hospitals, has 20 KiB
_CHECKSUM: Final = re.compile(rb"[0-9a-f]{64}\n")
LOCAL: Final = {"local": True}  # metadata of a dataclass field that is not written
LATER: Final = {"later": True}  # metadata of a field with a default that whole records of 0.1.0 lack
_T = TypeVar("_T")


class HexBytes(bytes):
    """Bytes of a fixed length that stand as hex in JSON. Each subclass states its length."""

    LENGTH: ClassVar[int]

    @classmethod
    def from_hex(cls, text: object) -> Self:
        """Read hex.

        Raises:
            ValueError: `text` is not hex, or not of this length.
        """
        # bytes.fromhex raises ValueError for odd or foreign characters; msgspec turns either into an out-of-range key.
        data = cls(bytes.fromhex(text)) if isinstance(text, str) else cls()
        if len(data) != cls.LENGTH:
            raise ValueError(f"expected {cls.LENGTH} bytes in hex")
        return data


class Digest(HexBytes):
    """A SHA-256."""

    LENGTH = 32


def encode(record: object) -> bytes:
    """Return canonical JSON: one record, one string.

    Raises:
        ValueError: A number is not finite.
    """
    # json and not msgspec writes: msgspec would write bytes as base64, and files of version 0.1.0 hold hex.
    text = json.dumps(record, default=_plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def decode(kind: type[_T], data: bytes | str, *, whole: bool = False, size_max: int = SIZE_MAX) -> _T:
    """Read a record.

    Args:
        kind: Dataclass, list or table, with bounds in its annotations.
        data: The JSON text.
        whole: Whether keys with a default must be there too.
        size_max: The most bytes that are parsed.

    Raises:
        ValueError: The text is no such record. The message is a clause without any value of the record.
    """
    # Before parsing: a parser holds several times the size of its text in memory.
    if len(data) > size_max:
        raise ValueError(f"it is larger than {size_max} bytes")
    try:
        table = msgspec.json.decode(data)
    # RecursionError: brackets without end, which stay under the limit of size.
    except (msgspec.DecodeError, RecursionError):
        raise ValueError("it is not JSON") from None
    if is_dataclass(kind):
        _check_keys(kind, table, whole)
    try:
        # Strict, as is msgspec's default: no text becomes a number, no number a flag.
        return msgspec.convert(table, kind, dec_hook=_hex_bytes)
    except msgspec.ValidationError as error:
        key = re.search(r"`\$\.([a-z0-9_]+)", str(error))
        # `from None`: the cause would carry the refused value into a traceback.
        raise ValueError(f"{key[1] if key else 'a value'} is out of range") from None


def encode_state(record: object) -> bytes:
    """Return canonical JSON and its checksum on a second line: one bit that changes on the disk is then noticed.

    Raises:
        ValueError: A number is not finite.
    """
    text = encode(record)
    return text + b"\n" + hashlib.sha256(text).hexdigest().encode() + b"\n"


def decode_state(kind: type[_T], data: bytes, *, size_max: int = SIZE_MAX) -> _T:
    """Read a record, and check its checksum where it has one.

    Raises:
        ValueError: The text is no such record, or has another checksum.
    """
    # Canonical JSON has no newline of its own. Some files of version 0.1.0 have several lines; a checksum that was
    # damaged to another line is taken for one of these, and is no JSON.
    text, _, checksum = data.partition(b"\n")
    if _CHECKSUM.fullmatch(checksum):
        if checksum[:64] != hashlib.sha256(text).hexdigest().encode():
            raise ValueError("its checksum is not that of its text")
        data = text
    return decode(kind, data, size_max=size_max)


def read_state(kind: type[_T], path: Path, advice: str) -> _T | None:
    """Read a small file of the state folder; None when there is none.

    Args:
        kind: As for `decode`; keys with a default may be missing, as in files of an older version.
        path: The file.
        advice: What to do about a damaged one, as an imperative clause.

    Raises:
        StateRefused: The file is damaged, of a newer version, or no regular file.
        StateUnreadable: The file cannot be read.
    """
    try:
        # Read and not tested for existence first: the file may go between the two.
        return decode_state(kind, read_regular(path, SIZE_MAX))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateUnreadable.of(path.name, error) from error
    except ValueError as error:
        raise StateRefused(f"{path.name} in the state folder is damaged ({error}); {advice}") from None


def record_keys(kind: type) -> list[str]:
    """Return the keys of a dataclass that are written."""
    return [item.name for item in fields(kind) if not item.metadata.get("local")]


def _check_keys(kind: type, table: object, whole: bool) -> None:
    """Refuse an unknown key, which msgspec ignores in a dataclass, and with `whole` a missing one."""
    if not isinstance(table, dict):
        raise ValueError("it is not a JSON object")
    known = set(record_keys(kind))
    # With `whole`, a missing key is as odd as an unknown one: writer and reader then have two versions.
    later = {field.name for field in fields(kind) if field.metadata.get("later")}
    odd = sorted((known ^ set(table)) - (later & known)) if whole else sorted(set(table) - known)
    if odd:
        raise ValueError(f"the key {odd[0][:40]!r} is unknown or missing")


def _hex_bytes(kind: type, value: object) -> Any:
    if issubclass(kind, HexBytes):
        return kind.from_hex(value)
    raise TypeError(f"{kind.__name__} is not read from JSON")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return {key: getattr(value, key) for key in record_keys(type(value))}
