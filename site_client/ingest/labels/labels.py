"""Label files -> cells by pseudonym. Three shapes exist, told apart by their columns.

ID,Label                                             RSNA 2019, one row a slice and label: ID_<image>_<label>,0
SOPInstanceUID, StudyInstanceUID or AccessionNumber  and label columns: one row a slice or study; an empty cell is
                                                     unknown, not negative
ID,SOPInstanceUID                                    the image of an RSNA-style ID; without this file the ID is its UID

A cell that cannot be understood is unknown and counted. Two rows that contradict each other make a conflict, which
keeps the study out of training unless the site has a rule (`readings`). Only keys and cells of a file are kept.

Nothing that cannot be read passes for empty: a table that is damaged, out of reach, or without a single row that can
be understood is refused with a sentence, and the catalog keeps the labels it had.
"""

import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from federation.labels import LABELS

from site_client.errors import LabelsRefused
from site_client.ingest.files.tags import is_uid
from site_client.ingest.files.wording import accession_number
from site_client.ingest.labels.files import LabelFile, LabelFileState, LabelSource
from site_client.ingest.labels.readings import (
    Cells,
    LabelRules,
    Reading,
    Readings,
    comparable_date,
    merge,
    settle,
)
from site_client.ingest.labels.spelling import (
    ACCESSION,
    DATE,
    ID,
    LABEL,
    READER,
    SLICE,
    STUDY,
    UNKNOWN,
    cell_value,
    plain_text,
)
from site_client.ingest.labels.table import LabelTable
from site_client.ingest.labels.text_table import read_text_table
from site_client.ingest.labels.xlsx_table import read_workbook
from site_client.ingest.pseudonym import SiteSecret

FILE_BYTES_MAX: Final = 2**30  # the labels of the whole RSNA challenge have 120 MB
_UNKNOWN_CELLS: Final = bytes([UNKNOWN] * len(LABELS))
_OLE, _ZIP = b"\xd0\xcf\x11\xe0", b"PK\x03\x04"


@dataclass(frozen=True)
class Labels:
    """All label files together.

    `slices`, `studies`, `accessions`: cells by pseudonym. `contradicted`: keys on which rows contradicted each other,
    also where a rule decided. `files`: every file that was looked at, with what became of it.
    """

    slices: Mapping[str, Cells] = field(default_factory=dict)
    studies: Mapping[str, Cells] = field(default_factory=dict)
    accessions: Mapping[str, Cells] = field(default_factory=dict)
    contradicted: int = 0
    files: tuple[LabelFile, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all tables of labels."""
        return sum(file.rows for file in self.files if file.state is LabelFileState.READ)

    @property
    def duplicates(self) -> int:
        """Rows that state again the label of another row."""
        return sum(file.duplicates for file in self.files)

    @property
    def unreadable(self) -> int:
        """Rows and cells that are no key and no label."""
        return sum(file.unreadable_rows + file.unreadable_cells for file in self.files)

    @property
    def refused(self) -> tuple[str, ...]:
        """A sentence for each file that could not be read or was refused."""
        return tuple(file.sentence for file in self.files if file.sentence)


def read_labels(sources: Sequence[LabelSource], secret: SiteSecret, rules: LabelRules | None = None) -> Labels:
    """Reads all label files.

    Args:
        sources: from `files.label_sources`.
        secret: keys the pseudonyms.
        rules: of this site; None: the defaults.

    Returns:
        The merged labels, and what became of each file. Nothing about a file raises: the others still count.
    """
    rules = rules or LabelRules()
    with ExitStack() as open_files:
        files: dict[int, LabelFile] = {}
        tables: dict[int, list[LabelTable]] = {}
        for source in sources:
            try:
                tables[source.number], state = _tables(source, rules, open_files)
                files[source.number] = LabelFile(source.number, str(source.path), state)
            except Exception as error:
                files[source.number] = _failed(source, error)
        # Maps before labels: an ID must not be taken for a UID because its map comes later in the list.
        ids: dict[str, str] = {}
        for source in sources:
            for table in tables.get(source.number, ()):
                if table.is_map:
                    files[source.number] = _guarded_map(source, files[source.number], table, ids)
        reading = _Reader(secret, rules, ids)
        for source in sources:
            labelled = [table for table in tables.get(source.number, ()) if not table.is_map]
            if labelled:
                files[source.number] = reading.read(source, files[source.number], labelled)
    return reading.labels(tuple(files.values()))


def _tables(source: LabelSource, rules: LabelRules, open_files: ExitStack) -> tuple[list[LabelTable], LabelFileState]:
    if source.fault:
        raise LabelsRefused(f"{source.title}: {source.fault}; correct its rights or folders.labels")
    if not source.is_table or (not source.named and source.path.is_dir()):
        return [], LabelFileState.NO_TABLE
    # A pipe or a device would block the reader.
    figures = source.path.stat()
    if not stat.S_ISREG(figures.st_mode):
        raise LabelsRefused(f"{source.title}: expected a file, got a device or a folder; correct folders.labels")
    if figures.st_size > FILE_BYTES_MAX:
        raise LabelsRefused(f"{source.title}: expected at most {FILE_BYTES_MAX >> 20} MiB; leave out other columns")
    file = open_files.enter_context(source.path.open("rb"))
    start = file.read(4)
    file.seek(0)
    tables: list[LabelTable] = []
    if start == _ZIP:
        tables = read_workbook(file, source.title, rules.columns)
    elif start == _OLE:
        raise LabelsRefused(
            f"{source.title}: an Excel file before .xlsx, or one with a password; save it as CSV or .xlsx"
        )
    else:
        data = file.read()
        if data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise LabelsRefused(f"{source.title}: a web page or XML and no table; save it as CSV or .xlsx")
        table = read_text_table(data, source.title, rules.columns)
        tables = [table] if table is not None else []
    if tables:
        return tables, LabelFileState.MAP if all(table.is_map for table in tables) else LabelFileState.READ
    if source.named:
        raise LabelsRefused(
            f"{source.title}: expected columns ID,Label or StudyInstanceUID (or SOPInstanceUID, AccessionNumber) and "
            "the six labels; correct the line of column names"
        )
    return [], LabelFileState.OTHER_TABLE


def _failed(source: LabelSource, error: Exception) -> LabelFile:
    """Makes any failure the end of this one file, without its text: it could quote a cell."""
    state = LabelFileState.REFUSED
    if isinstance(error, LabelsRefused):
        sentence = str(error)
        state = LabelFileState.UNREADABLE if source.fault else state
    elif isinstance(error, OSError):
        state = LabelFileState.UNREADABLE
        sentence = f"{source.title} cannot be read ({error.strerror}); correct its rights or folders.labels"
    else:
        sentence = f"{source.title} is damaged ({type(error).__name__}); save it as CSV"
    return LabelFile(source.number, str(source.path), state, sentence=sentence)


def _guarded_map(source: LabelSource, file: LabelFile, table: LabelTable, ids: dict[str, str]) -> LabelFile:
    found: dict[str, str] = {}
    rows = unreadable = first = 0
    try:
        for line, row in table.rows():
            key, uid = plain_text(row[table.columns[ID]]), plain_text(row[table.columns[SLICE]])
            rows += 1
            if not key or not _checked_uid(uid, table.title, line):
                unreadable, first = unreadable + 1, first or line
                continue
            # One ID for two images stands for neither.
            found[key] = uid if found.get(key, uid) == uid else ""
    except Exception as error:
        return _failed(source, error)
    for key, uid in found.items():
        ids[key] = uid if ids.get(key, uid) == uid else ""
    return replace(
        file, rows=file.rows + rows, unreadable_rows=file.unreadable_rows + unreadable,
        first_unreadable=file.first_unreadable or first,
    )  # fmt: skip


@dataclass
class _Counts:
    """Counts of one file while it is read."""

    rows: int = 0
    duplicates: int = 0
    unreadable_cells: int = 0
    unreadable_rows: int = 0
    first_unreadable: int = 0
    known: int = 0  # keys with a label that is known

    def miss(self, line: int, cells: int = 0, rows: int = 0) -> None:
        """Counts what could not be understood."""
        self.unreadable_cells += cells
        self.unreadable_rows += rows
        self.first_unreadable = self.first_unreadable or line


class _Reader:
    """Reads the tables of all files into one set of readings."""

    def __init__(self, secret: SiteSecret, rules: LabelRules, ids: Mapping[str, str]) -> None:
        self._secret, self._ids, self._rules = secret, ids, rules
        self._readings = {kind: Readings(rules) for kind in (SLICE, STUDY, ACCESSION)}

    def labels(self, files: tuple[LabelFile, ...]) -> Labels:
        """Merges the readings of all files."""
        resolved = {kind: readings.resolve() for kind, readings in self._readings.items()}
        # After all files: a subtype in one file and `any` in another only contradict each other together.
        cells = {kind: {key: settle(row) for key, row in merged.items()} for kind, (merged, _) in resolved.items()}
        contradicted = sum(count for _, count in resolved.values())
        return Labels(cells[SLICE], cells[STUDY], cells[ACCESSION], contradicted, files)

    def read(self, source: LabelSource, file: LabelFile, tables: Sequence[LabelTable]) -> LabelFile:
        """Reads all tables of a file, or none: half a file could make a study negative."""
        counts, read = _Counts(), dict[tuple[str, str], list[Reading]]()
        try:
            for table in tables:
                rows = self._long(table, counts) if table.is_long else self._wide(table, counts)
                for kind, key, reading in rows:
                    read.setdefault((kind, key), []).append(replace(reading, table=source.number))
            if not counts.rows:
                raise LabelsRefused(f"{source.title}: it holds column names and no row; export it again")
            if not counts.known and counts.first_unreadable:
                raise LabelsRefused(
                    f"{source.title}, line {counts.first_unreadable}: none of its {counts.rows} rows has a key and a "
                    "label that can be understood; docs/HOSPITAL.md has the words"
                )
        except Exception as error:
            return _failed(source, error)
        for (kind, key), readings in read.items():
            target = self._readings[kind]
            counts.duplicates += len(readings) - (key not in target)
            for reading in readings:
                target.add(key, reading)
        return replace(
            file,
            rows=counts.rows,
            duplicates=counts.duplicates,
            unreadable_cells=counts.unreadable_cells,
            unreadable_rows=counts.unreadable_rows,
            first_unreadable=counts.first_unreadable,
        )

    def _long(self, table: LabelTable, counts: _Counts) -> Iterator[tuple[str, str, Reading]]:
        id_place, label_place = table.columns[ID], table.columns[LABEL]
        places = {label: place for place, label in enumerate(LABELS)}
        images: dict[str, bytearray] = {}
        for line, row in table.rows():
            image, _, name = plain_text(row[id_place]).rpartition("_")
            name, cell = name.lower(), cell_value(row[label_place])
            counts.rows += 1
            cells = images.get(image)
            # Of the six rows of an image only the first one's UID is looked at.
            if name not in places or cell is None or (cells is None and not _checked_uid(image, table.title, line)):
                counts.miss(line, cells=1)
                continue
            # A bytearray of its own saves a new `bytes` for each of millions of rows.
            cells = images.setdefault(image, bytearray(_UNKNOWN_CELLS))
            label = places[name]
            if cells[label] == UNKNOWN:
                cells[label] = cell
            else:
                counts.duplicates += 1
                cells[label] = merge(bytes([cells[label]]), bytes([cell]))[0]
        for image, cells in images.items():
            uid = self._sop_of(image)
            if not uid:
                counts.miss(0, rows=1)
                continue
            counts.known += any(cell != UNKNOWN for cell in cells)
            yield SLICE, self._secret.slice(uid), Reading("", "", 0, 0, bytes(cells))

    def _sop_of(self, image: str) -> str:
        if image in self._ids:
            return self._ids[image]
        # ID_1.2.840... stands for the UID; RSNA's own ID_1a2b3c is the very UID of its files, prefix and all.
        bare = image.removeprefix("ID_")
        return bare if "." in bare else image

    def _wide(self, table: LabelTable, counts: _Counts) -> Iterator[tuple[str, str, Reading]]:
        places = [table.columns.get(label) for label in LABELS]
        for line, row in table.rows():
            counts.rows += 1
            kind, key = self._key(table, line, row)
            if not key:
                counts.miss(line, rows=1)
                continue
            read = [cell_value(row[place]) if place is not None else UNKNOWN for place in places]
            if None in read:
                counts.miss(line, cells=read.count(None))
            # Settled by itself: an addendum that names a subtype also says that there is a bleed.
            cells = settle(bytes(UNKNOWN if cell is None else cell for cell in read))
            counts.known += cells != _UNKNOWN_CELLS
            yield (
                kind,
                key,
                Reading(_cell(table, row, READER), comparable_date(_cell(table, row, DATE)), 0, line, cells),
            )

    def _key(self, table: LabelTable, line: int, row: Sequence[str]) -> tuple[str, str]:
        """Finds the most exact key of a row: of the slice, the study, or the accession; "" when it has none."""
        for kind in (SLICE, STUDY):
            uid = _cell(table, row, kind)
            if uid:
                token = self._secret.slice if kind == SLICE else self._secret.study
                return kind, token(uid) if _checked_uid(uid, table.title, line) else ""
        number = _cell(table, row, ACCESSION)
        _refuse_number(number, table.title, line)
        return ACCESSION, self._secret.accession(accession_number(number)) if number else ""


def _cell(table: LabelTable, row: Sequence[str], meaning: str) -> str:
    place = table.columns.get(meaning)
    return plain_text(row[place]) if place is not None else ""


def _checked_uid(uid: str, title: str, line: int) -> bool:
    _refuse_number(uid, title, line)
    # A quote or an equals sign is a spreadsheet's, and no part of any UID.
    return is_uid(uid) and not set(uid) & set("\"'=")


def _refuse_number(key: str, title: str, line: int) -> None:
    # The whole file is refused: the spreadsheet has most likely ruined other rows in a way that still looks right.
    if "E+" in key.upper() and not is_uid(key.removeprefix("ID_")):
        raise LabelsRefused(
            f"{title}, line {line}: the UID was turned into a number by a spreadsheet and stands for many images; "
            "export the file again with that column as text"
        )
