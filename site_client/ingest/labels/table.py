"""A label table of any file format: its columns by meaning, and its rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from federation.labels import LABELS

from site_client.errors import LabelsRefused
from site_client.ingest.labels.spelling import DATE, ID, KEY_COLUMNS, LABEL, READER, SLICE, column_meanings

HEADER_LINES: Final = 20  # a title, a date and a blank line stand above the column names, and seldom more

Row = tuple[int, Sequence[str]]  # the number of its first line in the file, and its cells


@dataclass(frozen=True)
class LabelTable:
    """One table. `title` names it in messages, by number: a file's name may be a person's.

    `columns`: meaning to the place in a row. `rows`: starts again at the first row below the column names.
    """

    title: str
    columns: Mapping[str, int]
    rows: Callable[[], Iterator[Row]]

    @property
    def is_long(self) -> bool:
        """Whether it has one row a slice and label, as in the RSNA challenge."""
        return ID in self.columns and LABEL in self.columns

    @property
    def is_map(self) -> bool:
        """Whether it names the image of an ID and holds no label."""
        return not self.is_long and ID in self.columns and SLICE in self.columns and not _labels(self.columns)


def header_columns(cells: Sequence[str], own: Mapping[str, str]) -> Mapping[str, int] | None:
    """Finds the columns of a line that is a header of labels; None when it is none.

    Args:
        cells: The line.
        own: This site's names of columns.

    Raises:
        LabelsRefused: Two columns mean the same, and either would be a guess. The message names no title.
    """
    meanings = column_meanings(cells, own)
    columns = {meaning: place for place, meaning in enumerate(meanings) if meaning is not None}
    is_header = (
        (ID in columns and (LABEL in columns or SLICE in columns)) or (_keys(columns) and _labels(columns))
    )  # fmt: skip
    if not is_header:
        return None
    doubled = sorted({meaning for meaning in meanings if meaning is not None and meanings.count(meaning) > 1})
    # A date of the study beside one of the report is common, and no row needs either.
    for meaning in {READER, DATE} & set(doubled):
        del columns[meaning]
    doubled = [meaning for meaning in doubled if meaning not in (READER, DATE)]
    if doubled:
        raise LabelsRefused(f"two columns both mean {', '.join(doubled)}; keep one of them")
    return columns


def lacking(cells: Sequence[str], own: Mapping[str, str]) -> str:
    """Says what a line of names lacks that has only half of what a header needs; "" when it has nothing of it."""
    columns = {meaning for meaning in column_meanings(cells, own) if meaning is not None}
    if _labels(columns):
        return "expected a column StudyInstanceUID, SOPInstanceUID or AccessionNumber beside the labels, got none"
    if _keys(columns):
        return f"expected at least one column of {', '.join(LABELS)}, got none"
    return ""


def _keys(columns: Mapping[str, int] | set[str]) -> list[str]:
    return [key for key in KEY_COLUMNS if key in columns]


def _labels(columns: Mapping[str, int] | set[str]) -> list[str]:
    return [label for label in LABELS if label in columns]
