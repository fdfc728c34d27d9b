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

from site_client.ingest.catalog.archive_lists import ArchiveLists
from site_client.ingest.catalog.known_files import KnownFiles, same_stamp
from site_client.ingest.catalog.tables import FileRow, ListedRow, StackRow
from site_client.ingest.files.addresses import frame_address
from site_client.ingest.files.export import ExportFile, begins_as_dicom, walk
from site_client.ingest.files.header import DicomHeader, Header, MultiframeHeader
from site_client.ingest.files.reader import Reader
from site_client.ingest.files.readers import Readers
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import Rules
from site_client.ingest.series.identity import stated_patient

BATCH = 1000  # rows a commit, or a few more; far below SQLite's limit of variables in a statement
_FILES_A_READER = 64  # headers that a reader process reads without a word of ours

Item = TypeVar("Item")


@dataclass(frozen=True)
class _StaleFile:
    """A file of the export whose row is missing or no longer true. `container`: the archive that it is a member of."""

    file: ExportFile
    path: bytes
    container: bytes | None = None


@dataclass(frozen=True)
class _FileRead:
    """A file's row, and those of its frames; `listed`: the images that it lists by series, if it is a DICOMDIR."""

    file: ExportFile
    rows: tuple[dict[str, Any], ...]
    listed: Mapping[str, Sequence[str]] | None = None

    @property
    def is_archive(self) -> bool:
        return bool(self.rows[0]["code"] == Reason.S_ARCHIVE.name)


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
        self._known = KnownFiles(session, self._seal, self._basis)
        self._archives = ArchiveLists(export, readers)
        self.files_seen = 0
        self.files_read = 0

    def run(self) -> None:
        """Reads the header of every new or changed file, and forgets files that are gone.

        Raises:
            IngestError: The export cannot be listed.
        """
        batch: list[_FileRead] = []
        listed: list[_FileRead] = []
        stale = self._stale()
        while True:
            archives: list[_FileRead] = []
            for files in self._readers.map(self._read, batches(stale, _FILES_A_READER)):
                archives += [file for file in files if file.is_archive]
                batch += [file for file in files if not file.is_archive]
                if sum(len(file.rows) for file in batch) >= BATCH:
                    self._write(batch)
                    batch = []
            if not archives:
                break
            stale = self._members(archives, listed)
        # An archive's row says that its members have theirs. After an interruption it is missing, and they are kept.
        self._write([*batch, *reversed(listed)])
        for paths in batches(sorted(self._known.gone), BATCH):
            self._forget(paths)

    def _stale(self) -> Iterator[_StaleFile]:
        """Walks the export for files that have to be read."""
        for file in walk(self._export):
            yield from self._if_stale(file, None)

    def _members(self, archives: Iterable[_FileRead], listed: list[_FileRead]) -> Iterator[_StaleFile]:
        """Lists archives for members that have to be read. Puts the archives' rows into `listed`."""
        for archive in archives:
            members = self._archives.members(archive.file)
            (row,) = archive.rows
            if isinstance(members, Reason):
                row["code"], members = members.name, []
            listed.append(archive)
            old = self._known.row(row["path"])
            is_same = old is None or same_stamp(old, archive.file)
            for member in members:
                yield from self._if_stale(member, row["path"], is_same)

    def _if_stale(self, file: ExportFile, container: bytes | None, may_be_known: bool = True) -> Iterator[_StaleFile]:
        path = self._seal.seal(file.path)
        if may_be_known and self._known.is_true(file, path):
            self.files_seen += self._known.keep(path)
        else:
            self.files_seen += 1
            self.files_read += file.skip is None
            self._known.gone.discard(path)
            yield _StaleFile(file, path, container)

    def _read(self, reader: Reader, stale: Sequence[_StaleFile]) -> list[_FileRead]:
        """Reads files, in a thread of its own."""

        def is_read(item: _StaleFile) -> bool:
            # A member has to be unpacked before its first bytes can be seen, which is the reader's work.
            in_doubt = item.file.doubtful and (
                item.container is not None or begins_as_dicom(self._export / item.file.path)
            )
            return item.file.skip is None or in_doubt

        to_read = [item.file for item in stale if is_read(item)]
        asked = [(self._export / file.path, file.size_bytes) for file in to_read]
        headers = reader.headers(asked, self._secret, self._rules)
        results: dict[str, Header | Reason | None] = {
            # A doubt that the first bytes do not settle is none.
            file.path: file.skip if file.doubtful and isinstance(result, Reason) else result
            for file, result in zip(to_read, headers, strict=True)
        }
        directories = [item for item in stale if results.get(item.file.path) is Reason.S_DIRECTORY]
        lists = reader.directories([self._export / item.file.path for item in directories], self._secret)
        # A damaged DICOMDIR is no list: the files speak for themselves.
        listed = {
            item.path: images for item, images in zip(directories, lists, strict=True) if not isinstance(images, Reason)
        }
        return [
            _FileRead(item.file, self._rows(item, results.get(item.file.path, item.file.skip)), listed.get(item.path))
            for item in stale
        ]

    def _rows(self, stale: _StaleFile, result: Header | Reason | None) -> tuple[dict[str, Any], ...]:
        file, container = stale.file, stale.container
        if not isinstance(result, MultiframeHeader):
            return (self._row(file, stale.path, container, result),)
        frames = (
            self._row(file, self._seal.seal(frame_address(file.path, number)), stale.path, header)
            for number, header in enumerate(result.frames)
        )
        return (self._row(file, stale.path, container, None), *frames)

    def _row(
        self, file: ExportFile, path: bytes, container: bytes | None, result: DicomHeader | Reason | None
    ) -> dict[str, Any]:
        header = result if isinstance(result, DicomHeader) else None
        old = self._known.row(path)
        return {
            "path": path,
            "container": container,
            "size_bytes": file.size_bytes,
            "mtime_ns": file.mtime_ns,
            "ctime_ns": file.ctime_ns,
            # By our own clock: a copying program may set any time it likes on a file.
            "since_s": min(old.since_s, self._now_s) if old is not None and same_stamp(old, file) else self._now_s,
            "basis": self._basis,
            "study_key": header.study_key if header else None,
            "patient_key": stated_patient(header) if header else None,
            "series_key": header.series_key if header else None,
            "slice_key": header.slice_key if header else None,
            "code": result.name if isinstance(result, Reason) else None,
            "header": header.to_json() if header else None,
        }

    def _write(self, files: Sequence[_FileRead]) -> None:
        """Writes the rows of files, and marks the series that gain or lose one of them."""
        for rows in batches((row for file in files for row in file.rows), BATCH):
            paths = [row["path"] for row in rows]
            self._known.gone.difference_update(paths)
            # A file that moved to another series changes both.
            self._forget(paths)
            self._session.execute(insert(FileRow), rows)
            self._mark(row["series_key"] for row in rows)
        listed = [
            {"path": file.rows[0]["path"], "series_key": series_key, "slice_key": slice_key}
            for file in files
            for series_key, images in (file.listed or {}).items()
            for slice_key in images
        ]
        for part in batches(listed, BATCH):
            self._session.execute(insert(ListedRow), part)
        self._mark(row["series_key"] for row in listed)
        self._session.commit()

    def _forget(self, paths: Sequence[bytes]) -> None:
        """Removes the rows of files; of DICOMDIRs among them also what they listed."""
        was_listed = self._session.scalars(select(ListedRow.series_key).where(ListedRow.path.in_(paths))).all()
        self._mark((*self._known.series_of(paths), *was_listed))
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
