"""The catalog: what the export holds, kept in a local SQLite file, brought up to date by a scan.

A scan opens only files whose size or time changed, judges only series with such a file (or one still arriving), and
reads label files again only when one of them changed; a scan of an unchanged export is a walk and a comparison.
The catalog is the trainer's alone: file mode 0600, pseudonyms for keys, paths sealed under the site's secret.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, delete, event, func, insert, select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from site_client.config import SiteSettings
from site_client.errors import IngestError
from site_client.ingest.catalog import dataset, scan
from site_client.ingest.catalog.report import ScanReport, SeriesSummary
from site_client.ingest.catalog.tables import SCHEMA_VERSION, Base, FactRow, FileRow, LabelRow
from site_client.ingest.labels.labels import label_files, read_labels
from site_client.ingest.pseudonym import SiteSecret, load_secret
from site_client.ingest.records import Dataset, SeriesRecord, StudyRecord
from site_client.ingest.rules import Rules

__all__ = ["Catalog", "Dataset", "ScanReport", "SeriesRecord", "StudyRecord", "open_catalog"]

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock, aware."""
    return datetime.now(UTC)


def open_catalog(settings: SiteSettings, clock: Clock = utc_now) -> "Catalog":
    """The catalog of a site.toml: catalog.sqlite in the trainer's state, keyed by pseudonym.key there (made once)."""
    folder = settings.folders.trainer
    secret = load_secret(folder / "pseudonym.key", os.urandom)
    chosen = settings.ingest
    rules = Rules(settle_s=chosen.settle_s, slices_min=chosen.slices_min, lossy=chosen.lossy)
    return Catalog.open(folder / "catalog.sqlite", secret, rules, clock)


class Catalog:
    """One site's catalog. Not for several threads at once; several processes may, one scan waits for the other."""

    def __init__(self, engine: Engine, lock: Path, secret: SiteSecret, rules: Rules, clock: Clock) -> None:
        self._engine, self._lock = engine, lock
        self._secret, self._rules, self._clock = secret, rules, clock

    @classmethod
    def open(cls, path: Path, secret: SiteSecret, rules: Rules | None = None, clock: Clock = utc_now) -> "Catalog":
        """Opens or makes the file. One that another version or another secret wrote is emptied: it is only a cache."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made here first, so that it never exists with a wider mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 60})
        event.listen(engine, "connect", _pragmas)
        try:
            _prepare(engine, secret)
        except DatabaseError:
            raise IngestError(
                "the catalog is not an SQLite file of ours; remove it, the next scan makes it anew"
            ) from None
        return cls(engine, path.with_name(path.name + ".lock"), secret, rules or Rules(), clock)

    def close(self) -> None:
        """Lets go of the file."""
        self._engine.dispose()

    def scan(self, export: Path, labels: Sequence[Path] = ()) -> ScanReport:
        """Brings the catalog up to date. `labels`: CSV files or folders of them; none: those at the export's top.

        Raises IngestError when the export cannot be listed. Whatever is wrong inside is counted, never raised.
        """
        started = self._clock()
        found = label_files(export, labels)
        with _one_at_a_time(self._lock), Session(self._engine) as session:
            fresh = scan.update_files(session, export, self._secret, self._rules, started.timestamp())
            scan.judge_touched(session, export, self._secret, self._rules, started.timestamp(), fresh)
            scan.choose(session)
            self._refresh_labels(session, found)
            session.commit()
            seconds = (self._clock() - started).total_seconds()
            return dataset.report(session, fresh, seconds)

    def last_report(self) -> ScanReport:
        """What the catalog holds now, without a scan: counts of the last one, none read anew."""
        with Session(self._engine) as session:
            seen = session.scalar(select(func.count()).select_from(FileRow)) or 0
            return dataset.report(session, scan.Fresh(seen, 0, frozenset()), 0.0)

    def dataset(self, pinned: str | None = None) -> Dataset:
        """All studies with a ready series and at least one label, none in conflict, ordered by study_key.

        What is handed out is kept, so that a round resumed after a crash gets the same by `pinned`, its hash, whatever
        arrived since. Raises DatasetGone when that one is no longer kept (the newest eight are).
        """
        with Session(self._engine) as session:
            if pinned is not None:
                return dataset.recall(session, pinned, self._secret)
            assembled = dataset.assemble(session, self._secret)
            dataset.keep(session, assembled, self._secret, self._clock().timestamp())
            session.commit()
            return assembled

    def chosen(self) -> tuple[StudyRecord, ...]:
        """All studies with a ready series, labelled or not, with every label MISSING: for prediction."""
        with Session(self._engine) as session:
            return dataset.chosen(session, self._secret)

    def series(self) -> list[SeriesSummary]:
        """Every stack as last judged, with its score sheet, ordered by study and score."""
        with Session(self._engine) as session:
            return dataset.summaries(session)

    def _refresh_labels(self, session: Session, files: Sequence[Path]) -> None:
        stamp = scan.label_stamp(files, self._secret)
        known = session.get(FactRow, "label_stamp")
        if known is not None and known.value == stamp:
            return
        labels = read_labels(files, self._secret)
        session.execute(delete(LabelRow))
        rows = [
            {"key": key, "cells": cells} for found in (labels.slices, labels.studies) for key, cells in found.items()
        ]
        for start in range(0, len(rows), 10_000):
            session.execute(insert(LabelRow), rows[start : start + 10_000])
        session.merge(FactRow(name="label_stamp", value=stamp))
        session.merge(FactRow(name="label_counts", value=dataset.label_counts(labels)))


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _pragmas(connection: object, _: object) -> None:
    with closing(connection.cursor()) as cursor:  # type: ignore[attr-defined]  # a DBAPI connection has no common type
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA synchronous=NORMAL")


def _prepare(engine: Engine, secret: SiteSecret) -> None:
    with engine.begin() as connection:
        version = connection.execute(text("PRAGMA user_version")).scalar_one()
        if version not in (0, SCHEMA_VERSION) or (version and not _is_ours(connection, secret)):
            Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
        connection.execute(text(f"PRAGMA user_version={SCHEMA_VERSION}"))
        if not _is_ours(connection, secret):
            connection.execute(insert(FactRow), [{"name": "secret", "value": _mark(secret)}])


def _is_ours(connection: Connection, secret: SiteSecret) -> bool:
    return connection.execute(select(FactRow.value).where(FactRow.name == "secret")).scalar() == _mark(secret)


def _mark(secret: SiteSecret) -> bytes:
    return secret.token("catalog", "v1").encode()
