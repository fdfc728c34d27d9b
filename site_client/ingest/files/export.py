"""The export as a tree of files: walked, never trusted, never changed.

Names mean nothing (8.3 names, no suffix, patients' names). So the walk skips by name only what is plainly no image; the
header pass recognizes the rest by its first bytes. Links below the root are counted and not followed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from site_client.errors import IngestError
from site_client.ingest.reasons import Reason

_JUNK_SUFFIXES = frozenset((
    ".partial", ".part", ".tmp", ".temp", ".crdownload", ".filepart", ".lock", ".txt", ".log", ".ini", ".inf",
    ".xml", ".html", ".htm", ".css", ".js", ".json", ".csv", ".pdf", ".jpg", ".jpeg", ".png", ".gif", ".bmp",
    ".ico", ".tif", ".tiff", ".exe", ".dll", ".msi", ".bat", ".cmd", ".jar", ".class", ".so", ".zip", ".7z", ".rar",
    ".tar", ".gz", ".db", ".md", ".doc", ".docx", ".xls", ".xlsx", ".nii", ".npz", ".npy", ".sqlite", ".lnk",
    ".url", ".chm", ".ttf",
))  # fmt: skip
_JUNK_NAMES = frozenset(("thumbs.db", "desktop.ini", "autorun.inf", "version", "lockfile"))
_SMALLEST_BYTES = 132  # preamble and prefix of a DICOM file (PS3.10 section 7.1)


@dataclass(frozen=True, slots=True)
class ExportFile:
    """A file that the header pass has to read, or (`skip`) the reason why not. `path` is relative to the root."""

    path: str
    size_bytes: int
    mtime_ns: int
    skip: Reason | None = None


def walk(root: Path) -> Iterator[ExportFile]:
    """Walks all files below the root.

    Yields:
        Every file, in a fixed order. A folder inside that cannot be read yields one item with Q_READ.

    Raises:
        IngestError: the root itself cannot be listed. An export that is not mounted must not look like an empty one,
            or the scan would forget every file.
    """
    try:
        top = os.path.realpath(root, strict=True)
        os.scandir(top).close()
    except OSError as error:
        raise IngestError(f"the export folder cannot be listed ({error.strerror}); mount it or correct it") from None
    yield from _folder(top, "", top)


def _folder(folder: str, prefix: str, top: str) -> Iterator[ExportFile]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield ExportFile(prefix.rstrip("/"), 0, 0, Reason.Q_READ)
        return
    for entry in listed:
        yield from _entry(entry, prefix + entry.name, top)


def _entry(entry: "os.DirEntry[str]", path: str, top: str) -> Iterator[ExportFile]:
    try:
        if entry.is_symlink():
            # The target of a link inside the root is met under its own name: following could only loop or repeat.
            inside = os.path.realpath(entry.path).startswith(top + os.sep)
            yield ExportFile(path, 0, 0, Reason.S_DUPLICATE if inside else Reason.S_OUTSIDE_ROOT)
        elif entry.is_dir():
            # The phantom's answers: a training that read them would learn nothing from the images.
            if entry.name == "hidden":
                yield ExportFile(path, 0, 0, Reason.S_HIDDEN_TRUTH)
            elif not entry.name.startswith("."):
                yield from _folder(entry.path, path + "/", top)
        else:
            stat = entry.stat()
            # A pipe or a device would block the reader.
            skip = Reason.S_JUNK if not entry.is_file() or is_junk(entry.name, stat.st_size) else None
            yield ExportFile(path, stat.st_size, stat.st_mtime_ns, skip)
    except OSError:
        yield ExportFile(path, 0, 0, Reason.Q_READ)


def is_junk(name: str, size_bytes: int) -> bool:
    """Tells whether a file is one that no scanner or archive writes as an image."""
    lower = name.lower()
    return (
        size_bytes < _SMALLEST_BYTES
        or name.startswith((".", "~"))
        or lower in _JUNK_NAMES
        or os.path.splitext(lower)[1] in _JUNK_SUFFIXES
    )
