"""Labels in the catalog: the ones in force, and those that wait for a person's word.

The label files are read again when one of them changed. What they hold then replaces the labels in force, unless that
takes a known label away: a renamed column, an unmounted folder and a damaged table look like a label that was
withdrawn. Then the labels in force stay, training goes on with them, and a person looks (`hemofed-site catalog
confirm labels`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from site_client.errors import LabelsRefused
from site_client.ingest.catalog.tables import FactRow, LabelRow
from site_client.ingest.labels.files import LabelFile, LabelFileState, LabelSource
from site_client.ingest.labels.labels import read_labels
from site_client.ingest.labels.readings import LabelRules
from site_client.ingest.labels.spelling import UNKNOWN
from site_client.ingest.pseudonym import SiteSecret

_BATCH = 10_000
_STAMP, _COUNTS, _HELD = "label_stamp", "label_counts", "label_held"


@dataclass(frozen=True)
class LabelFileCounts:
    """The outcome of every label file, without its name, and the keys on which rows contradicted each other."""

    files: tuple[LabelFile, ...] = ()
    contradicted: int = 0

    @property
    def failed(self) -> tuple[LabelFile, ...]:
        """The files that hold labels, for all we know, and gave none."""
        return tuple(file for file in self.files if file.sentence)


@dataclass(frozen=True)
class LabelsHeld:
    """Labels that wait for a person's word, because known ones would go.

    `in_force`: slices, studies and accessions with a label now. `offered`: of them in the files as they are.
    `withdrawn`: those in force that would lose a label.
    """

    in_force: int
    offered: int
    withdrawn: int
    stamp: str


def refresh(
    session: Session,
    sources: Sequence[LabelSource],
    secret: SiteSecret,
    rules: LabelRules,
    confirmed: str = "",
) -> None:
    """Reads the label files if one appeared, disappeared or changed, and puts their labels in force.

    It replaces all labels at once: the rows of several files merge, and those of one cannot be taken out again.

    Args:
        session: Of the catalog.
        sources: The label files.
        secret: Keys the pseudonyms.
        rules: Of this site.
        confirmed: The stamp of held labels that a person has confirmed; they are put in force if the files are still
            the same.
    """
    stamp = _stamp(sources, secret, rules)
    # A file that could not be read is tried again: no time stamp tells that its rights were mended.
    unreadable = any(file.state is LabelFileState.UNREADABLE for file in counts(session).files)
    if _fact(session, _STAMP) == stamp.encode() and not unreadable and confirmed != stamp:
        return
    labels = read_labels(sources, secret, rules)
    offered = {**labels.slices, **labels.studies, **labels.accessions}
    in_force = {row.key: row.cells for row in session.execute(select(LabelRow.key, LabelRow.cells))}
    withdrawn = sum(_loses(cells, offered.get(key)) for key, cells in in_force.items())
    seal = secret.path_seal()
    files = [asdict(file) | {"path": seal.seal(file.path).hex(), "state": file.state.name} for file in labels.files]
    session.merge(FactRow(name=_STAMP, value=stamp.encode()))
    session.merge(
        FactRow(name=_COUNTS, value=json.dumps({"files": files, "contradicted": labels.contradicted}).encode())
    )
    session.execute(delete(FactRow).where(FactRow.name == _HELD))
    if withdrawn and confirmed != stamp:
        waiting = LabelsHeld(len(in_force), len(offered), withdrawn, stamp)
        session.merge(FactRow(name=_HELD, value=json.dumps(asdict(waiting)).encode()))
    elif offered != in_force:
        _replace(session, offered)


def confirm(
    session: Session, sources: Sequence[LabelSource], secret: SiteSecret, rules: LabelRules, stamp: str
) -> None:
    """Puts held labels in force that a person has seen.

    Raises:
        LabelsRefused: A label file cannot be read, so the labels may be missing for that reason alone; or the files
            changed since `stamp`.
    """
    failed = counts(session).failed
    if failed:
        raise LabelsRefused(f"{failed[0].sentence}. Correct or remove that file first; the labels in force stay")
    if _stamp(sources, secret, rules) != stamp:
        raise LabelsRefused("the label files changed meanwhile; run hemofed-site catalog and look again")
    refresh(session, sources, secret, rules, confirmed=stamp)


def held(session: Session) -> LabelsHeld | None:
    """Reads which labels wait for a person's word; None when none do."""
    fact = _fact(session, _HELD)
    return LabelsHeld(**json.loads(fact)) if fact is not None else None


def counts(session: Session, secret: SiteSecret | None = None) -> LabelFileCounts:
    """Reads the outcomes of the label files at the last refresh.

    Args:
        session: Of the catalog.
        secret: Decrypts the names of the files, for people of this site; None leaves them out.
    """
    fact = _fact(session, _COUNTS)
    if fact is None:
        return LabelFileCounts()
    table = json.loads(fact)
    if "files" not in table:  # of a version before the files were listed
        return LabelFileCounts()
    files = []
    for entry in table["files"]:
        path = secret.path_seal().decrypt(bytes.fromhex(entry["path"])) if secret is not None else ""
        files.append(LabelFile(**(entry | {"path": path, "state": LabelFileState[entry["state"]]})))
    return LabelFileCounts(tuple(files), table["contradicted"])


def _replace(session: Session, labels: Mapping[str, bytes]) -> None:
    session.execute(delete(LabelRow))
    rows = [{"key": key, "cells": cells} for key, cells in labels.items()]
    for start in range(0, len(rows), _BATCH):
        session.execute(insert(LabelRow), rows[start : start + _BATCH])


def _loses(in_force: bytes, offered: bytes | None) -> bool:
    """Tells whether a label that is known would be unknown."""
    if offered is None:
        return set(in_force) != {UNKNOWN}
    return any(new == UNKNOWN != old for old, new in zip(in_force, offered, strict=True))


def _stamp(sources: Sequence[LabelSource], secret: SiteSecret, rules: LabelRules) -> str:
    """Computes a stamp that changes with the files and with the rules they are read by.

    It is a keyed hash: the path of a label file may hold a person's name.
    """
    known = []
    for source in sources:
        try:
            stat = source.path.stat()
            # The time of the last change of rights too: mended rights make a refused file worth another look.
            figures: tuple[object, ...] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except OSError as error:
            figures = (error.errno,)
        known.append((str(source.path), source.named, source.fault, *figures))
    own = replace(rules, columns=dict(sorted(rules.columns.items())))
    return secret.token("labels", repr((known, own)))


def _fact(session: Session, name: str) -> bytes | None:
    return session.scalar(select(FactRow.value).where(FactRow.name == name))
