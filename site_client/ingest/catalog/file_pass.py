"""The file pass of a scan: it brings the rows of files and of DICOMDIRs up to date.

Every commit also marks the series that its files belong to. So an interrupted scan loses no doubt about a series.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from site_client.ingest.catalog.tables import FileRow, ListedRow, StackRow
from site_client.ingest.files.export import ExportFile, begins_as_dicom, walk
from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.reader import Reader
from site_client.ingest.files.readers import Readers
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import Rules
from site_client.ingest.series.identity import stated_patient

BATCH = 1000  # rows a commit, or a few more; far below SQLite's limit of variables in a statement
# Faults that may pass although no file changes: a share was not mounted, a mode was mended.
PASSING = frozenset((Reason.Q_READ.name,))
_FILES_A_READER = 64  # headers that a reader process reads without a word of ours
_KNOWN = (
    FileRow.path, FileRow.size_bytes, FileRow.mtime_ns, FileRow.ctime_ns, FileRow.since_s, FileRow.basis,
    FileRow.code, FileRow.series_key,
)  # fmt: skip

Item = TypeVar("Item")


@dataclass(frozen=True)
class _StaleFile:
    """A file of the export whose row is missing or no longer true. `old`: the row."""

    file: ExportFile
    path: bytes
    old: Any


@dataclass(frozen=True)
class _FileRead:
    """A file's row; `listed`: the images that it lists by series, if it is a DICOMDIR."""

    row: dict[str, Any]
    old: Any
    listed: Mapping[str, int] | None


class FilePass:
    """The file pass of one scan. `files_seen` and `files_read` count what it met."""

    def __init__(
        self, session: Session, export: Path, secret: SiteSecret, rules: Rules, now_s: float, readers: Readers
    ) -> None:
        """Takes what `ExportScan` takes."""
        self._session, self._export, self._secret, self._rules, self._now_s = session, export, secret, rules, now_s
        self._readers = readers
        self._seal = secret.path_seal()
        self._basis = basis(rules.header_digest, readers.decoders())
        self.files_seen = 0
        self.files_read = 0

    def run(self) -> None:
        """Reads the header of every new or changed file, and forgets files that are gone.

        Raises:
            IngestError: the export cannot be listed.
        """
        known = {row.path: row for row in self._session.execute(select(*_KNOWN))}
        gone = set(known)
        batch: list[_FileRead] = []
        for files in self._readers.map(self._read, batches(self._stale(known, gone), _FILES_A_READER)):
            batch.extend(files)
            if len(batch) >= BATCH:
                self._write(batch)
                batch = []
        self._write(batch)
        for paths in batches(sorted(gone), BATCH):
            self._forget(paths, [known[path].series_key for path in paths])

    def _stale(self, known: Mapping[bytes, Any], gone: set[bytes]) -> Iterator[_StaleFile]:
        """Walks the export, and takes every file that it meets out of `gone`."""
        for file in walk(self._export):
            self.files_seen += 1
            path = self._seal.seal(file.path)
            old = known.get(path)
            gone.discard(path)
            if old is None or not _same_stamp(old, file) or old.basis != self._basis or old.code in PASSING:
                self.files_read += file.skip is None
                yield _StaleFile(file, path, old)

    def _read(self, reader: Reader, stale: Sequence[_StaleFile]) -> list[_FileRead]:
        """Reads files, in a thread of its own."""

        def is_read(file: ExportFile) -> bool:
            return file.skip is None or (file.doubtful and begins_as_dicom(self._export / file.path))

        to_read = [item.file for item in stale if is_read(item.file)]
        asked = [(self._export / file.path, file.size_bytes) for file in to_read]
        results = dict(
            zip((file.path for file in to_read), reader.headers(asked, self._secret, self._rules), strict=True)
        )
        directories = [item for item in stale if results.get(item.file.path) is Reason.S_DIRECTORY]
        lists = reader.directories([self._export / item.file.path for item in directories], self._secret)
        # A damaged DICOMDIR is no list: the files speak for themselves.
        listed = {
            item.path: counts for item, counts in zip(directories, lists, strict=True) if not isinstance(counts, Reason)
        }
        rows = [self._file_row(item, results.get(item.file.path, item.file.skip)) for item in stale]
        return [_FileRead(row, item.old, listed.get(item.path)) for row, item in zip(rows, stale, strict=True)]

    def _file_row(self, stale: _StaleFile, result: DicomHeader | Reason | None) -> dict[str, Any]:
        file, old = stale.file, stale.old
        header = result if isinstance(result, DicomHeader) else None
        return {
            "path": stale.path,
            "size_bytes": file.size_bytes,
            "mtime_ns": file.mtime_ns,
            "ctime_ns": file.ctime_ns,
            # By our own clock: a copying program may set any time it likes on a file.
            "since_s": old.since_s if old is not None and _same_stamp(old, file) else self._now_s,
            "basis": self._basis,
            "study_key": header.study_key if header else None,
            "patient_key": stated_patient(header) if header else None,
            "series_key": header.series_key if header else None,
            "code": result.name if isinstance(result, Reason) else None,
            "header": header.to_json() if header else None,
        }

    def _write(self, files: Sequence[_FileRead]) -> None:
        """Writes the rows of files, and marks the series that gain or lose one of them."""
        if not files:
            return
        # A file that moved to another series changes both.
        series = [file.row["series_key"] for file in files] + [file.old.series_key for file in files if file.old]
        self._forget([file.row["path"] for file in files], series)
        self._session.execute(insert(FileRow), [file.row for file in files])
        listed = [
            {"path": file.row["path"], "series_key": series_key, "images": images}
            for file in files
            for series_key, images in (file.listed or {}).items()
        ]
        for part in batches(listed, BATCH):
            self._session.execute(insert(ListedRow), part)
        self._mark(row["series_key"] for row in listed)
        self._session.commit()

    def _forget(self, paths: Sequence[bytes], series: Iterable[str | None]) -> None:
        """Removes the rows of files; of DICOMDIRs among them also what they listed."""
        was_listed = self._session.scalars(select(ListedRow.series_key).where(ListedRow.path.in_(paths))).all()
        self._mark((*series, *was_listed))
        self._session.execute(delete(ListedRow).where(ListedRow.path.in_(paths)))
        self._session.execute(delete(FileRow).where(FileRow.path.in_(paths)))

    def _mark(self, series: Iterable[str | None]) -> None:
        """Takes the basis from the assessments of these series, which the scan then makes anew."""
        for part in batches(sorted({key for key in series if key is not None}), BATCH):
            self._session.execute(update(StackRow).where(StackRow.series_key.in_(part)).values(rules=""))


def basis(rules_digest: str, decoders: Sequence[str]) -> str:
    """Computes the digest of all that a verdict depends on beside the files: the rules, and the decoders installed."""
    return hashlib.sha256("|".join((rules_digest, *decoders)).encode()).hexdigest()[:16]


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Cuts items into lists of `size`; the last one may be shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _same_stamp(old: Any, file: ExportFile) -> bool:
    return (old.size_bytes, old.mtime_ns, old.ctime_ns) == (file.size_bytes, file.mtime_ns, file.ctime_ns)
