"""CSV tables as hospitals export them: any of three encodings, four delimiters, odd capitals, blank lines."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from site_client.errors import LabelsRefused

_HEADER_BYTES = 65536  # enough for any first line


@dataclass(frozen=True)
class CsvTable:
    """A table in memory. `columns`: name, without capitals, blanks and signs, to its place in a row."""

    name: str
    columns: Mapping[str, int]
    text: str
    delimiter: str

    @property
    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Every row below the header that is not blank: line number, and cells padded to the header's length.

        Each access starts again at the first row.
        """
        reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.delimiter)
        width = len(self.columns)
        after_header = False
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if after_header:
                yield reader.line_num, row if len(row) >= width else row + [""] * (width - len(row))
            after_header = True


def read_table(path: Path) -> CsvTable:
    """Reads a whole file.

    Raises:
        LabelsRefused: the file cannot be read or is no table.
    """
    return _table(path, -1)


def read_columns(path: Path) -> Mapping[str, int]:
    """Reads only the column names; a large file that is no label table costs 64 KiB.

    Raises:
        LabelsRefused: the file cannot be read or is no table.
    """
    return _table(path, _HEADER_BYTES).columns


def _table(path: Path, limit_bytes: int) -> CsvTable:
    try:
        with path.open("rb") as file:
            text = _decode(file.read(limit_bytes))
    except OSError as error:
        raise LabelsRefused(f"{path.name} cannot be read ({error.strerror}); correct folders.labels") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    # By the header, which holds no decimal commas.
    delimiter = max(",;\t|", key=first.count)
    header = next(csv.reader([first], delimiter=delimiter), [])
    names = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
    if len(names) < 2 or "\0" in text:
        raise LabelsRefused(f"{path.name} is not a table with a first line of column names; export it as CSV")
    # Two columns of one name: taking either would be a guess.
    if len(set(names)) != len(names):
        raise LabelsRefused(f"{path.name} names a column twice; remove one")
    return CsvTable(path.name, {name: place for place, name in enumerate(names)}, text, delimiter)


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # What spreadsheets of Western Europe write; it decodes nearly any byte, so it comes last.
        return data.decode("cp1252", errors="replace")
