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

from sqlalchemy import Connection, Engine, create_engine, delete, event, func, insert, select, text, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from site_client.config import SiteSettings
from site_client.errors import IngestError
from site_client.files import belongs_with_its_folder
from site_client.ingest.catalog import dataset, label_rows, opt_outs
from site_client.ingest.catalog.dataset import FileContents
from site_client.ingest.catalog.explain import Explainer
from site_client.ingest.catalog.page import catalog_page, write_privately
from site_client.ingest.catalog.received import answer_receiver
from site_client.ingest.catalog.report import ScanReport, SeriesSummary, scan_report, series_summaries
from site_client.ingest.catalog.scan import ExportScan
from site_client.ingest.catalog.tables import (
    KEPT_FACTS,
    KEPT_TABLES,
    SCHEMA_VERSION,
    CatalogTable,
    FactRow,
    FileRow,
    SliceRow,
)
from site_client.ingest.labels.files import LabelFile, label_sources
from site_client.ingest.labels.readings import LabelRules
from site_client.ingest.labels.spelling import column_name
from site_client.ingest.pseudonym import SiteSecret, load_secret
from site_client.ingest.reasons import Reason
from site_client.ingest.records import Dataset, SeriesKey, SeriesRecord, StudyRecord
from site_client.ingest.rules import Rules

__all__ = ["Catalog", "Dataset", "FileContents", "ScanReport", "SeriesRecord", "StudyRecord", "open_catalog"]

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
        no_contrast=ingest.no_contrast,
        head_words=ingest.head_words,
        elsewhere_words=ingest.elsewhere_words,
        soft_kernels=ingest.soft_kernels,
        bone_kernels=ingest.bone_kernels,
    )
    labels = settings.labels
    columns = {column_name(name): meaning for name, meaning in labels.columns.items()}
    label_rules = LabelRules(labels.readers, labels.addenda, columns)
    return Catalog.open(folder / "catalog.sqlite", secret, rules, clock, label_rules)


@contextmanager
def _own_disk() -> Iterator[None]:
    """Says in one sentence that the catalog cannot be written, which is no fault of the export.

    Raises:
        IngestError: The disk of the state folder is full, failing or read-only.
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

    def __init__(
        self, engine: Engine, lock: Path, secret: SiteSecret, rules: Rules, clock: Clock, label_rules: LabelRules
    ) -> None:
        """Takes an engine on a prepared file; `open` prepares one."""
        self._engine, self._lock = engine, lock
        self._secret, self._rules, self._clock, self._label_rules = secret, rules, clock, label_rules

    @classmethod
    def open(
        cls,
        path: Path,
        secret: SiteSecret,
        rules: Rules | None = None,
        clock: Clock = utc_now,
        label_rules: LabelRules | None = None,
    ) -> "Catalog":
        """Opens or makes the file.

        It empties a catalog of another secret. Of one of another version it keeps labels and datasets, and drops what
        the export tells again.

        Args:
            path: The SQLite file.
            secret: Keys the pseudonyms and the paths.
            rules: Thresholds for series; None: the defaults.
            clock: The wall clock, aware.
            label_rules: How label tables are read; None: the defaults.

        Raises:
            IngestError: The file is no SQLite file.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Before SQLite touches it, so that the file never exists with a wider mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        belongs_with_its_folder(path, path)
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 60})
        event.listen(engine, "connect", _set_pragmas)
        try:
            _prepare(engine, secret)
        except DatabaseError:
            raise IngestError(
                "the catalog is not an SQLite file of ours; remove it, the next scan makes it anew"
            ) from None
        lock = path.with_name(path.name + ".lock")
        return cls(engine, lock, secret, rules or Rules(), clock, label_rules or LabelRules())

    def close(self) -> None:
        """Closes the file."""
        self._engine.dispose()

    @_own_disk()
    def scan(self, export: Path, labels: Sequence[Path] = (), opted_out: Sequence[Path] = ()) -> ScanReport:
        """Brings the catalog up to date.

        Args:
            export: The root folder of the PACS export. It is only read.
            labels: Tables, or folders of them; without any, those at the export's top.
            opted_out: Lists of patients who opted out.

        Returns:
            Counts of what the catalog now holds.

        Raises:
            IngestError: The export cannot be listed, or the catalog cannot be written. Faults inside the export are
                counted, never raised.
            OptOutsUnreadable: A list of patients who opted out cannot be read.
        """
        started = self._clock()
        with _locked(self._lock), Session(self._engine) as session:
            # First: a list that cannot be read ends the scan before anything new could be trained on.
            opt_outs.refresh(session, opted_out, self._secret)
            session.commit()
            scan = ExportScan(session, export, self._secret, self._rules, started.timestamp())
            scan.run()
            # After the export, whose top may hold them: an export that is not mounted has raised by now.
            label_rows.refresh(session, label_sources(export, labels), self._secret, self._label_rules)
            session.commit()
            answer_receiver(session, export, self._secret.path_seal(), self._lock.with_name("taken"))
            seconds = (self._clock() - started).total_seconds()
            return scan_report(session, scan.files_seen, scan.files_read, seconds)

    def last_report(self) -> ScanReport:
        """Counts the catalog as the last scan left it, and reads no file."""
        with Session(self._engine) as session:
            files = session.scalar(select(func.count()).select_from(FileRow)) or 0
            return scan_report(session, files, 0, 0.0)

    def confirm_labels(self, export: Path, labels: Sequence[Path], stamp: str) -> None:
        """Puts labels in force that wait for a person's word.

        Args:
            export: As for `scan`.
            labels: As for `scan`.
            stamp: Of the held labels that the person has seen (`ScanReport.labels.held`).

        Raises:
            LabelsRefused: A label file cannot be read, or the files changed meanwhile.
        """
        with _locked(self._lock), Session(self._engine) as session:
            label_rows.confirm(session, label_sources(export, labels), self._secret, self._label_rules, stamp)
            session.commit()

    def confirm_opt_outs(self, opted_out: Sequence[Path]) -> None:
        """Lets entries go that the lists of patients who opted out no longer hold.

        Raises:
            OptOutsUnreadable: A list cannot be read.
        """
        with _locked(self._lock), Session(self._engine) as session:
            opt_outs.refresh(session, opted_out, self._secret, confirmed=True)
            session.commit()

    def label_files(self) -> tuple[LabelFile, ...]:
        """Lists every label file by name, with its outcome at the last scan. For people of this site only."""
        with Session(self._engine) as session:
            return label_rows.counts(session, self._secret).files

    def explain(self, query: str) -> list[str]:
        """Explains a path, UID, pseudonym, accession number or patient ID, for people of this site: it names paths.

        Returns:
            Lines of text.
        """
        with Session(self._engine) as session:
            return self._explainer(session).explain(query)

    def write_page(self, path: Path, with_pictures: bool) -> None:
        """Writes the whole catalog as an HTML page of mode 0600.

        Args:
            path: Of the page.
            with_pictures: Show one slice of each series in the brain window.

        Raises:
            OSError: It cannot be written there.
        """
        report = self.last_report()
        with Session(self._engine) as session:
            write_privately(path, catalog_page(session, self._explainer(session), report, with_pictures))

    def _explainer(self, session: Session) -> Explainer:
        return Explainer(session, self._secret, self._rules, self._clock().timestamp())

    def dataset(self, pinned: str | None = None) -> Dataset:
        """Gives all studies with a ready series and at least one label, none in conflict, ordered by study_key.

        The catalog keeps the newest eight datasets. So a round that resumes after a crash gets the same studies again,
        also when studies arrived since.

        Args:
            pinned: The hash of a dataset that was given out before; None: the dataset of this moment.

        Raises:
            DatasetGone: The pinned dataset is no longer kept.
            IngestError: No export was scanned yet.
        """
        with Session(self._engine) as session:
            if pinned is not None:
                return dataset.recall(session, pinned, self._secret)
            assembled = dataset.assemble(session, self._secret)
            dataset.keep(session, assembled, self._secret, self._clock().timestamp())
            session.commit()
            return assembled

    def contents(self) -> tuple[FileContents, ...]:
        """Gives for each file of the export whose images it holds, archives included, in a fixed order."""
        with Session(self._engine) as session:
            return dataset.contents(session, self._secret)

    def chosen(self) -> tuple[StudyRecord, ...]:
        """Gives all studies with a ready series, labelled or not, with every label MISSING: for predictions.

        Raises:
            IngestError: No export was scanned yet.
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
        belongs_with_its_folder(descriptor, path)
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
        if version and _mark(connection) != mark:
            CatalogTable.metadata.drop_all(connection)
        elif version not in (0, SCHEMA_VERSION):
            # All but what the files may no longer tell: labels in force, and datasets to which a round is pinned.
            caches = [table for name, table in CatalogTable.metadata.tables.items() if name not in KEPT_TABLES]
            CatalogTable.metadata.drop_all(connection, tables=caches)
            connection.execute(delete(FactRow).where(FactRow.name.not_in(KEPT_FACTS)))
        CatalogTable.metadata.create_all(connection)
        connection.execute(text(f"PRAGMA user_version={SCHEMA_VERSION}"))
        if _mark(connection) != mark:
            connection.execute(insert(FactRow), [{"name": "secret", "value": mark}])


def _mark(connection: Connection) -> bytes | None:
    """Reads by which secret the rows were written: under another one no pseudonym and no path would match."""
    return connection.execute(select(FactRow.value).where(FactRow.name == "secret")).scalar()
