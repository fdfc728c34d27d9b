"""Label files -> cells by pseudonym. Three shapes exist, told apart by their columns.

ID,Label                                             RSNA 2019, one row a slice and label: ID_<image>_<label>,0
SOPInstanceUID|StudyInstanceUID and label columns    one row a slice or study; an empty cell is unknown, not negative
ID,SOPInstanceUID                                    the image of an RSNA-style ID; without this file the ID is its UID

A cell that cannot be understood is unknown and counted. Two rows that contradict each other make a conflict, which
keeps the study out of training. Only keys and cells of a file are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from federation.labels import ANY, LABELS

from site_client.errors import LabelsRefused
from site_client.ingest.files.tags import is_uid
from site_client.ingest.labels.csv_file import CsvTable, read_columns, read_table
from site_client.ingest.pseudonym import SiteSecret

UNKNOWN, CONFLICT = 255, 2
Cells = bytes  # six bytes in the order of LABELS, each 0, 1, CONFLICT or UNKNOWN

_YES = frozenset((
    "1", "1.0", "1,0", "true", "yes", "y", "ja", "j", "oui", "si", "sí", "x", "+", "pos", "positive", "positiv",
    "wahr", "vrai",
))  # fmt: skip
_NO = frozenset((
    "0", "0.0", "0,0", "false", "no", "n", "nein", "non", "-", "neg", "negative", "negativ", "falsch", "faux",
))  # fmt: skip
_BLANK = frozenset(("", "na", "n/a", "nan", "none", "null", "?", "unknown", "unbekannt", ".", "-1", "-1.0"))
# Names of label columns beside LABELS themselves, as radiologists abbreviate them.
_SYNONYMS: Mapping[str, str] = {
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
    """All label files together: cells by pseudonym of the slice or study, and counts of rows and cells."""

    slices: Mapping[str, Cells] = field(default_factory=dict)
    studies: Mapping[str, Cells] = field(default_factory=dict)
    rows: int = 0
    duplicates: int = 0
    unreadable: int = 0
    refused: tuple[str, ...] = ()


def read_labels(files: Sequence[Path], secret: SiteSecret) -> Labels:
    """Reads all label files.

    Args:
        files: CSV files. A slice_map.csv beside one of them is read too.
        secret: keys the pseudonyms.

    Returns:
        The merged labels. A file that has to be refused is named in `refused` with its reason, and the others count.
    """
    tables, refused = [], []
    for path in [*files, *maps_beside(files)]:
        try:
            tables.append(read_table(path))
        except LabelsRefused as error:
            refused.append(str(error))
    # Maps before labels: an ID must not be taken for a UID because its map comes later in the list.
    ids: dict[str, str] = {}
    for table in tables:
        if _is_map(table):
            id_place, sop_place = table.columns["id"], table.columns[_SOP]
            ids |= {row[id_place].strip(): row[sop_place].strip() for _, row in table.rows}
    merged = Labels()
    for table in tables:
        if _is_map(table):
            continue
        try:
            merged = _add(merged, table, ids, secret)
        except LabelsRefused as error:
            refused.append(str(error))
    return replace(
        merged,
        # After all files: a subtype in one file and `any` in another only contradict each other together.
        slices={key: settle(cells) for key, cells in merged.slices.items()},
        studies={key: settle(cells) for key, cells in merged.studies.items()},
        refused=tuple(refused),
    )


def label_files(export: Path, labels: Sequence[Path]) -> list[Path]:
    """Lists the label files that a configuration means.

    Args:
        export: its top is searched if `labels` is empty.
        labels: files and folders. In a folder only files of a known shape count; a file that is named itself is taken,
            and later refused if it has no known shape.
    """
    files = [path for path in labels if not path.is_dir()]
    for folder in [path for path in labels if path.is_dir()] or ([] if labels else [export]):
        files += [path for path in sorted(folder.glob("*.csv")) if path.is_file() and _has_known_shape(path)]
    return files


def _has_known_shape(path: Path) -> bool:
    try:
        columns = read_columns(path)
    except LabelsRefused:
        return False
    return ("id" in columns and "label" in columns) or _SOP in columns or _STUDY in columns


def settle(cells: Cells) -> Cells:
    """Fills in the cells that follow from others.

    | known | follows |
    |---|---|
    | a subtype is present, `any` unknown | `any` is present |
    | `any` is absent, a subtype unknown | the subtype is absent |
    | a subtype is present, `any` absent | both are CONFLICT |

    Nothing else follows: `any` present does not say which subtype.
    """
    # `any` is the last label, so the subtypes are a prefix.
    subtypes, overall = cells[:ANY], cells[ANY]
    if 1 in subtypes and overall == 0:
        return bytes(CONFLICT if cell == 1 else cell for cell in subtypes) + bytes([CONFLICT])
    if 1 in subtypes and overall == UNKNOWN:
        return subtypes + b"\1"
    if overall == 0:
        return bytes(0 if cell == UNKNOWN else cell for cell in subtypes) + b"\0"
    return cells


def merge(one: Cells, other: Cells) -> Cells:
    """Merges two readings of one slice or study, cell by cell.

    The unknown gives way, agreement stays, contradiction is CONFLICT. Commutative and associative, so that the order of
    rows and files means nothing.
    """
    if one == other:
        return one
    return bytes(
        b if a == UNKNOWN else a if b == UNKNOWN or a == b else CONFLICT for a, b in zip(one, other, strict=True)
    )


def maps_beside(files: Sequence[Path]) -> list[Path]:
    """Lists the slice maps that lie beside a label file and are not listed themselves."""
    beside = {path.with_name(MAP_NAME) for path in files}
    return sorted(path for path in beside - set(files) if path.is_file())


def _is_map(table: CsvTable) -> bool:
    return "id" in table.columns and _SOP in table.columns and not any(name in table.columns for name in LABELS)


def _add(merged: Labels, table: CsvTable, ids: Mapping[str, str], secret: SiteSecret) -> Labels:
    """Adds a whole table to what is merged; when it refuses the table, `merged` stays as it is."""
    if "id" in table.columns and "label" in table.columns:
        return _add_long(merged, table, ids, secret)
    if _SOP in table.columns or _STUDY in table.columns:
        return _add_wide(merged, table, secret)
    raise LabelsRefused(
        f"{table.name}: expected columns ID,Label or StudyInstanceUID (or SOPInstanceUID) and the six labels; "
        "correct the first line"
    )


def _add_long(merged: Labels, table: CsvTable, ids: Mapping[str, str], secret: SiteSecret) -> Labels:
    id_place, label_place = table.columns["id"], table.columns["label"]
    images: dict[str, bytearray] = {}
    rows = duplicates = unreadable = 0
    for line, row in table.rows:
        image, _, name = row[id_place].strip().rpartition("_")
        name, cell = name.lower(), _cell(row[label_place])
        rows += 1
        if name not in LABELS or cell is None or not _checked_uid(image, table, line):
            unreadable += 1
            continue
        label = LABELS.index(name)
        # Six rows an image: a bytearray of its own saves a new `bytes` for each of millions of rows.
        cells = images.setdefault(image, bytearray([UNKNOWN] * len(LABELS)))
        duplicates += cells[label] != UNKNOWN
        cells[label] = merge(bytes([cells[label]]), bytes([cell]))[0]
    slices = dict(merged.slices)
    for image, read in images.items():
        key = secret.slice(_sop_of(image, ids))
        slices[key] = merge(slices[key], bytes(read)) if key in slices else bytes(read)
    return replace(
        merged,
        slices=slices,
        rows=merged.rows + rows,
        duplicates=merged.duplicates + duplicates,
        unreadable=merged.unreadable + unreadable,
    )


def _sop_of(image: str, ids: Mapping[str, str]) -> str:
    if image in ids:
        return ids[image]
    # ID_1.2.840... stands for the UID; RSNA's own ID_1a2b3c is the very UID of its files, prefix and all.
    bare = image.removeprefix("ID_")
    return bare if "." in bare else image


def _add_wide(merged: Labels, table: CsvTable, secret: SiteSecret) -> Labels:
    by_slice = _SOP in table.columns
    uid_place = table.columns[_SOP if by_slice else _STUDY]
    columns = {_SYNONYMS.get(name, name): place for name, place in table.columns.items()}
    places = [columns.get(label) for label in LABELS]
    if not any(place is not None for place in places):
        raise LabelsRefused(
            f"{table.name}: expected at least one column of {', '.join(LABELS)}; correct the first line"
        )
    cells_by_key = dict(merged.slices if by_slice else merged.studies)
    rows = duplicates = unreadable = 0
    for line, row in table.rows:
        uid = row[uid_place].strip()
        rows += 1
        if not _checked_uid(uid, table, line):
            unreadable += 1
            continue
        read = [_cell(row[place]) if place is not None else UNKNOWN for place in places]
        unreadable += read.count(None)
        cells = bytes(UNKNOWN if cell is None else cell for cell in read)
        key = secret.slice(uid) if by_slice else secret.study(uid)
        duplicates += key in cells_by_key
        cells_by_key[key] = merge(cells_by_key[key], cells) if key in cells_by_key else cells
    counted = replace(
        merged,
        rows=merged.rows + rows,
        duplicates=merged.duplicates + duplicates,
        unreadable=merged.unreadable + unreadable,
    )
    return replace(counted, slices=cells_by_key) if by_slice else replace(counted, studies=cells_by_key)


def _checked_uid(uid: str, table: CsvTable, line: int) -> bool:
    # The whole file is refused: the spreadsheet has most likely ruined other rows in a way that still looks right.
    if uid and "E+" in uid.upper() and not is_uid(uid.removeprefix("ID_")):
        raise LabelsRefused(
            f"{table.name}, line {line}: the UID was turned into a number by a spreadsheet and stands for many images; "
            "export the file again with that column as text"
        )
    return is_uid(uid)


def _cell(text: str) -> int | None:
    """Reads a cell as 0, 1 or UNKNOWN; None when it cannot be understood."""
    word = text.strip().lower()
    if word in _YES:
        return 1
    if word in _NO:
        return 0
    return UNKNOWN if word in _BLANK else None
