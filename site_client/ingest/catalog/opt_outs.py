"""Patients who opted out, in the catalog: no dataset made from now on holds a study of theirs.

An entry stays in force when it disappears from the list, until a person confirms it (`hemofed-site catalog confirm
opt-outs`): a list that was cut short must not bring patients back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, delete, distinct, func, insert, or_, select
from sqlalchemy.orm import Session

from site_client.ingest.catalog.tables import OptOutRow, StackRow
from site_client.ingest.labels.opt_outs import read_opt_outs
from site_client.ingest.pseudonym import SiteSecret


@dataclass(frozen=True)
class OptOutCounts:
    """Entries in force; of them those that the lists no longer hold; the usable studies that they keep out."""

    entries: int
    missing: int
    studies: int


def refresh(session: Session, files: Sequence[Path], secret: SiteSecret, confirmed: bool = False) -> None:
    """Adds the entries of the lists, and marks those that the lists no longer hold.

    Args:
        session: Of the catalog.
        files: The lists.
        secret: Keys the pseudonyms.
        confirmed: A person has confirmed that the entries that are missing may go.

    Raises:
        OptOutsUnreadable: A list cannot be read.
    """
    listed = read_opt_outs(files, secret)
    known = set(session.scalars(select(OptOutRow.entry).distinct()))
    missing = known - set(listed)
    session.execute(delete(OptOutRow) if confirmed else delete(OptOutRow).where(OptOutRow.entry.not_in(missing)))
    session.query(OptOutRow).update({OptOutRow.is_listed: False})
    rows = [{"key": key, "entry": entry, "is_listed": True} for entry, keys in listed.items() for key in keys]
    if rows:
        session.execute(insert(OptOutRow), rows)


def has_opted_out() -> ColumnElement[bool]:
    """Makes the condition on StackRow that its patient, study or accession is on the list."""
    keys = select(OptOutRow.key)
    return or_(StackRow.patient_key.in_(keys), StackRow.study_key.in_(keys), StackRow.accession_key.in_(keys))


def counts(session: Session) -> OptOutCounts:
    """Counts entries and studies."""
    entries = select(func.count(distinct(OptOutRow.entry)))
    studies = select(func.count()).select_from(StackRow).where(StackRow.chosen, has_opted_out())
    return OptOutCounts(
        entries=session.scalar(entries) or 0,
        missing=session.scalar(entries.where(OptOutRow.is_listed.is_(False))) or 0,
        studies=session.scalar(studies) or 0,
    )
