"""The closed lists of words in label tables: names of columns, and cells that mean yes, no or unknown.

A word that stands in no list is never guessed at: its column is not used, its cell is unknown and counted.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from federation.labels import LABELS

UNKNOWN: Final = 255

SLICE, STUDY, ACCESSION, ID, LABEL, READER, DATE = "slice", "study", "accession", "id", "label", "reader", "date"
# Columns that tell which slice or study a row is about.
KEY_COLUMNS: Final = (SLICE, STUDY, ACCESSION)

_YES: Final = frozenset((
    "1", "1.0", "1,0", "true", "yes", "y", "ja", "j", "oui", "si", "sí", "x", "+", "pos", "positive", "positiv",
    "wahr", "vrai", "present", "vorhanden", "nachgewiesen",
))  # fmt: skip
_NO: Final = frozenset((
    "0", "0.0", "0,0", "false", "no", "n", "nein", "non", "-", "neg", "negative", "negativ", "falsch", "faux",
    "absent", "keine", "kein", "nicht vorhanden", "kein nachweis",
))  # fmt: skip
_BLANK: Final = frozenset((
    "", "na", "n/a", "nan", "none", "null", "?", "unknown", "unbekannt", ".", "-1", "-1.0", "unklar", "k.a.", "k. a.",
    "#n/a", "#nv",
))  # fmt: skip

# A hematoma as it stands behind the place's name: "Subdural hematoma", "Epidurales Hämatom", "Ventrikelblutung".
_ENDINGS: Final = (
    "", "hemorrhage", "haemorrhage", "hematoma", "haematoma", "haematom", "hematom", "blutung", "bleed", "bleeding",
    "hemorragie", "hematome", "emorragia", "hemorragia",
)  # fmt: skip
_STEMS: Final[Mapping[str, tuple[str, ...]]] = {
    "epidural": ("epidural", "epidurale", "epidurales", "extradural", "extradurale"),
    "intraparenchymal": (
        "intraparenchymal", "intraparenchymatoese", "intraparenchymatoes", "intraparenchymale", "parenchym",
        "parenchymal", "intracerebral", "intrazerebral", "intrazerebrale", "intracerebrale",
    ),
    "intraventricular": (
        "intraventricular", "intraventrikulaer", "intraventrikulaere", "intraventriculaire", "ventrikel",
        "ventricular", "intraventrikular",
    ),
    "subarachnoid": ("subarachnoid", "subarachnoidal", "subarachnoidale", "sousarachnoidienne"),
    "subdural": ("subdural", "subdurale", "subdurales", "sousdural"),
    "any": ("any", "intracranial", "intrakranielle", "intrakraniell", "hirn", "intracranienne"),
}  # fmt: skip
_ABBREVIATIONS: Final[Mapping[str, str]] = {
    "edh": "epidural",
    "iph": "intraparenchymal",
    "ivh": "intraventricular",
    "sah": "subarachnoid",
    "sab": "subarachnoid",
    "sdh": "subdural",
    # As hospitals use it beside the five subtypes. "ICB" stands for either, so it is in no list.
    "ich": "any",
    "blutung": "any",
    "hemorrhage": "any",
    "haemorrhage": "any",
    "bleeding": "any",
    "intracranialhemorrhagepresent": "any",
}
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    SLICE: ("sopinstanceuid", "sopuid", "sopiuid", "instanceuid", "imageuid", "bilduid", "00080018"),
    STUDY: (
        "studyinstanceuid", "studyuid", "studyiuid", "studieninstanzuid", "studieninstanceuid", "studienuid",
        "untersuchungsuid", "0020000d",
    ),
    ACCESSION: (
        "accessionnumber", "accession", "accessionno", "accessionnr", "accessionnummer", "accno", "accnr", "acc",
        "anforderungsnummer", "auftragsnummer", "untersuchungsnummer", "zugangsnummer", "00080050",
    ),
    ID: ("id",),
    LABEL: ("label",),
    READER: ("reader", "readerid", "radiologist", "rater", "annotator", "befunder", "leser", "radiologe", "lecteur"),
    DATE: ("date", "datum", "readdate", "reportdate", "readingdate", "befunddatum", "datetime", "timestamp", "zeit"),
}  # fmt: skip


def _dictionary() -> Iterator[tuple[str, str]]:
    for label in LABELS:
        yield from ((stem + ending, label) for stem in _STEMS[label] for ending in _ENDINGS)
    yield from _ABBREVIATIONS.items()
    for meaning, names in _KEYS.items():
        yield from ((name, meaning) for name in names)


# These alone are places: only with an ending do they name a bleed.
_PLACES: Final = frozenset((
    "hirn", "parenchym", "parenchymal", "ventrikel", "ventricular", "intracranial", "intrakraniell", "intrakranielle",
    "intracranienne",
))  # fmt: skip
_COLUMNS: Final[Mapping[str, str]] = {name: meaning for name, meaning in _dictionary() if name not in _PLACES}


def column_name(text: str) -> str:
    """Reduces a column's name to a-z and 0-9: no capitals, blanks, signs and accents; ä becomes ae, ß ss."""
    lower = text.casefold().translate({ord("ä"): "ae", ord("ö"): "oe", ord("ü"): "ue", ord("æ"): "ae"})
    plain = unicodedata.normalize("NFKD", lower)
    return re.sub(r"[^a-z0-9]", "", plain)


def column_meanings(cells: Iterable[str], own: Mapping[str, str]) -> list[str | None]:
    """Finds the meaning of each column name: a label, a key, or None for any other column.

    Args:
        cells: A line of column names.
        own: The names of this site, reduced by `column_name`, to their meaning.
    """
    return [own.get(name) or _COLUMNS.get(name) for name in map(column_name, cells)]


def cell_value(text: str) -> int | None:
    """Reads a cell as 0, 1 or UNKNOWN; None when it cannot be understood."""
    word = plain_text(text).lower()
    if word in _YES:
        return 1
    if word in _NO:
        return 0
    return UNKNOWN if word in _BLANK else None


def plain_text(cell: str) -> str:
    """Takes off what spreadsheets put around a text so that it stays one: ="1.2.3" and '1.2.3."""
    text = cell.strip()
    if text[:2] == '="' and text[-1] == '"' and len(text) > 2:
        return text[2:-1].strip()
    return text[1:].strip() if text[:1] == "'" else text
