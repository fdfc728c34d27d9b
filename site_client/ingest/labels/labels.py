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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from site_client.errors import LabelsRefused
from site_client.ingest.labels.files import LabelFile, LabelFileState, LabelSource
from site_client.ingest.labels.readings import Cells, LabelRules
from site_client.ingest.labels.rows import RowCounts, RowReader, read_map
from site_client.ingest.labels.spelling import ACCESSION, SLICE, STUDY
from site_client.ingest.labels.table import LabelTable
from site_client.ingest.labels.text_table import read_text_table
from site_client.ingest.labels.xlsx_table import read_workbook
from site_client.ingest.pseudonym import SiteSecret

FILE_BYTES_MAX: Final = 2**30  # the labels of the whole RSNA challenge have 120 MB
_OLE, _ZIP = b"\xd0\xcf\x11\xe0", b"PK\x03\x04"


@dataclass(frozen=True)
class Labels:
    """All label files together.

    `slices`, `studies`, `accessions`: cells by pseudonym. `contradicted`: keys on which rows contradicted each other,
    also where a rule decided. `files`: every file that was looked at, with its outcome.
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
        sources: From `files.label_sources`.
        secret: Keys the pseudonyms.
        rules: Of this site; None: the defaults.

    Returns:
        The merged labels, and the outcome of each file. No fault of a file raises: the others still count.
    """
    rules = rules or LabelRules()
    files: dict[int, LabelFile] = {}
    maps: dict[int, list[LabelTable]] = {}
    labelled: dict[int, list[LabelTable]] = {}
    with ExitStack() as open_files:
        for source in sources:
            try:
                tables, state = _tables(source, rules, open_files)
            except Exception as error:
                files[source.number] = _failed(source, error)
            else:
                files[source.number] = LabelFile(source.number, str(source.path), state)
                maps[source.number] = [table for table in tables if table.is_map]
                labelled[source.number] = [table for table in tables if not table.is_map]
        # Maps before labels: an ID must not be taken for a UID because its map comes later in the list.
        ids: dict[str, str] = {}
        reader = RowReader(secret, rules, ids)
        for source in sources:
            try:
                for table in maps.get(source.number, ()):
                    files[source.number] = _counted(files[source.number], read_map(table, ids))
            except Exception as error:
                files[source.number] = _failed(source, error)
                labelled[source.number] = []  # the other sheets of a damaged workbook
        for source in sources:
            try:
                if labelled.get(source.number):
                    counts = reader.read(source.number, source.title, labelled[source.number])
                    files[source.number] = _counted(files[source.number], counts)
            except Exception as error:
                files[source.number] = _failed(source, error)
    cells, contradicted = reader.merged()
    return Labels(cells[SLICE], cells[STUDY], cells[ACCESSION], contradicted, tuple(files.values()))


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


def _counted(file: LabelFile, counts: RowCounts) -> LabelFile:
    return replace(
        file,
        rows=file.rows + counts.rows,
        duplicates=file.duplicates + counts.duplicates,
        unreadable_cells=file.unreadable_cells + counts.unreadable_cells,
        unreadable_rows=file.unreadable_rows + counts.unreadable_rows,
        first_unreadable=file.first_unreadable or counts.first_unreadable,
    )
