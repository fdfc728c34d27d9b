"""The files that a site's settings mean as labels, each with its number and its outcome."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

MAP_NAME: Final = "slice_map.csv"
_TABLES: Final = frozenset((".csv", ".tsv", ".tab", ".txt", ".xlsx", ".xlsm"))
_OTHER_TABLES: Final = frozenset((".xls", ".xlsb", ".ods", ".numbers"))  # tables that have to be saved as another kind


class LabelFileState(StrEnum):
    """Outcomes of a label file. The value of each is its meaning in words."""

    READ = "labels were read"
    MAP = "read as a list of images by ID"
    OTHER_TABLE = "a table without labels, not used"
    NO_TABLE = "no table by its name, or a folder: not opened"
    REFUSED = "refused"
    UNREADABLE = "could not be read"


@dataclass(frozen=True)
class LabelSource:
    """A file to look at. `number`: names it in every message; the file's own name may be a person's.

    `named`: the settings name this very file, so it has to hold labels. `fault`: why it cannot be looked at, or "".
    """

    number: int
    path: Path = field(repr=False)
    named: bool = False
    is_table: bool = True
    fault: str = ""

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"label file {self.number}"


@dataclass(frozen=True)
class LabelFile:
    """A label file after it was read. `path` is for people of this site only.

    `rows`, `duplicates`: of its table. `unreadable_cells`, `unreadable_rows`: cells and keys that are no label and no
    key; `first_unreadable`: the line of the first of them, or 0. `sentence`: why it was refused, or "".
    """

    number: int
    path: str = field(repr=False)
    state: LabelFileState
    rows: int = 0
    duplicates: int = 0
    unreadable_cells: int = 0
    unreadable_rows: int = 0
    first_unreadable: int = 0
    sentence: str = ""


def label_sources(export: Path, labels: Sequence[Path]) -> list[LabelSource]:
    """Lists every file that may hold labels, and every other file of a label folder.

    Args:
        export: Its top is searched for tables if `labels` is empty. Other files there are the export's.
        labels: Files and folders. A folder's subfolders are listed and not searched.

    Returns:
        The files in a fixed order. What cannot be looked at is listed with its fault: it is not the same as absent.
    """
    entries: list[tuple[Path, bool, str]] = []
    for path in labels:
        entries += _in_folder(path) if path.is_dir() else [(path, True, "")]
    if not labels:
        tables = _TABLES - {".txt"} | _OTHER_TABLES  # of texts an export may hold thousands
        entries += [entry for entry in _in_folder(export) if _suffix(entry[0]) in tables or entry[2]]
    # A file that is named and lies in a named folder counts once.
    by_path = {path: (named, fault) for path, named, fault in sorted(entries, key=lambda entry: (entry[0], entry[1]))}
    beside = {path.with_name(MAP_NAME) for path, (named, _) in by_path.items() if named} - set(by_path)
    by_path |= {path: (False, "") for path in sorted(beside) if path.is_file()}
    return [
        LabelSource(number, path, named, named or _suffix(path) in _TABLES | _OTHER_TABLES, fault)
        for number, (path, (named, fault)) in enumerate(by_path.items(), 1)
    ]


def label_files(export: Path, labels: Sequence[Path]) -> list[Path]:
    """Lists the files of `label_sources` that are tables by name, or named in the settings."""
    return [source.path for source in label_sources(export, labels) if source.is_table]


def _in_folder(folder: Path) -> Iterator[tuple[Path, bool, str]]:
    try:
        with os.scandir(folder) as listed:
            names = sorted(entry.name for entry in listed)
    except OSError as error:
        yield folder, False, f"the folder cannot be listed ({error.strerror})"
        return
    # A lock file of a spreadsheet program, such as ~$labels.xlsx, is named like a table and is none: it is listed.
    yield from ((folder / name, False, "") for name in names)


def _suffix(path: Path) -> str:
    return "" if path.name.startswith(("~$", ".")) else path.suffix.lower()
