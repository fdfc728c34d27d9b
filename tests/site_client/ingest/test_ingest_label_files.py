"""Label files as exports really are: what cannot be read or does not fit is said, and never passes for absent."""

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.sax.saxutils import escape

import pytest
from federation.labels import LABELS
from hypothesis import given, settings
from hypothesis import strategies as st

from site_client.ingest.labels.files import LabelFileState, label_sources
from site_client.ingest.labels.labels import Labels, read_labels
from site_client.ingest.labels.readings import CONFLICT, LabelRules
from site_client.ingest.labels.spelling import UNKNOWN, column_name
from site_client.ingest.pseudonym import SiteSecret

U = UNKNOWN
UID = "1.2.826.0.1.3680043.10.1507."
NAMES = ["StudyInstanceUID", *LABELS]
WIDE = ",".join(NAMES) + "\n"


def read(folder: Path, secret: SiteSecret, data: str | bytes, name: str = "labels.csv", **rules: object) -> Labels:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return read_labels(label_sources(folder, [folder]), secret, LabelRules(**rules))  # type: ignore[arg-type]  # of a test


def workbook(
    sheets: Mapping[str, Sequence[Sequence[object]]], hidden: Sequence[str] = (), shared: bool = True, prolog: str = ""
) -> bytes:
    """A workbook as Excel writes it; texts are shared or inline, a number is a number."""
    texts: list[str] = []

    def cell(value: object, place: str) -> str:
        if isinstance(value, int | float):
            return f'<c r="{place}"><v>{value}</v></c>'
        if shared:
            texts.append(str(value))
            return f'<c r="{place}" t="s"><v>{len(texts) - 1}</v></c>'
        return f'<c r="{place}" t="inlineStr"><is><t>{escape(str(value))}</t></is></c>'

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as parts:
        listed = relations = ""
        for number, (name, rows) in enumerate(sheets.items(), 1):
            state = ' state="hidden"' if name in hidden else ""
            listed += f'<sheet name="{name}" sheetId="{number}"{state} r:id="rId{number}"/>'
            relations += f'<Relationship Id="rId{number}" Target="worksheets/sheet{number}.xml"/>'
            data = "".join(
                f'<row r="{line}">'
                + "".join(cell(v, f"{chr(65 + k)}{line}") for k, v in enumerate(row) if v != "")
                + "</row>"
                for line, row in enumerate(rows, 1)
            )
            parts.writestr(f"xl/worksheets/sheet{number}.xml", f"<worksheet><sheetData>{data}</sheetData></worksheet>")
        parts.writestr("xl/workbook.xml", f'<workbook xmlns:r="r"><sheets>{listed}</sheets></workbook>')
        parts.writestr("xl/_rels/workbook.xml.rels", f"<Relationships>{relations}</Relationships>")
        items = "".join(f"<si><t>{escape(text)}</t><rPh><t>aid</t></rPh></si>" for text in texts)
        parts.writestr("xl/sharedStrings.xml", f"{prolog}<sst>{items}</sst>")
    return file.getvalue()


def sentence_of(labels: Labels) -> str:
    """The one sentence; no study may have a label beside it."""
    assert (dict(labels.studies), dict(labels.slices), dict(labels.accessions)) == ({}, {}, {})
    (sentence,) = labels.refused
    return sentence


def test_an_unclosed_quote_is_counted_and_its_line_named(tmp_path: Path, secret: SiteSecret) -> None:
    rows = "".join(f"{UID}{k},0,1,0,0,0,1,ok\n" for k in range(2, 1000))
    text = WIDE.strip() + f',comment\n{UID}1,0,1,0,0,0,1,"5 mm\n' + rows
    sentence = sentence_of(read(tmp_path, secret, text))
    assert sentence.startswith("label file 1, line 2: a quote opens here and is not closed, so 998 lines behind it")


@pytest.mark.parametrize("rows_behind", [3, 5000], ids=["short", "longer than a cell may be"])
@pytest.mark.parametrize("closing", ["", f'{UID}7,0,1,0,0,0,1,"3 mm"\n', f'{UID}8,0,1,0,0,0,1,"\n'])
def test_no_row_hides_in_a_cell_wherever_the_next_quote_stands(
    tmp_path: Path, secret: SiteSecret, rows_behind: int, closing: str
) -> None:
    rows = "".join(f"{UID}{k},0,1,0,0,0,1,ok\n" for k in range(10, 10 + rows_behind))
    text = f'{WIDE.strip()},comment\n{UID}1,0,1,0,0,0,1,fine\n{UID}2,0,1,0,0,0,1,"5 mm\n{rows}{closing}{rows}'
    assert sentence_of(read(tmp_path, secret, text)).startswith("label file 1, line 3: a quote opens here")


def test_a_cell_of_several_lines_is_a_cell(tmp_path: Path, secret: SiteSecret) -> None:
    comment = '"bleed, left,\n5 mm, ""stable"",\n\nsee above"'
    text = f"{WIDE.strip()},comment\n{UID}1,0,1,0,0,0,1,{comment}\n{UID}2,0,0,0,0,0,0,\n"
    assert len(read(tmp_path, secret, text).studies) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (WIDE + f'{UID}1,0,0,0,0,0,"0"x\n', "line 2: text follows a closing quote"),
        (WIDE.strip() + f",text\n{UID}1,0,0,0,0,0,0,{'x' * 200_000}\n", "line 2: a cell is longer than 128 KiB"),
        (WIDE + f"{UID}1,0,0,0,0,0,0\n" + "\0" * 600, "line 3: the file holds zero bytes"),
        (WIDE, "it holds column names and no row"),
        (WIDE + "MEIER^ANNA,zz,zz,zz,zz,zz,zz\n", "line 2: none of its 1 rows has a key and a label"),
        (WIDE.replace("subdural", "SDH").replace("any", "Subdural"), "line 1: two columns both mean subdural"),
        ("Name,EDH,SAH\nMEIER,0,1\n", "expected a column StudyInstanceUID, SOPInstanceUID or AccessionNumber"),
        ("AccessionNumber;Befund\n17;sdh\n", "expected at least one column of epidural"),
        ("<html><table>", "a web page or XML"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an Excel file before .xlsx, or one with a password"),
        (b"PK\x03\x04 not a zip", "expected an .xlsx workbook"),
        (WIDE + "1.2E+30,0,0,0,0,0,0\n", "turned into a number by a spreadsheet"),
        ("accession,any\n1.2E+12,1\n", "turned into a number by a spreadsheet"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_number_and_line_and_quotes_nothing(
    tmp_path: Path, secret: SiteSecret, text: str | bytes, sentence: str
) -> None:
    refusal = sentence_of(read(tmp_path, secret, text, name="CANARY MEIER.csv"))
    assert refusal.startswith("label file 1")
    assert sentence in refusal
    assert not any(canary in refusal for canary in ("CANARY", "MEIER", "1507", "E+"))


@pytest.mark.parametrize(
    "data",
    [
        "Studieninstanz-UID;Epidurales Hämatom;Hirnblutung\n1.2.3;ja;vorhanden\n",
        "sep=;\nStudyInstanceUID;EDH;ICH\n1.2.3;1;1\n",
        "Auswertung Neuroradiologie, \"Q3\n\nStand: 1.2.2024;;\nStudyInstanceUID;EDH;ICH\n1.2.3;1;1\n",
        "comment,comment,StudyInstanceUID,any,epidural\na,b,1.2.3,1,1\n",
        "StudyInstanceUID;EDH;any;Datum;Datum\n1.2.3;1;1;2024-01-01;2024-01-02\n",
        '"Study\nInstance UID",EDH,any\n"=""1.2.3""",1,1\n',
        "StudyInstanceUID\tEDH\tany\n=\"1.2.3\"\t1\t1\n",
        "StudyInstanceUID\tEDH\tany\n'1.2.3\t1\t1\n",
        "StudyInstanceUID,EDH,any\r1.2.3,1,1\r",
        *("StudyInstanceUID,EDH,any\n1.2.3,1,1\n".encode(code) for code in ("utf-16", "utf-16-le", "utf-16-be")),
        workbook({"Labels": [["Neuroradiologie"], ["StudyInstanceUID", "EDH", "any"], ["1.2.3", 1, 1]]}),
        workbook({"L": [["", "Study UID", "EDH", "Blutung"], ["", "1.2.3", "ja", "x"]]}, shared=False),
        workbook({"O": [["StudyUID", "any"], ["1.2.9", 0]], "N": [["StudyUID", "EDH"], ["1.2.3", 1]]}, hidden=["O"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["labels.csv", "LABELS.CSV", "labels.tsv", "labels.xlsx"])
def test_every_spelling_of_a_table_reads_the_same(
    tmp_path: Path, secret: SiteSecret, data: str | bytes, name: str
) -> None:
    labels = read(tmp_path, secret, data, name)
    assert labels.refused == ()
    assert labels.studies == {secret.study("1.2.3"): bytes((1, U, U, U, U, 1))}


def test_every_file_of_a_label_folder_has_a_number_and_an_outcome(tmp_path: Path, secret: SiteSecret) -> None:
    (tmp_path / "a.csv").write_text(WIDE + "1.2.3,0,0,0,0,0,0\n")
    (tmp_path / "b.pdf").write_text("a letter")
    (tmp_path / "c.csv").write_text("item,price\n1,2\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "slice_map.csv").write_text("ID,SOPInstanceUID\nID_a,1.2.3.4\n")
    (tmp_path / "~$a.xlsx").write_text("lock")
    os.mkfifo(tmp_path / "f.csv")
    (tmp_path / "g.csv").symlink_to(tmp_path / "gone")
    labels = read_labels(label_sources(tmp_path, [tmp_path]), secret)
    assert [(file.number, file.state.name) for file in labels.files] == [
        (1, "READ"),
        (2, "NO_TABLE"),
        (3, "OTHER_TABLE"),
        (4, "NO_TABLE"),
        (5, "REFUSED"),
        (6, "UNREADABLE"),
        (7, "MAP"),
        (8, "NO_TABLE"),
    ]
    assert len(labels.refused) == 2
    assert len(labels.studies) == 1


def test_a_folder_that_cannot_be_listed_is_a_fault_and_not_empty(tmp_path: Path, secret: SiteSecret) -> None:
    (tmp_path / "file").write_text("x")
    labels = read_labels(label_sources(tmp_path, [tmp_path / "file" / "labels"]), secret)
    assert [file.state for file in labels.files] == [LabelFileState.UNREADABLE]
    assert "cannot be read" in labels.refused[0]


def test_a_workbook_that_unpacks_without_end_is_refused(
    tmp_path: Path, secret: SiteSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("site_client.ingest.labels.xlsx_table.UNPACKED_BYTES_MAX", 100_000)
    rows: list[Sequence[object]] = [["StudyInstanceUID", "any"], *([f"1.2.{k}", 0] for k in range(3000))]
    assert "expected an .xlsx workbook" in sentence_of(read(tmp_path, secret, workbook({"L": rows}), "l.xlsx"))


def test_a_workbook_with_a_document_type_is_refused(tmp_path: Path, secret: SiteSecret) -> None:
    entity = '<!DOCTYPE x [<!ENTITY a "b">]>'
    data = workbook({"L": [["StudyInstanceUID", "any"], ["1.2.3", 0]]}, prolog=entity)
    assert "expected an .xlsx workbook" in sentence_of(read(tmp_path, secret, data, "l.xlsx"))


def test_accession_numbers_match_without_the_zeros_that_a_spreadsheet_drops(tmp_path: Path, secret: SiteSecret) -> None:
    labels = read(tmp_path, secret, "Accession Number;any\n00123;1\n A 7 ;0\n;1\n")
    assert labels.accessions == {
        secret.accession("123"): bytes((U, U, U, U, U, 1)),
        secret.accession("A7"): bytes(6),
    }
    assert labels.files[0].unreadable_rows == 1


def test_a_row_without_a_slice_is_a_row_of_its_study(tmp_path: Path, secret: SiteSecret) -> None:
    labels = read(tmp_path, secret, "StudyUID,SOPInstanceUID,any\n1.2,1.2.3,1\n1.2,,1\n1.2,1.2.4,0\n")
    assert set(labels.slices) == {secret.slice("1.2.3"), secret.slice("1.2.4")}
    assert set(labels.studies) == {secret.study("1.2")}


READERS = "StudyUID,Reader,Datum,subdural,any\n"


@pytest.mark.parametrize(
    ("rules", "rows", "subdural"),
    [
        ({}, "1.2,A,,1,1\n1.2,B,,0,0\n", CONFLICT),
        ({"readers": "any"}, "1.2,A,,0,0\n1.2,B,,1,1\n", 1),
        ({"readers": "majority"}, "1.2,A,,0,0\n1.2,B,,1,1\n1.2,C,,1,1\n", 1),
        ({"readers": "majority"}, "1.2,A,,0,0\n1.2,B,,1,1\n", CONFLICT),
        ({"readers": "majority"}, "1.2,A,,0,0\n1.2,A,,0,0\n1.2,B,,1,1\n1.2,C,,1,1\n", 1),
        ({"addenda": "last"}, "1.2,A,2024-01-02,1,1\n1.2,A,01.01.2024,0,0\n", 1),
        ({"addenda": "last"}, "1.2,A,,0,0\n1.2,A,,1,\n", 1),
        ({"addenda": "last"}, "1.2,A,,1,1\n1.2,A,,,\n", 1),
        ({"addenda": "last"}, "1.2,A,03/04/2024,1,1\n1.2,A,2024-01-01,0,0\n", CONFLICT),
        ({"addenda": "last"}, "1.2,A,2024-01-01,1,1\n1.2,A,2024-01-01,0,0\n", CONFLICT),
        ({"addenda": "last"}, "1.2,A,,0,0\n1.2,A,,1,1\n1.2,B,,0,0\n", CONFLICT),
        ({"addenda": "last", "readers": "any"}, "1.2,A,,1,1\n1.2,A,,0,0\n1.2,B,,0,0\n", 0),
    ],
)
def test_readers_and_addenda_follow_the_rule_of_the_site(
    tmp_path: Path, secret: SiteSecret, rules: dict[str, str], rows: str, subdural: int
) -> None:
    labels = read(tmp_path, secret, READERS + rows, **rules)
    assert labels.studies[secret.study("1.2")][4] == subdural
    assert labels.contradicted == (1 if "0,0" in rows or "1,\n" in rows else 0)


def test_addenda_in_two_tables_without_dates_have_no_order(tmp_path: Path, secret: SiteSecret) -> None:
    (tmp_path / "a.csv").write_text("StudyUID,any\n1.2,0\n")
    labels = read(tmp_path, secret, "StudyUID,any\n1.2,1\n", "b.csv", addenda="last")
    assert labels.studies[secret.study("1.2")][5] == CONFLICT


def test_a_row_whose_cells_have_moved_states_nothing(tmp_path: Path, secret: SiteSecret) -> None:
    rows = "1.2,a;b,1,0\n1.3,left, 5 mm,0,1\n1.4,c,0,1,\n"
    labels = read(tmp_path, secret, "StudyUID,comment,any,sdh\n" + rows)
    assert set(labels.studies) == {secret.study("1.2"), secret.study("1.4")}
    assert (labels.files[0].unreadable_rows, labels.files[0].first_unreadable) == (1, 3)


def test_a_site_names_its_own_columns(tmp_path: Path, secret: SiteSecret) -> None:
    columns = {column_name("Unters.-Nr."): "accession", column_name("ICB?"): "intraparenchymal"}
    labels = read(tmp_path, secret, "Unters.-Nr.;ICB?\n7;1\n", columns=columns)
    assert labels.accessions == {secret.accession("7"): bytes((U, 1, U, U, U, 1))}


def test_one_id_of_two_images_stands_for_neither(tmp_path: Path, secret: SiteSecret) -> None:
    (tmp_path / "slice_map.csv").write_text("ID,SOPInstanceUID\nID_a,1.2.1\nID_a,1.2.2\nID_b,1.2.3\n")
    labels = read(tmp_path, secret, "ID,Label\nID_a_any,1\nID_b_any,1\n", "slices.csv")
    assert set(labels.slices) == {secret.slice("1.2.3")}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400))
def test_no_bytes_of_a_table_raise_anything_but_a_refusal(noise: bytes, place: int) -> None:
    secret = SiteSecret(bytes(range(32)))
    text = (WIDE + "1.2.3,0,0,0,0,0,0\n" * 8).encode()
    book = workbook({"L": [NAMES, ["1.2.3", 0, 0, 0, 0, 0, 0]]})
    for whole in (text, book):
        _read_bytes(whole[:place] + noise + whole[place:], secret)
        _read_bytes(whole[:place] + noise, secret)


def _read_bytes(data: bytes, secret: SiteSecret) -> None:
    with TemporaryDirectory() as folder:
        assert read(Path(folder), secret, data).files[0].state in LabelFileState
