"""The export as a tree of files: walked, never trusted, never changed.

Names mean nothing (8.3 names, no suffix, patients' names), so that only plainly foreign files are skipped by name;
everything else is judged by its first bytes in `dicom`. Links below the root are counted, not followed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from site_client.errors import IngestError
from site_client.ingest.reasons import Reason

_JUNK_SUFFIXES = frozenset(
    [
        ".partial",
        ".part",
        ".tmp",
        ".temp",
        ".crdownload",
        ".filepart",
        ".lock",
        ".txt",
        ".log",
        ".ini",
        ".inf",
        ".xml",
        ".html",
        ".htm",
        ".css",
        ".js",
        ".json",
        ".csv",
        ".pdf",
        ".jpg",
        ".jpeg",
        ".png",
        ".gif",
        ".bmp",
        ".ico",
        ".tif",
        ".tiff",
        ".exe",
        ".dll",
        ".msi",
        ".bat",
        ".cmd",
        ".jar",
        ".class",
        ".so",
        ".zip",
        ".7z",
        ".rar",
        ".tar",
        ".gz",
        ".db",
        ".md",
        ".doc",
        ".docx",
        ".xls",
        ".xlsx",
        ".nii",
        ".npz",
        ".npy",
        ".sqlite",
        ".lnk",
        ".url",
        ".chm",
        ".ttf",
    ]
)
_JUNK_NAMES = frozenset(("thumbs.db", "desktop.ini", "autorun.inf", "version", "lockfile"))


@dataclass(frozen=True, slots=True)
class Seen:
    """A file worth opening, or (`skip`) one that is not. `path` is relative to the root."""

    path: str
    size_bytes: int
    mtime_ns: int
    skip: Reason | None = None


def walk(root: Path) -> Iterator[Seen]:
    """Every file below the root, in a fixed order.

    Raises IngestError when the root itself cannot be listed: an export that is not mounted must not look like an
    export that was emptied. A folder inside that cannot be read yields one Q_READ.
    """
    try:
        top = os.path.realpath(root, strict=True)
        os.scandir(top).close()
    except OSError as error:
        raise IngestError(f"the export folder cannot be listed ({error.strerror}); mount it or correct it") from None
    yield from _folder(top, "", top)


def _folder(folder: str, prefix: str, top: str) -> Iterator[Seen]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield Seen(prefix.rstrip("/"), 0, 0, Reason.Q_READ)
        return
    for entry in listed:
        yield from _entry(entry, prefix + entry.name, top)


def _entry(entry: "os.DirEntry[str]", path: str, top: str) -> Iterator[Seen]:
    try:
        if entry.is_symlink():
            yield Seen(path, 0, 0, _link(entry.path, top))
        elif entry.is_dir():
            if entry.name == "hidden":
                yield Seen(path, 0, 0, Reason.S_HIDDEN_TRUTH)
            elif not entry.name.startswith("."):
                yield from _folder(entry.path, path + "/", top)
        else:
            stat = entry.stat()
            skip = Reason.S_JUNK if not entry.is_file() or is_junk(entry.name, stat.st_size) else None
            yield Seen(path, stat.st_size, stat.st_mtime_ns, skip)
    except OSError:
        yield Seen(path, 0, 0, Reason.Q_READ)


def _link(path: str, top: str) -> Reason:
    # What a link inside the root points at is met under its own name; following it too could only loop or repeat.
    inside = os.path.realpath(path).startswith(top + os.sep)
    return Reason.S_DUPLICATE if inside else Reason.S_OUTSIDE_ROOT


def is_junk(name: str, size_bytes: int) -> bool:
    """A file that no scanner or archive writes as an image."""
    lower = name.lower()
    return (
        size_bytes < 132
        or name.startswith((".", "~"))
        or lower in _JUNK_NAMES
        or os.path.splitext(lower)[1] in _JUNK_SUFFIXES
    )
