"""Rows of label tables -> readings by pseudonym of the slice, study or accession. A UID ends here."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from federation.labels import LABELS

from site_client.errors import LabelsRefused
from site_client.ingest.files.tags import is_uid
from site_client.ingest.files.wording import accession_number
from site_client.ingest.labels.readings import Cells, LabelRules, Reading, Readings, comparable_date, merge, settle
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
from site_client.ingest.pseudonym import SiteSecret

_UNKNOWN_CELLS: Final = bytes([UNKNOWN] * len(LABELS))


@dataclass
class RowCounts:
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


class RowReader:
    """Reads the tables of all files into one set of readings."""

    def __init__(self, secret: SiteSecret, rules: LabelRules, ids: Mapping[str, str]) -> None:
        """Starts empty. `ids`: the SOP instance UID of an image by its ID, "" where two images have one ID."""
        self._secret, self._ids = secret, ids
        self._readings = {kind: Readings(rules) for kind in (SLICE, STUDY, ACCESSION)}

    def merged(self) -> tuple[dict[str, dict[str, Cells]], int]:
        """Merges the readings of all files.

        Returns:
            The settled cells by kind of key and by key, and the number of keys on which rows contradicted each other.
        """
        resolved = {kind: readings.resolve() for kind, readings in self._readings.items()}
        # After all files: a subtype in one file and `any` in another only contradict each other together.
        cells = {kind: {key: settle(row) for key, row in merged.items()} for kind, (merged, _) in resolved.items()}
        return cells, sum(count for _, count in resolved.values())

    def read(self, number: int, title: str, tables: Sequence[LabelTable]) -> RowCounts:
        """Reads all tables of a file, or none: half a file could make a study negative.

        Args:
            number: Of the file.
            title: Of the file, for messages.
            tables: Of the file; none is a map.

        Raises:
            LabelsRefused: A table is damaged, or has no row that can be understood.
        """
        counts, read = RowCounts(), dict[tuple[str, str], list[Reading]]()
        for table in tables:
            rows = self._long(table, counts) if table.is_long else self._wide(table, counts)
            for kind, key, reading in rows:
                read.setdefault((kind, key), []).append(replace(reading, table=number))
        if not counts.rows:
            raise LabelsRefused(f"{title}: it holds column names and no row; export it again")
        if not counts.known and counts.first_unreadable:
            raise LabelsRefused(
                f"{title}, line {counts.first_unreadable}: none of its {counts.rows} rows has a key and a label that "
                "can be understood; docs/HOSPITAL.md has the words"
            )
        for (kind, key), readings in read.items():
            target = self._readings[kind]
            counts.duplicates += len(readings) - (key not in target)
            for reading in readings:
                target.add(key, reading)
        return counts

    def _long(self, table: LabelTable, counts: RowCounts) -> Iterator[tuple[str, str, Reading]]:
        id_place, label_place = table.columns[ID], table.columns[LABEL]
        places = {label: place for place, label in enumerate(LABELS)}
        images: dict[str, bytearray] = {}
        for line, row in table.rows():
            image, _, name = plain_text(row[id_place]).rpartition("_")
            name, cell = name.lower(), cell_value(row[label_place])
            counts.rows += 1
            cells = images.get(image)
            if cell is None:
                _refuse_code(row[label_place], table.title, line)
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

    def _wide(self, table: LabelTable, counts: RowCounts) -> Iterator[tuple[str, str, Reading]]:
        places = [table.columns.get(label) for label in LABELS]
        for line, row in table.rows():
            counts.rows += 1
            kind, key = self._key(table, line, row)
            if not key:
                counts.miss(line, rows=1)
                continue
            read = [cell_value(row[place]) if place is not None else UNKNOWN for place in places]
            for place, value in zip(places, read, strict=True):
                if place is not None and value is None:
                    _refuse_code(row[place], table.title, line)
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


def read_map(table: LabelTable, ids: dict[str, str]) -> RowCounts:
    """Adds the SOP instance UIDs of a map to `ids`, or none of them when it raises.

    Raises:
        LabelsRefused: The table is damaged.
    """
    sop_uids: dict[str, str] = {}
    counts = RowCounts()
    for line, row in table.rows():
        key, uid = plain_text(row[table.columns[ID]]), plain_text(row[table.columns[SLICE]])
        counts.rows += 1
        if not key or not _checked_uid(uid, table.title, line):
            counts.miss(line, rows=1)
            continue
        # One ID for two images stands for neither.
        sop_uids[key] = uid if sop_uids.get(key, uid) == uid else ""
    for key, uid in sop_uids.items():
        ids[key] = uid if ids.get(key, uid) == uid else ""
    return counts


def _cell(table: LabelTable, row: Sequence[str], meaning: str) -> str:
    place = table.columns.get(meaning)
    return plain_text(row[place]) if place is not None else ""


def _checked_uid(uid: str, title: str, line: int) -> bool:
    _refuse_number(uid, title, line)
    # A quote or an equals sign is a spreadsheet's, and no part of any UID.
    return is_uid(uid) and not set(uid) & set("\"'=")


def _refuse_code(cell: str, title: str, line: int) -> None:
    # Of a column of codes, volumes or probabilities, not even its 1 and 0 mean yes and no.
    if re.fullmatch(r"[-+]?\d+([.,]\d+)?%?", plain_text(cell)):
        raise LabelsRefused(
            f"{title}, line {line}: a label is a number other than 1 and 0, so 1 may not mean yes in this table; write "
            "yes and no"
        )


def _refuse_number(key: str, title: str, line: int) -> None:
    # The whole file is refused: the spreadsheet has most likely ruined other rows in a way that still looks right.
    if "E+" in key.upper() and not is_uid(key.removeprefix("ID_")):
        raise LabelsRefused(
            f"{title}, line {line}: the UID was turned into a number by a spreadsheet and stands for many images; "
            "export the file again with that column as text"
        )
