"""The export as a tree of files: walked, never trusted, never changed.

Names mean nothing (8.3 names, no suffix, patients' names): the first bytes decide. The walk skips by name only files
that are still being written and hidden ones; a name such as `image.db` is a doubt, which the first bytes settle. Links
below the root are counted and not followed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from site_client.errors import IngestError
from site_client.ingest.files.addresses import ListedMember, MemberStep, member_address
from site_client.ingest.reasons import Reason
from site_client.untrusted_files import open_regular

_UNFINISHED = frozenset((".partial", ".part", ".tmp", ".temp", ".crdownload", ".filepart", ".lock"))
_JUNK_SUFFIXES = _UNFINISHED | frozenset((
    ".txt", ".log", ".ini", ".inf",
    ".xml", ".html", ".htm", ".css", ".js", ".json", ".csv", ".pdf", ".jpg", ".jpeg", ".png", ".gif", ".bmp",
    ".ico", ".tif", ".tiff", ".exe", ".dll", ".msi", ".bat", ".cmd", ".jar", ".class", ".so", ".7z", ".rar",
    ".tar", ".gz", ".db", ".md", ".doc", ".docx", ".xls", ".xlsx", ".nii", ".npz", ".npy", ".sqlite", ".lnk",
    ".url", ".chm", ".ttf",
))  # fmt: skip
_JUNK_NAMES = frozenset(("thumbs.db", "desktop.ini", "autorun.inf", "version", "lockfile"))
_TABLES = frozenset((".csv", ".tsv", ".tab", ".xlsx", ".xlsm", ".xls", ".xlsb", ".ods"))
_SMALLEST_BYTES = 132  # preamble and prefix of a DICOM file (PS3.10 section 7.1)


@dataclass(frozen=True, slots=True)
class ExportFile:
    """A file that the header pass has to read, or (`skip`) the reason why not.

    `path`: relative to the root; of a member of an archive its address. `ctime_ns`: changes with the bytes, the mode or
    the owner, and no copying program sets it. `doubtful`: it is skipped by its name alone, unless `begins_as_dicom`.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    skip: Reason | None = None
    doubtful: bool = False


def walk(root: Path) -> Iterator[ExportFile]:
    """Walks all files below the root.

    Yields:
        Every file, in a fixed order. A folder inside that cannot be read yields one item with Q_READ.

    Raises:
        IngestError: The root itself cannot be listed. An export that is not mounted must not look like an empty one,
            or the scan would forget every file.
    """
    try:
        top = os.path.realpath(root, strict=True)
        os.scandir(top).close()
    except OSError as error:
        raise IngestError(f"the export folder cannot be listed ({error.strerror}); mount it or correct it") from None
    # A list and no recursion: a tree may be deeper than Python's stack.
    waiting = [_listed(top, "")]
    while waiting:
        item = next(waiting[-1], None)
        if item is None:
            waiting.pop()
        elif isinstance(item, ExportFile):
            yield item
        elif item.name == "hidden":
            # The phantom's answers: a training that read them would learn nothing from the images.
            yield _skipped(item.path, Reason.S_HIDDEN_TRUTH)
        elif item.name.startswith("."):
            yield _skipped(item.path, Reason.S_HIDDEN)
        else:
            waiting.append(_listed(top, item.path + "/"))


@dataclass(frozen=True, slots=True)
class _Folder:
    name: str
    path: str


def _listed(top: str, prefix: str) -> Iterator[ExportFile | _Folder]:
    try:
        with os.scandir(os.path.join(top, prefix)) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield _skipped(prefix.rstrip("/"), Reason.Q_READ)
        return
    for entry in listed:
        try:
            yield _entry(entry, prefix + entry.name, top)
        except OSError:
            yield _skipped(prefix + entry.name, Reason.Q_READ)


def _entry(entry: "os.DirEntry[str]", path: str, top: str) -> ExportFile | _Folder:
    if entry.is_symlink():
        # The target of a link inside the root is met under its own name: following could only loop or repeat.
        target = os.path.realpath(entry.path)
        inside = target == top or target.startswith(top + os.sep)
        return _skipped(path, Reason.S_LINK if inside else Reason.S_OUTSIDE_ROOT)
    if entry.is_dir():
        return _Folder(entry.name, path)
    stat = entry.stat()
    skip = Reason.S_JUNK if not entry.is_file() or is_junk(entry.name, stat.st_size) else None
    # A pipe or a device would block the reader.
    doubtful = skip is not None and entry.is_file() and _has_doubtful_name(entry.name, stat.st_size)
    return ExportFile(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, skip, doubtful)


def in_archive(archive: ExportFile, member: ListedMember) -> ExportFile:
    """Gives a member of an archive as a file of the export, under the rules of the walk.

    Its times are the archive's: a member changes with its archive.
    """
    path = member_address(archive.path, MemberStep(member.place, member.name))
    *folders, name = member.name.split("/")
    skip, doubtful = Reason[member.code] if member.code else None, False
    if "hidden" in folders:
        skip = Reason.S_HIDDEN_TRUTH
    elif any(folder.startswith(".") for folder in folders):
        skip = Reason.S_HIDDEN
    elif os.path.splitext(name.lower())[1] in _TABLES:
        skip = Reason.S_TABLE
    elif skip is None and is_junk(name, member.size_bytes):
        skip, doubtful = Reason.S_JUNK, _has_doubtful_name(name, member.size_bytes)
    return ExportFile(path, member.size_bytes, archive.mtime_ns, archive.ctime_ns, skip, doubtful)


def _skipped(path: str, reason: Reason) -> ExportFile:
    return ExportFile(path, 0, 0, 0, reason)


def begins_as_dicom(path: Path) -> bool:
    """Tells whether a file has the prefix of PS3.10 section 7.1. It understands no other byte of it."""
    try:
        with open_regular(path, 1 << 62) as file:
            return file.read(_SMALLEST_BYTES)[128:] == b"DICM"
    except (OSError, ValueError):
        return False


def _has_doubtful_name(name: str, size_bytes: int) -> bool:
    unfinished = os.path.splitext(name.lower())[1] in _UNFINISHED or name.startswith((".", "~"))
    return size_bytes >= _SMALLEST_BYTES and not unfinished


def is_junk(name: str, size_bytes: int) -> bool:
    """Tells whether a file is one that no scanner or archive writes as an image."""
    lower = name.lower()
    return (
        size_bytes < _SMALLEST_BYTES
        or name.startswith((".", "~"))
        or lower in _JUNK_NAMES
        or os.path.splitext(lower)[1] in _JUNK_SUFFIXES
    )
