"""Tables as hospitals export them: any of three encodings, three delimiters, odd capitals, blank lines."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from site_client.errors import LabelsRefused


@dataclass(frozen=True)
class CsvTable:
    """`columns`: name without capitals, blanks and signs -> place. `rows`: line number, cells padded to the header."""

    name: str
    columns: Mapping[str, int]
    text: str
    delimiter: str

    @property
    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """All rows below the header that are not blank. May be walked again."""
        reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.delimiter)
        width = len(self.columns)
        seen_header = False
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if seen_header:
                yield reader.line_num, row if len(row) >= width else row + [""] * (width - len(row))
            seen_header = True


def read_table(path: Path) -> CsvTable:
    """Raises LabelsRefused when the file cannot be read or is no table."""
    return _table(path, -1)


def read_columns(path: Path) -> Mapping[str, int]:
    """Only the column names, from the file's first 64 KiB. Raises like read_table."""
    return _table(path, 65536).columns


def _table(path: Path, limit_bytes: int) -> CsvTable:
    try:
        with path.open("rb") as file:
            text = _decode(file.read(limit_bytes))
    except OSError as error:
        raise LabelsRefused(f"{path.name} cannot be read ({error.strerror}); correct folders.labels") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t|", key=first.count)
    names = [_plain(name) for name in next(csv.reader([first], delimiter=delimiter), [])]
    if len(names) < 2 or "\0" in text:
        raise LabelsRefused(f"{path.name} is not a table with a first line of column names; export it as CSV")
    if len(set(names)) != len(names):
        raise LabelsRefused(f"{path.name} names a column twice; remove one")
    return CsvTable(path.name, {name: place for place, name in enumerate(names)}, text, delimiter)


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
