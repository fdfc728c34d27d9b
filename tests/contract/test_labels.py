"""The order of the labels is an agreement: it stands in one file, and each named label lands in its own column.

A histogram of one label that is added to a histogram of another one spoils every published figure, and no shape or
type would tell. So the order is pinned to the challenge's own, a walk over the source finds any second list of labels,
and readers and writers of label tables are held to one column a label.
"""

import ast
import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federation.labels import ANY, LABEL_WEIGHTS, LABELS, SUBTYPES

from site_client.ingest.labels.files import label_sources
from site_client.ingest.labels.labels import read_labels
from site_client.ingest.pseudonym import SiteSecret
from site_client.phantom.delivery import DeliveredStudy, slice_rows, study_rows

ROOT = Path(__file__).resolve().parents[2]
SECRET = SiteSecret(bytes(range(32)))

# The rows of one image in the sample submission of the RSNA Intracranial Hemorrhage Detection challenge (2019).
RSNA_ROWS = """\
ID_0fbf6a978_epidural,0.5
ID_0fbf6a978_intraparenchymal,0.5
ID_0fbf6a978_intraventricular,0.5
ID_0fbf6a978_subarachnoid,0.5
ID_0fbf6a978_subdural,0.5
ID_0fbf6a978_any,0.5
"""
COLUMN = {
    "epidural": 0,
    "intraparenchymal": 1,
    "intraventricular": 2,
    "subarachnoid": 3,
    "subdural": 4,
    "any": 5,
}
# How radiologists abbreviate them, in the columns of hospitals' tables.
ABBREVIATIONS = {
    "EDH": "epidural",
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SAH": "subarachnoid",
    "SDH": "subdural",
    "ICH": "any",
}


def test_the_order_of_the_labels_is_the_challenges() -> None:
    rows = [row.partition(",")[0] for row in RSNA_ROWS.splitlines()]
    assert [row.rpartition("_")[2] for row in rows] == list(LABELS)
    assert {name: place for place, name in enumerate(LABELS)} == COLUMN
    assert (*SUBTYPES, "any") == LABELS
    assert LABELS[ANY] == "any"


def test_any_counts_twice_in_the_challenges_loss() -> None:
    assert dict(zip(LABELS, LABEL_WEIGHTS, strict=True)) == {**dict.fromkeys(SUBTYPES, 1.0), "any": 2.0}


# No second list of labels.


def label_lists(source: str) -> Iterator[int]:
    """Yields the line of every list or tuple of two labels, of every text that lists them, and of every place number.

    Sets and mappings have no order, so they may name labels. Docstrings may, too.
    """
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple):
            names = {item.value for item in node.elts if isinstance(item, ast.Constant) and item.value in LABELS}
            if len(names & set(SUBTYPES)) > 1:
                yield node.lineno
        if isinstance(node, ast.Constant) and id(node) not in prose and _names_two(node.value):
            yield node.lineno
        if isinstance(node, ast.Assign) and _is_labels(node.value) and isinstance(node.targets[0], ast.Tuple):
            yield node.lineno  # epidural, ... = SUBTYPES binds names by place
        if isinstance(node, ast.Subscript) and _is_labels(node.value) and isinstance(node.slice, ast.Constant):
            yield node.lineno  # LABELS[4] names a label by place


def _names_two(value: object) -> bool:
    return isinstance(value, str) and sum(name in value for name in SUBTYPES) > 1


def _is_labels(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("LABELS", "SUBTYPES")


def test_no_other_file_lists_the_labels() -> None:
    home = ROOT / "proto" / "federation" / "labels.py"
    files = [path for room in ("aggregator", "site_client", "deploy", "proto") for path in (ROOT / room).rglob("*.py")]
    assert home in files
    lists = {path: list(label_lists(path.read_text())) for path in files if path != home}
    assert [f"{path.relative_to(ROOT)}:{line}" for path, lines in lists.items() for line in lines] == []
    assert list(label_lists(home.read_text())) != []


@pytest.mark.parametrize(
    "source",
    [
        'ORDER = ["subdural", "epidural"]',
        'ORDER = ("any", "epidural", "subdural")',
        'HEADER = "StudyInstanceUID,epidural,subdural"',
        "edh, iph, ivh, sah, sdh = SUBTYPES",
        "worst = LABELS[0]",
    ],
)
def test_a_second_list_of_labels_would_be_found(source: str) -> None:
    assert list(label_lists(source)) == [1]


@pytest.mark.parametrize(
    "source",
    [
        'PERCENT = {"epidural": 6.0, "subdural": 18.0}',
        'deep = subtype in {"intraventricular", "subarachnoid"}',
        '"""Reads the columns epidural and subdural."""',
        'lost = column == "epidural"',
        "subtypes = LABELS[:ANY]",
    ],
)
def test_names_without_an_order_are_no_list(source: str) -> None:
    assert list(label_lists(source)) == []


# Each label in its own column.


def one_hot(label: str) -> list[int]:
    """A row in which one label is positive, and `any` with it, as hospitals and readers state it."""
    row = [0] * 6
    row[COLUMN[label]] = row[COLUMN["any"]] = 1
    return row


def read(folder: Path, text: str) -> tuple[list[list[int]], list[list[int]]]:
    """Cells of all slices and of all studies that a table states, in the order of its rows."""
    (folder / "labels.csv").write_text(text)
    labels = read_labels(label_sources(folder, [folder / "labels.csv"]), SECRET)
    assert (labels.refused, labels.unreadable) == ((), 0)
    return [list(cells) for cells in labels.slices.values()], [list(cells) for cells in labels.studies.values()]


@pytest.mark.parametrize("label", COLUMN)
def test_a_row_of_the_challenges_table_lands_in_its_labels_column(tmp_path: Path, label: str) -> None:
    rows = [f"ID_0fbf6a978_{name},{int(name in (label, 'any'))}" for name in reversed(COLUMN)]
    slices, studies = read(tmp_path, "ID,Label\n" + "\n".join(rows))
    assert (slices, studies) == ([one_hot(label)], [])


@pytest.mark.parametrize("key", ["StudyInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize(("column", "label"), [*((name, name) for name in COLUMN), *ABBREVIATIONS.items()])
def test_a_hospitals_column_lands_in_its_labels_column(tmp_path: Path, key: str, column: str, label: str) -> None:
    names = [column, *(name for name in COLUMN if name != label)]
    cells = ["1", *(str(int(name == "any")) for name in COLUMN if name != label)]
    tables = read(tmp_path, f"{key},{','.join(names)}\n1.2.3,{','.join(cells)}\n")
    assert tables == ([one_hot(label)], []) if key == "SOPInstanceUID" else ([], [one_hot(label)])


@pytest.mark.parametrize("label", COLUMN)
def test_the_phantom_delivers_a_label_under_its_name_and_reads_it_back(tmp_path: Path, label: str) -> None:
    row = np.array(one_hot(label), np.int8)
    study = DeliveredStudy(0, "P", "2.25.1", "2.25.2", ("2.25.3",), ("ID_000000001",), row[None], row)
    long, wide = slice_rows([study]), study_rows([study])
    by_slice = {line.rpartition("_")[2].split(",")[0]: int(line[-1]) for line in long.splitlines()[1:]}
    (by_study,) = csv.DictReader(io.StringIO(wide))
    for name in COLUMN:
        assert by_slice[name] == int(by_study[name]) == int(name in (label, "any"))
    assert read(tmp_path, long) == ([one_hot(label)], [])
    assert read(tmp_path, wide) == ([], [one_hot(label)])
