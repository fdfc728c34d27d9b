"""Several readings of one slice or study become one: by the site's rule for addenda, then by its rule for readers.

A reading is what one row states. Cells merge one by one: the unknown gives way to the known, and two known cells that
differ are a conflict unless a rule decides.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from federation.labels import ANY, LABELS

from site_client.ingest.labels.spelling import UNKNOWN

CONFLICT: Final = 2
Cells: TypeAlias = bytes  # six bytes in the order of LABELS, each 0, 1, CONFLICT or UNKNOWN

ReaderRule: TypeAlias = Literal["agree", "majority", "any"]
AddendaRule: TypeAlias = Literal["conflict", "last"]

_DATES: Final = (  # ISO 8601, DICOM's DA and DT, German; a date with slashes may be day or month first
    re.compile(r"(?P<y>\d{4})-?(?P<m>\d\d)-?(?P<d>\d\d)(?:[T ]?(?P<t>\d\d:?\d\d(?::?\d\d)?))?"),
    re.compile(r"(?P<d>\d\d?)\.(?P<m>\d\d?)\.(?P<y>\d{4})(?: (?P<t>\d\d?:\d\d(?::\d\d)?))?"),
)
_SERIAL = re.compile(r"\d{5}(\.\d+)?")  # a date as Excel counts it: days since 1900


@dataclass(frozen=True)
class LabelRules:
    """The rules by which this site reads its label tables.

    Attributes:
        readers: "agree": a label on which readers differ is a conflict; "majority": more than half of them decide;
            "any": one who sees it suffices.
        addenda: "conflict": later rows of the same reader must agree with the earlier; "last": the last one counts,
            by the date column, or by the order of rows in one table.
        columns: Names of columns beside the known ones, reduced by `spelling.column_name`, to their meaning.
    """

    readers: ReaderRule = "agree"
    addenda: AddendaRule = "conflict"
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """One row. `reader` and `when` are "" when not stated. `table`, `line`: where it stands."""

    reader: str
    when: str
    table: int
    line: int
    cells: Cells


class Readings:
    """Collects the readings of every key, and merges them by the rules."""

    def __init__(self, rules: LabelRules) -> None:
        """Starts empty."""
        self._rules = rules
        self._merged: dict[str, Cells] = {}
        self._several: dict[str, list[Reading]] = {}
        self._decides = rules.readers != "agree" or rules.addenda != "conflict"

    def __contains__(self, key: str) -> bool:
        """Whether a reading of this key was added."""
        return key in self._merged

    def add(self, key: str, reading: Reading) -> None:
        """Adds a reading."""
        known = self._merged.get(key)
        self._merged[key] = reading.cells if known is None else merge(known, reading.cells)
        # Rules need every reading apart; without them the merged cells suffice, at a third of the memory.
        if self._decides:
            self._several.setdefault(key, []).append(reading)

    def resolve(self) -> tuple[Mapping[str, Cells], int]:
        """Applies the rules.

        Returns:
            The cells by key, and the number of keys on which readings contradicted each other.
        """
        contradicted = [key for key, cells in self._merged.items() if CONFLICT in cells]
        resolved = dict(self._merged)
        for key in contradicted if self._decides else ():
            resolved[key] = _by_readers(_by_reader(self._several[key], self._rules), self._rules)
        return resolved, len(contradicted)


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


def comparable_date(text: str) -> str:
    """Reads a date, with or without a time, as digits that sort by time; "" when it cannot be read without guessing."""
    if _SERIAL.fullmatch(text):
        return text
    for pattern in _DATES:
        match = pattern.fullmatch(text)
        if match:
            time = re.sub(r"\D", "", match["t"] or "")
            return f"{match['y']}{int(match['m']):02}{int(match['d']):02}{time:0<6}"
    return ""


def _by_reader(readings: Sequence[Reading], rules: LabelRules) -> list[Cells]:
    """Merges the readings of each reader. A row without a reader is a reader of its own, unless addenda count."""
    groups: dict[object, list[Reading]] = {}
    for reading in readings:
        own = reading.reader or ("" if rules.addenda == "last" else (reading.table, reading.line))
        groups.setdefault(own, []).append(reading)
    return [_by_addenda(group) if rules.addenda == "last" else _all_merged(group) for group in groups.values()]


def _by_addenda(readings: Sequence[Reading]) -> Cells:
    dates = [reading.when for reading in readings]
    if all(dates) and len({len(date) for date in dates}) == 1:
        ordered = sorted(readings, key=lambda reading: reading.when)
        # Two rows of one moment have no order.
        steps = [[reading for reading in ordered if reading.when == when] for when in dict.fromkeys(sorted(dates))]
    elif not any(dates) and len({reading.table for reading in readings}) == 1:
        steps = [[reading] for reading in sorted(readings, key=lambda reading: reading.line)]
    else:  # neither dates nor one table give an order
        steps = [list(readings)]
    last = bytes([UNKNOWN] * len(LABELS))
    for step in steps:
        newer = _all_merged(step)
        last = bytes(old if new == UNKNOWN else new for old, new in zip(last, newer, strict=True))
    return last


def _by_readers(cells: Sequence[Cells], rules: LabelRules) -> Cells:
    return bytes(_vote([row[label] for row in cells if row[label] != UNKNOWN], rules) for label in range(len(LABELS)))


def _vote(votes: Sequence[int], rules: LabelRules) -> int:
    if len(set(votes)) <= 1:
        return votes[0] if votes else UNKNOWN
    if rules.readers == "any" and 1 in votes:
        return 1
    if rules.readers == "majority":
        return next((vote for vote in (0, 1) if 2 * votes.count(vote) > len(votes)), CONFLICT)
    return CONFLICT


def _all_merged(readings: Sequence[Reading]) -> Cells:
    merged = readings[0].cells
    for reading in readings[1:]:
        merged = merge(merged, reading.cells)
    return merged
