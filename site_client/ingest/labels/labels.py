"""Label files -> labels by pseudonym. Three shapes, told apart by their columns:

ID,Label                       RSNA 2019, one row a slice and label: ID_<image>_<label>,0
SOPInstanceUID|StudyInstanceUID, epidural, ..., any     one row a slice or study; an empty cell is unknown, not negative
ID,SOPInstanceUID              which image an RSNA-style ID stands for; without it the ID is the image's own UID

A cell that cannot be understood is unknown and counted. Two rows that contradict each other make a conflict, which
keeps the study out of training. Nothing from a file is kept but keys and cells.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from federation.labels import LABELS

from site_client.errors import LabelsRefused
from site_client.ingest.files.tags import is_uid
from site_client.ingest.labels.csv_file import CsvTable, read_columns, read_table
from site_client.ingest.pseudonym import SiteSecret

UNKNOWN, CONFLICT = 255, 2
Cells = bytes  # six bytes in the order of LABELS, each 0, 1, CONFLICT or UNKNOWN

_YES = frozenset(
    [
        "1",
        "1.0",
        "1,0",
        "true",
        "yes",
        "y",
        "ja",
        "j",
        "oui",
        "si",
        "sí",
        "x",
        "+",
        "pos",
        "positive",
        "positiv",
        "wahr",
        "vrai",
    ]
)
_NO = frozenset(
    ["0", "0.0", "0,0", "false", "no", "n", "nein", "non", "-", "neg", "negative", "negativ", "falsch", "faux"]
)
_BLANK = frozenset(("", "na", "n/a", "nan", "none", "null", "?", "unknown", "unbekannt", ".", "-1", "-1.0"))
_COLUMNS: Mapping[str, str] = {
    "edh": "epidural",
    "iph": "intraparenchymal",
    "ivh": "intraventricular",
    "sah": "subarachnoid",
    "sdh": "subdural",
    "ich": "any",
    "anyhemorrhage": "any",
}
_SOP, _STUDY = "sopinstanceuid", "studyinstanceuid"
MAP_NAME = "slice_map.csv"


@dataclass(frozen=True)
class Labels:
    """All label files together. `counts`: rows read, duplicates dropped, unreadable cells, contradictions."""

    slices: Mapping[str, Cells] = field(default_factory=dict)
    studies: Mapping[str, Cells] = field(default_factory=dict)
    rows: int = 0
    duplicates: int = 0
    unreadable: int = 0
    refused: tuple[str, ...] = ()


def read_labels(files: Sequence[Path], secret: SiteSecret) -> Labels:
    """Reads all files. One that has to be refused is named in `refused` with the reason; the rest still counts."""
    tables, refused = [], []
    for path in [*files, *maps_beside(files)]:
        try:
            tables.append(read_table(path))
        except LabelsRefused as error:
            refused.append(str(error))
    ids = {id_: sop for table in tables if _is_map(table) for id_, sop in _map_rows(table)}
    merged = Labels(refused=tuple(refused))
    for table in tables:
        if _is_map(table):
            continue
        try:
            merged = _add(merged, table, ids, secret)
        except LabelsRefused as error:
            merged = replace(merged, refused=(*merged.refused, str(error)))
    return replace(
        merged,
        slices={key: settle(cells) for key, cells in merged.slices.items()},
        studies={key: settle(cells) for key, cells in merged.studies.items()},
    )


def label_files(export: Path, labels: Sequence[Path]) -> list[Path]:
    """The label files meant by a list of files and folders; an empty list means the top of the export.

    In a folder only files with a known shape count. A file named one by one is taken, and refused if it has none.
    """
    found = [path for path in labels if not path.is_dir()]
    for folder in [path for path in labels if path.is_dir()] or ([] if labels else [export]):
        found += [path for path in sorted(folder.glob("*.csv")) if path.is_file() and _has_known_shape(path)]
    return found


def _has_known_shape(path: Path) -> bool:
    try:
        columns = read_columns(path)
    except LabelsRefused:
        return False
    return ("id" in columns and "label" in columns) or _SOP in columns or _STUDY in columns


def settle(cells: Cells) -> Cells:
    """What follows from what is known: a subtype present makes `any` 1, `any` absent makes all absent, no more.

    A subtype present while `any` is absent is a contradiction: both become CONFLICT.
    """
    subtypes, overall = cells[:5], cells[5]
    if 1 in subtypes and overall == 0:
        return bytes(CONFLICT if cell == 1 else cell for cell in subtypes) + bytes([CONFLICT])
    if 1 in subtypes and overall == UNKNOWN:
        return subtypes + b"\1"
    if overall == 0:
        return bytes(0 if cell == UNKNOWN else cell for cell in subtypes) + b"\0"
    return cells


def merge(one: Cells, other: Cells) -> Cells:
    """Cell by cell: unknown gives way, agreement stays, contradiction is CONFLICT. Commutative and associative."""
    if one == other:
        return one
    return bytes(
        b if a == UNKNOWN else a if b == UNKNOWN or a == b else CONFLICT for a, b in zip(one, other, strict=True)
    )


def maps_beside(files: Sequence[Path]) -> list[Path]:
    """The slice maps that lie next to label files."""
    beside = {path.with_name(MAP_NAME) for path in files} - set(files)
    return sorted(path for path in beside if path.is_file())


def _is_map(table: CsvTable) -> bool:
    return "id" in table.columns and _SOP in table.columns and not any(name in table.columns for name in LABELS)


def _map_rows(table: CsvTable) -> Iterable[tuple[str, str]]:
    id_at, sop_at = table.columns["id"], table.columns[_SOP]
    return ((row[id_at].strip(), row[sop_at].strip()) for _, row in table.rows)


def _add(so_far: Labels, table: CsvTable, ids: Mapping[str, str], secret: SiteSecret) -> Labels:
    if "id" in table.columns and "label" in table.columns:
        return _add_long(so_far, table, ids, secret)
    if _SOP in table.columns or _STUDY in table.columns:
        return _add_wide(so_far, table, secret)
    raise LabelsRefused(
        f"{table.name}: expected columns ID,Label or StudyInstanceUID (or SOPInstanceUID) and the six labels; "
        "correct the first line"
    )


def _add_long(so_far: Labels, table: CsvTable, ids: Mapping[str, str], secret: SiteSecret) -> Labels:
    id_at, label_at = table.columns["id"], table.columns["label"]
    images: dict[str, bytearray] = {}
    rows = duplicates = unreadable = 0
    places = {name: place for place, name in enumerate(LABELS)}
    for line, row in table.rows:
        image, _, name = row[id_at].strip().rpartition("_")
        place, cell = places.get(name.lower()), _cell(row[label_at])
        rows += 1
        if place is None or cell is None or not _checked_uid(image, table, line):
            unreadable += 1
            continue
        cells = images.setdefault(image, bytearray([UNKNOWN] * 6))
        duplicates += cells[place] != UNKNOWN
        cells[place] = merge(bytes([cells[place]]), bytes([cell]))[0]
    slices = dict(so_far.slices)
    for image, found in images.items():
        key = secret.slice(_sop_of(image, ids))
        slices[key] = merge(slices[key], bytes(found)) if key in slices else bytes(found)
    return replace(
        so_far,
        slices=slices,
        rows=so_far.rows + rows,
        duplicates=so_far.duplicates + duplicates,
        unreadable=so_far.unreadable + unreadable,
    )


def _sop_of(image: str, ids: Mapping[str, str]) -> str:
    if image in ids:
        return ids[image]
    bare = image.removeprefix("ID_")
    # ID_1.2.840... stands for the UID; RSNA's own ID_1a2b3c is what its files carry as UID, prefix and all.
    return bare if "." in bare else image


def _add_wide(so_far: Labels, table: CsvTable, secret: SiteSecret) -> Labels:
    by_slice = _SOP in table.columns
    uid_at = table.columns[_SOP if by_slice else _STUDY]
    names = {_COLUMNS.get(name, name): at for name, at in table.columns.items()}
    places = [names.get(label) for label in LABELS]
    if not any(place is not None for place in places):
        raise LabelsRefused(
            f"{table.name}: expected at least one column of {', '.join(LABELS)}; correct the first line"
        )
    found = dict(so_far.slices if by_slice else so_far.studies)
    rows = duplicates = unreadable = 0
    for line, row in table.rows:
        uid = row[uid_at].strip()
        rows += 1
        if not _checked_uid(uid, table, line):
            unreadable += 1
            continue
        read = [_cell(row[place]) if place is not None else UNKNOWN for place in places]
        unreadable += read.count(None)
        cells = bytes(UNKNOWN if cell is None else cell for cell in read)
        key = secret.slice(uid) if by_slice else secret.study(uid)
        duplicates += key in found
        found[key] = merge(found[key], cells) if key in found else cells
    counted = replace(
        so_far,
        rows=so_far.rows + rows,
        duplicates=so_far.duplicates + duplicates,
        unreadable=so_far.unreadable + unreadable,
    )
    return replace(counted, slices=found) if by_slice else replace(counted, studies=found)


def _checked_uid(uid: str, table: CsvTable, line: int) -> bool:
    if uid and "E+" in uid.upper() and not is_uid(uid.removeprefix("ID_")):
        raise LabelsRefused(
            f"{table.name}, line {line}: the UID was turned into a number by a spreadsheet and stands for many images; "
            "export the file again with that column as text"
        )
    return is_uid(uid)


def _cell(text: str) -> int | None:
    """0, 1 or UNKNOWN; None when it cannot be understood."""
    word = text.strip().lower()
    if word in _YES:
        return 1
    if word in _NO:
        return 0
    return UNKNOWN if word in _BLANK else None
