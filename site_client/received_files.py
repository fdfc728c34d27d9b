"""Removal of received files: the receiver asks, ingest answers, the receiver removes.

The receiver writes the names of old files into <incoming>/.leaving.json. After its next scan the trainer writes those
of them that it has taken into <state>/trainer/taken/taken.json. The receiver removes a file only if it asked for its
name and the answer holds it. So no clock and no guess decides, and neither side writes where the other one does. Names
are keyed hashes and tell nothing of a patient. Each side takes the other one's file for hostile: it is bounded and
checked.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from site_client.files import refresh_file
from site_client.typed_json import decode, encode
from site_client.untrusted_files import read_regular

RECEIVED: Final = "received"  # the incoming folder's name, if it lies in the export and is not all of it
NAMES_MAX: Final = 50_000  # at a time
_ASKED: Final = ".leaving.json"  # hidden, so that ingest does not take it for an image
_TAKEN: Final = "taken.json"
_SIZE_MAX: Final = 1 << 22
Name = Annotated[str, Meta(pattern=r"^[0-9a-f]{2}/[0-9a-f]{24}-[0-9a-f]{24}\.dcm$")]


@dataclass(frozen=True)
class FileNames:
    """Names below the incoming folder."""

    names: Annotated[list[Name], Meta(max_length=NAMES_MAX)]


def ask(incoming: Path, names: list[str]) -> None:
    """Ask which of these files ingest has taken. By the receiver."""
    refresh_file(incoming / _ASKED, encode(FileNames(names)), 0o640)


def asked(incoming: Path) -> list[str]:
    """Return the names that are asked for; none when there is no question. By the trainer."""
    return _read(incoming / _ASKED)


def answer(folder: Path, names: list[str]) -> None:
    """Answer. By the trainer, in a folder of its own that the receiver may read."""
    if not folder.exists():
        folder.mkdir()
        folder.chmod(0o755)
    refresh_file(folder / _TAKEN, encode(FileNames(names)), 0o644)


def answered(folder: Path) -> list[str]:
    """Return the names that ingest has taken; none when there is no answer. By the receiver."""
    return _read(folder / _TAKEN)


def _read(path: Path) -> list[str]:
    try:
        return decode(FileNames, read_regular(path, _SIZE_MAX), size_max=_SIZE_MAX).names
    except (OSError, ValueError):
        return []
