"""The catalog: an index of the export in a local SQLite file, which a scan brings up to date.

A scan reads only files whose size or time changed, assesses only series with such a file (or one still arriving), and
reads label files again only when one of them changed. A scan of an unchanged export is a walk and a comparison. The
catalog belongs to the trainer alone: file mode 0600, pseudonyms for keys, paths encrypted under the site's secret.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select, text, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from site_client.config import SiteSettings
from site_client.errors import IngestError
from site_client.ingest.catalog import dataset, label_rows
from site_client.ingest.catalog.report import ScanReport, SeriesSummary, scan_report, series_summaries
from site_client.ingest.catalog.scan import ExportScan
from site_client.ingest.catalog.tables import SCHEMA_VERSION, CatalogTable, DatasetRow, FactRow, FileRow, SliceRow
from site_client.ingest.labels.labels import label_files
from site_client.ingest.pseudonym import SiteSecret, load_secret
from site_client.ingest.reasons import Reason
from site_client.ingest.records import Dataset, SeriesKey, SeriesRecord, StudyRecord
from site_client.ingest.rules import Rules

__all__ = ["Catalog", "Dataset", "ScanReport", "SeriesRecord", "StudyRecord", "open_catalog"]

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Reads the wall clock, aware."""
    return datetime.now(UTC)


def open_catalog(settings: SiteSettings, clock: Clock = utc_now) -> "Catalog":
    """Opens the catalog of a site: catalog.sqlite in the trainer's folder, keyed by pseudonym.key there.

    Both files are made if they do not exist.

    Raises:
        IngestError: catalog.sqlite is another program's file.
    """
    folder = settings.folders.trainer
    secret = load_secret(folder / "pseudonym.key", os.urandom)
    ingest = settings.ingest
    rules = Rules(
        settle_s=ingest.settle_s,
        slices_min=ingest.slices_min,
        lossy=ingest.lossy,
        patient_tag=ingest.patient_tag,
    )
    return Catalog.open(folder / "catalog.sqlite", secret, rules, clock)


@contextmanager
def _own_disk() -> Iterator[None]:
    """Says in one sentence that the catalog cannot be written, which is no fault of the export.

    Raises:
        IngestError: the disk of the state folder is full, failing or read-only.
    """
    try:
        yield
    except (DatabaseError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        # Not the error's own text: SQLAlchemy quotes rows.
        raise IngestError(
            f"the catalog cannot be written ({Reason.Q_STORAGE.name}): {Reason.Q_STORAGE.value}; "
            "free space on the disk of folders.state, then scan again"
        ) from None


class Catalog:
    """One site's catalog. It is not for several threads; several processes may use it, and their scans take turns."""

    def __init__(self, engine: Engine, lock: Path, secret: SiteSecret, rules: Rules, clock: Clock) -> None:
        """Takes an engine on a prepared file; `open` prepares one."""
        self._engine, self._lock = engine, lock
        self._secret, self._rules, self._clock = secret, rules, clock

    @classmethod
    def open(cls, path: Path, secret: SiteSecret, rules: Rules | None = None, clock: Clock = utc_now) -> "Catalog":
        """Opens or makes the file. It empties a catalog of another version or another secret, which is only a cache.

        Args:
            path: the SQLite file.
            secret: keys the pseudonyms and the paths.
            rules: thresholds for series; None: the defaults.
            clock: the wall clock, aware.

        Raises:
            IngestError: the file is no SQLite file.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Before SQLite touches it, so that the file never exists with a wider mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 60})
        event.listen(engine, "connect", _set_pragmas)
        try:
            _prepare(engine, secret)
        except DatabaseError:
            raise IngestError(
                "the catalog is not an SQLite file of ours; remove it, the next scan makes it anew"
            ) from None
        return cls(engine, path.with_name(path.name + ".lock"), secret, rules or Rules(), clock)

    def close(self) -> None:
        """Closes the file."""
        self._engine.dispose()

    @_own_disk()
    def scan(self, export: Path, labels: Sequence[Path] = ()) -> ScanReport:
        """Brings the catalog up to date.

        Args:
            export: the root folder of the PACS export. It is only read.
            labels: CSV files, or folders of them; without any, those at the export's top.

        Returns:
            Counts of what the catalog now holds.

        Raises:
            IngestError: the export cannot be listed, or the catalog cannot be written. Faults inside the export are
                counted, never raised.
        """
        started = self._clock()
        files = label_files(export, labels)
        with _locked(self._lock), Session(self._engine) as session:
            scan = ExportScan(session, export, self._secret, self._rules, started.timestamp())
            scan.run()
            label_rows.refresh(session, files, self._secret)
            session.commit()
            seconds = (self._clock() - started).total_seconds()
            return scan_report(session, scan.files_seen, scan.files_read, seconds)

    def last_report(self) -> ScanReport:
        """Counts the catalog as the last scan left it, and reads no file."""
        with Session(self._engine) as session:
            files = session.scalar(select(func.count()).select_from(FileRow)) or 0
            return scan_report(session, files, 0, 0.0)

    def dataset(self, pinned: str | None = None) -> Dataset:
        """Gives all studies with a ready series and at least one label, none in conflict, ordered by study_key.

        The catalog keeps the newest eight datasets. So a round that resumes after a crash gets the same studies again,
        also when studies arrived since.

        Args:
            pinned: the hash of a dataset that was given out before; None: the dataset of this moment.

        Raises:
            DatasetGone: the pinned dataset is no longer kept.
            IngestError: no export was scanned yet.
        """
        with Session(self._engine) as session:
            if pinned is not None:
                return dataset.recall(session, pinned, self._secret)
            assembled = dataset.assemble(session, self._secret)
            dataset.keep(session, assembled, self._secret, self._clock().timestamp())
            session.commit()
            return assembled

    def chosen(self) -> tuple[StudyRecord, ...]:
        """Gives all studies with a ready series, labelled or not, with every label MISSING: for predictions.

        Raises:
            IngestError: no export was scanned yet.
        """
        with Session(self._engine) as session:
            return dataset.chosen_studies(session, self._secret)

    @_own_disk()
    def doubt(self, series_key: SeriesKey) -> None:
        """Has the next scan read a series again that was READY and could not be read.

        Its files have other bytes behind the same size and times, or went while a share was not mounted.
        """
        with _locked(self._lock), Session(self._engine) as session:
            paths = select(SliceRow.path).where(SliceRow.stack_key == series_key)
            session.execute(update(FileRow).where(FileRow.path.in_(paths)).values(basis=""))
            session.commit()

    def series(self) -> list[SeriesSummary]:
        """Lists every stack as last assessed, with its score sheet, ordered by study and score."""
        with Session(self._engine) as session:
            return series_summaries(session)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # A lock beside SQLite's own: a scan commits many times, and two scans in between would undo each other's rows.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _set_pragmas(connection: object, _: object) -> None:
    with closing(connection.cursor()) as cursor:  # type: ignore[attr-defined]  # a DBAPI connection has no common type
        cursor.execute("PRAGMA journal_mode=WAL")  # readers go on during a scan
        cursor.execute("PRAGMA foreign_keys=ON")  # off by default: a stack takes its slices with it
        cursor.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last batch; the next scan reads it again


def _prepare(engine: Engine, secret: SiteSecret) -> None:
    mark = secret.token("catalog", "v1").encode()
    with engine.begin() as connection:
        version = connection.execute(text("PRAGMA user_version")).scalar_one()
        if version not in (0, SCHEMA_VERSION) or (version and _mark(connection) != mark):
            # Rounds may be pinned to datasets of the older version, which read as those of this one.
            kept = {DatasetRow.__tablename__} if _mark(connection) == mark else set()
            tables = CatalogTable.metadata.sorted_tables
            CatalogTable.metadata.drop_all(connection, [table for table in tables if table.name not in kept])
        CatalogTable.metadata.create_all(connection)
        connection.execute(text(f"PRAGMA user_version={SCHEMA_VERSION}"))
        if _mark(connection) != mark:
            connection.execute(insert(FactRow), [{"name": "secret", "value": mark}])


def _mark(connection: Connection) -> bytes | None:
    """Reads by which secret the rows were written: under another one no pseudonym and no path would match."""
    return connection.execute(select(FactRow.value).where(FactRow.name == "secret")).scalar()
