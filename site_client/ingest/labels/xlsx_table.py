"""Tables of an Excel workbook (.xlsx, ECMA-376 part 1, section 18), read by zipfile and expat within limits.

Only texts and numbers of visible sheets are read: no formula, no link, no macro. A workbook is a ZIP of XML, so the
limits hold for what it unpacks to, and a document type, through which XML can grow without end, is refused.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO
from xml.parsers import expat

from site_client.errors import LabelsRefused
from site_client.ingest.labels.table import HEADER_LINES, LabelTable, Row, header_columns, lacking

UNPACKED_BYTES_MAX = 256 * 2**20  # of one part of a workbook; a million rows of labels need a tenth
_COLUMNS_MAX = 1024
_CHUNK_BYTES = 65536


def read_workbook(file: IO[bytes], title: str, own: Mapping[str, str]) -> list[LabelTable]:
    """Finds the visible sheets that hold labels.

    Args:
        file: The workbook. It must stay open while rows are read.
        title: Names the workbook in messages.
        own: This site's names of columns.

    Raises:
        LabelsRefused: It is no workbook, is beyond the limits, or a sheet has labels or keys and not both.
    """
    try:
        workbook = zipfile.ZipFile(file)
        sheets = _visible_sheets(workbook)
        texts = _shared_texts(workbook)
        tables = [_sheet(workbook, part, texts, f"{title}, sheet {number}", own) for number, part in sheets]
    except LabelsRefused:
        raise
    except Exception:  # zipfile, zlib and expat raise many kinds, with names in them
        raise LabelsRefused(
            f"{title}: expected an .xlsx workbook, got another or a damaged file; save it as CSV"
        ) from None
    return [table for table in tables if table is not None]


def _sheet(
    workbook: zipfile.ZipFile, part: str, texts: list[str], title: str, own: Mapping[str, str]
) -> LabelTable | None:
    half = ""
    for count, (number, cells) in enumerate(_cells(workbook, part, texts)):
        if count == HEADER_LINES:
            break
        try:
            columns = header_columns(cells, own)
        except LabelsRefused as error:
            raise LabelsRefused(f"{title}, line {number}: {error}") from None
        if columns is not None:
            return LabelTable(title, columns, _rows(workbook, part, texts, number, max(columns.values()) + 1))
        half = half or lacking(cells, own)
    if half:
        raise LabelsRefused(f"{title}: {half}; correct the line of column names")
    return None


def _rows(
    workbook: zipfile.ZipFile, part: str, texts: list[str], header: int, width: int
) -> Callable[[], Iterator[Row]]:
    def rows() -> Iterator[Row]:
        for number, cells in _cells(workbook, part, texts):
            if number > header and any(cell.strip() for cell in cells):
                yield number, cells if len(cells) >= width else cells + [""] * (width - len(cells))

    return rows


def _visible_sheets(workbook: zipfile.ZipFile) -> list[tuple[int, str]]:
    """Lists number and part of each sheet that a person sees: a hidden one is often an older version."""
    sheets: list[tuple[int, str]] = []
    targets: dict[str, str] = {}

    def relation(name: str, attributes: Mapping[str, str]) -> None:
        if name == "Relationship":
            targets[attributes["Id"]] = attributes["Target"]

    def sheet(name: str, attributes: Mapping[str, str]) -> None:
        if name == "sheet":
            key = next(value for name, value in attributes.items() if name.rpartition(":")[2] == "id")
            sheets.append((len(sheets) + 1, targets[key] if attributes.get("state", "visible") == "visible" else ""))

    for _ in _parsed(workbook, "xl/_rels/workbook.xml.rels", relation):
        pass
    for _ in _parsed(workbook, "xl/workbook.xml", sheet):
        pass
    return [(number, _part(target)) for number, target in sheets if target]


def _part(target: str) -> str:
    # Relative to xl/, unless it begins with a slash (ECMA-376 part 2).
    return target.lstrip("/") if target.startswith("/") else str(PurePosixPath("xl") / target)


def _shared_texts(workbook: zipfile.ZipFile) -> list[str]:
    texts: list[str] = []
    if "xl/sharedStrings.xml" not in workbook.namelist():
        return texts
    pieces: list[str] = []
    state = {"text": False, "phonetic": False}

    def start(name: str, attributes: Mapping[str, str]) -> None:
        # A reading aid in small print above a text is none of its text.
        state["phonetic"] = state["phonetic"] or name == "rPh"
        state["text"] = name == "t" and not state["phonetic"]

    def end(name: str) -> None:
        state["phonetic"] = state["phonetic"] and name != "rPh"
        state["text"] = False
        if name == "si":
            texts.append("".join(pieces))
            pieces.clear()

    def data(text: str) -> None:
        if state["text"]:
            pieces.append(text)

    for _ in _parsed(workbook, "xl/sharedStrings.xml", start, end, data):
        pass
    return texts


class _SheetReader:
    """Collects the rows of a sheet from the parser's calls."""

    def __init__(self, texts: list[str]) -> None:
        self.complete: list[tuple[int, list[str]]] = []
        self._texts = texts
        self._number = 0
        self._row: list[str] = []
        self._kind, self._place = "", 0
        self._value: list[str] | None = None

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if name == "row":
            self._number = int(attributes.get("r", self._number + 1))
            self._row = []
        elif name == "c":
            letters = re.match(r"[A-Z]{1,3}", attributes.get("r", ""))
            self._place = _place(letters[0]) if letters else len(self._row)
            self._kind = attributes.get("t", "n")
            if self._place < _COLUMNS_MAX:
                self._row += [""] * (self._place + 1 - len(self._row))
        elif name in ("v", "t"):
            self._value = []

    def end(self, name: str) -> None:
        if name == "row":
            self.complete.append((self._number, self._row))
        elif name in ("v", "t") and self._value is not None:
            text = "".join(self._value)
            if self._place < _COLUMNS_MAX:
                # An inline text may have several runs.
                self._row[self._place] += self._texts[int(text)] if self._kind == "s" else text
            self._value = None

    def data(self, text: str) -> None:
        if self._value is not None:
            self._value.append(text)


def _cells(workbook: zipfile.ZipFile, part: str, texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    reader = _SheetReader(texts)
    for _ in _parsed(workbook, part, reader.start, reader.end, reader.data):
        yield from reader.complete
        reader.complete.clear()


def _place(letters: str) -> int:
    place = 0
    for letter in letters:
        place = 26 * place + ord(letter) - 64
    return place - 1


def _parsed(
    workbook: zipfile.ZipFile,
    part: str,
    start: Callable[[str, Mapping[str, str]], None],
    end: Callable[[str], None] = lambda name: None,
    data: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Parses a part in chunks, and yields after each: a sheet never lies unpacked in memory as a whole."""

    def refuse(*_: object) -> None:
        raise ValueError("a document type")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: start(name.rpartition(":")[2], attributes)
    parser.EndElementHandler = lambda name: end(name.rpartition(":")[2])
    parser.CharacterDataHandler = data
    unpacked_bytes = 0
    with workbook.open(part) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            unpacked_bytes += len(chunk)
            if unpacked_bytes > UNPACKED_BYTES_MAX:
                raise ValueError("too large")
            parser.Parse(chunk, False)
            yield
        parser.Parse(b"", True)
        yield
