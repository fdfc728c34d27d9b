"""Tables as text, as hospitals export them: any of five encodings, four delimiters, titles above the column names.

A quote that is never closed makes one cell of all rows behind it, and csv then reads a short table without a word. So
the quotes are checked: a table whose rows hide in a cell is refused, with the line in which that cell begins.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence

from federation.labels import LABELS

from site_client.errors import LabelsRefused
from site_client.ingest.labels.spelling import ID, KEY_COLUMNS, LABEL, cell_value, plain_text
from site_client.ingest.labels.table import HEADER_LINES, LabelTable, Row, header_columns, lacking

_DELIMITERS = ",;\t|"
_HEADER_CHARACTERS = 65536  # enough for any line of column names
_SAMPLE_BYTES = 4096


def read_text_table(data: bytes, title: str, own: Mapping[str, str]) -> LabelTable | None:
    """Finds the column names of a table and checks that its text is sound.

    Args:
        data: The file.
        title: Names the table in messages.
        own: This site's names of columns.

    Returns:
        The table; None when no line names a label or a key.

    Raises:
        LabelsRefused: The text is damaged, or the table has labels or keys and not both.
    """
    text = decode(data)
    place = text.find("\0")
    if place >= 0:
        line = text.count("\n", 0, place) + 1
        raise LabelsRefused(f"{title}, line {line}: the file holds zero bytes and is damaged; export it again")
    half = ""
    for number, start, delimiter in _candidates(text):
        cells = _first_record(text, start, delimiter)
        try:
            columns = header_columns(cells, own)
        except LabelsRefused as error:
            raise LabelsRefused(f"{title}, line {number}: {error}") from None
        if columns is not None:
            return LabelTable(title, columns, _rows(text, start, number, delimiter, columns, title, len(cells)))
        half = half or lacking(cells, own)
    if half:
        raise LabelsRefused(f"{title}: {half}; correct the line of column names")
    return None


def _candidates(text: str) -> Iterator[tuple[int, int, str]]:
    """Yields line number, place and delimiter of every line that may hold the column names, for every delimiter."""
    lines = io.StringIO(text, newline="")
    delimiters, start = _DELIMITERS, 0
    for number in range(1, HEADER_LINES + 1):
        line = lines.readline(_HEADER_CHARACTERS)
        # Excel's own first line. It is not part of the table.
        if number == 1 and line[:4].lower() == "sep=" and len(line.rstrip("\r\n")) == 5:
            delimiters = line[4]
        elif line.strip():
            yield from ((number, start, delimiter) for delimiter in delimiters)
        start += len(line)


def _first_record(text: str, start: int, delimiter: str) -> list[str]:
    lines = io.StringIO(text[start : start + _HEADER_CHARACTERS], newline="")
    try:
        return next(csv.reader(lines, delimiter=delimiter), [])
    except csv.Error:
        return []


def _rows(
    text: str, start: int, first_line: int, delimiter: str, columns: Mapping[str, int], title: str, named: int
) -> Callable[[], Iterator[Row]]:
    """Makes the function that yields the rows. `named`: how many columns the line of names has."""
    width = max(columns.values()) + 1

    def rows() -> Iterator[Row]:
        lines = io.StringIO(text, newline="")
        lines.seek(start)
        record: list[str] = []  # its physical lines

        def tee() -> Iterator[str]:
            for line in lines:
                record.append(line)
                yield line

        reader = csv.reader(tee(), delimiter=delimiter, strict=True)
        number, after_header = first_line, False
        while True:
            record.clear()
            cells, error = None, ""
            try:
                cells = next(reader, None)
            except csv.Error as fault:
                error = str(fault)
            # Only a cell of several lines can hide a row.
            hidden = None
            if len(record) > 1:
                inner = range(1, len(record))
                hidden = next((place for place in inner if _is_row(record[place], delimiter, columns, width)), None)
            if error or hidden is not None:
                raise LabelsRefused(_fault(error, record, lines, hidden, number, title))
            if cells is None:
                return
            if after_header and any(cell.strip() for cell in cells):
                # A delimiter in a text without quotes has moved all cells behind it: they state nothing.
                moved = any(cell.strip() for cell in cells[named:])
                yield number, [""] * width if moved else cells + [""] * (width - len(cells))
            number, after_header = number + len(record), True

    return rows


def _is_row(line: str, delimiter: str, columns: Mapping[str, int], width: int) -> bool:
    """Tells whether a line inside a cell would be a row of this table by itself."""
    try:
        cells = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return False
    if len(cells) < width:
        return False
    keys = [cells[place] for meaning, place in columns.items() if meaning in (ID, *KEY_COLUMNS)]
    values = [cells[place] for meaning, place in columns.items() if meaning in (LABEL, *LABELS)]
    return any(map(plain_text, keys)) and all(cell_value(value) is not None for value in values)


def _fault(error: str, record: Sequence[str], rest: io.StringIO, hidden: int | None, first: int, title: str) -> str:
    """Says where a record is broken.

    Args:
        error: Of csv; "" when csv saw none.
        record: Its physical lines.
        rest: The lines behind it.
        hidden: The place in the record of the first line that is a row by itself.
        first: The number of the record's first line.
        title: Of the table.
    """
    never_closes = "end of data" in error or ("field limit" in error and hidden is not None)
    if never_closes or hidden is not None:
        before = len(record) if hidden is None else hidden
        opening = _opening(record[:before])
        behind = sum(bool(line.strip()) for line in [*record[opening + 1 :], *(rest if never_closes else ())])
        return (
            f"{title}, line {first + opening}: a quote opens here and is not closed, so {behind} lines behind it are "
            "one cell; close it, or take the texts out of the table"
        )
    if "field limit" in error:
        kib = csv.field_size_limit() // 1024
        return f"{title}, line {first}: a cell is longer than {kib} KiB; take the texts out of the table"
    return f"{title}, line {first + len(record) - 1}: text follows a closing quote; double the quotes inside a cell"


def _opening(lines: Sequence[str]) -> int:
    """Finds the last line that leaves a quote open, by the number of its quotes."""
    is_open, opening = False, 0
    for place, line in enumerate(lines):
        if line.count('"') % 2:
            is_open = not is_open
            opening = place if is_open else opening
    return opening


def decode(data: bytes) -> str:
    """Decodes a text of any of the five encodings. Zero bytes that are left mean damage."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    # Without a mark, UTF-16 of Western text shows by its zero bytes: in every second place, and there only.
    sample = data[:_SAMPLE_BYTES]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if odd > len(sample) // 8 and even == 0:
        return data.decode("utf-16-le", errors="replace")
    if even > len(sample) // 8 and odd == 0:
        return data.decode("utf-16-be", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # What spreadsheets of Western Europe write; it decodes nearly any byte, so it comes last.
        return data.decode("cp1252", errors="replace")
