"""Labels in the catalog: read again when a label file changed, and counted for the report."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from site_client.ingest.catalog.tables import FactRow, LabelRow
from site_client.ingest.labels.labels import maps_beside, read_labels
from site_client.ingest.pseudonym import SiteSecret

_BATCH = 10_000


@dataclass(frozen=True)
class LabelFileCounts:
    """Counts over all label files. `refused`: one sentence a file that had to be refused."""

    rows: int = 0
    duplicates: int = 0
    unreadable: int = 0
    refused: tuple[str, ...] = ()


def refresh(session: Session, files: Sequence[Path], secret: SiteSecret) -> None:
    """Replaces all label rows if a label file appeared, disappeared or changed; else does nothing.

    It replaces all at once, because the rows of several files merge: those of one file cannot be taken out again.
    """
    stats = [(str(path), path.stat()) for path in [*files, *maps_beside(files)] if path.is_file()]
    known = sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
    # A keyed hash: the path of a label file may hold a person's name.
    stamp = secret.token("labels", repr(known)).encode()
    fact = session.get(FactRow, "label_stamp")
    if fact is not None and fact.value == stamp:
        return
    labels = read_labels(files, secret)
    session.execute(delete(LabelRow))
    rows = [{"key": key, "cells": cells} for key, cells in (*labels.slices.items(), *labels.studies.items())]
    for start in range(0, len(rows), _BATCH):
        session.execute(insert(LabelRow), rows[start : start + _BATCH])
    counts = LabelFileCounts(labels.rows, labels.duplicates, labels.unreadable, labels.refused)
    session.merge(FactRow(name="label_stamp", value=stamp))
    session.merge(FactRow(name="label_counts", value=json.dumps(asdict(counts)).encode()))


def counts(session: Session) -> LabelFileCounts:
    """Reads the counts of the last refresh; zeros before the first."""
    fact = session.get(FactRow, "label_counts")
    if fact is None:
        return LabelFileCounts()
    table = json.loads(fact.value)
    return LabelFileCounts(table["rows"], table["duplicates"], table["unreadable"], tuple(table["refused"]))
