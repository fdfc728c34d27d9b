"""A scan: it brings the catalog's rows up to date. Files come first, then series, then the choice of one a study.

Reader processes open the files, several at once; only the scan's own thread touches the catalog.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from site_client.ingest.catalog.tables import FactRow, FileRow, SliceRow, StackRow
from site_client.ingest.files.export import ExportFile, begins_as_dicom, walk
from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.readers import Reader, Readers, shared_readers
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason, SeriesState, Warn
from site_client.ingest.rules import Rules
from site_client.ingest.series.assess import AssessedSeries, Assessment, assess_series, await_series
from site_client.ingest.series.identity import stated_patient, with_one_parent
from site_client.ingest.series.stacks import Image

BATCH = 1000  # rows a commit; also below SQLite's limit of variables in a statement
_FILES_A_READER = 64  # headers that a reader process reads without a word of ours
# Faults that may pass although no file changes: a share was not mounted, a mode was mended.
_PASSING = frozenset((Reason.Q_READ.name,))

Item = TypeVar("Item")


@dataclass(frozen=True)
class _StaleFile:
    """A file of the export whose row is missing or no longer true. `old`: the row."""

    file: ExportFile
    path: bytes
    old: Any


@dataclass(frozen=True)
class _SeriesFiles:
    """All files with one series UID, as the catalog knows them. `quiet_s`: for how long no scan saw a change."""

    series_key: str
    images: list[Image]
    paths: list[bytes]
    quiet_s: float


class ExportScan:
    """One scan of one export, inside a session of the catalog. `files_seen` and `files_read` count what it met."""

    def __init__(
        self,
        session: Session,
        export: Path,
        secret: SiteSecret,
        rules: Rules,
        now_s: float,
        readers: Readers | None = None,
    ) -> None:
        """Starts nothing; `run` does.

        Args:
            session: of the catalog. The scan commits to it in batches.
            export: the root folder.
            secret: keys the pseudonyms and the paths.
            rules: thresholds for series.
            now_s: Unix time of the scan.
            readers: open the files; None: those of this process.
        """
        self._session, self._export, self._secret, self._rules, self._now_s = session, export, secret, rules, now_s
        self._readers = readers or shared_readers()
        self._seal = secret.path_seal()
        # A verdict is kept for as long as all that it depends on: the file, the rules and the decoders.
        decoders = self._readers.decoders()
        self._header_basis = _digest(rules.header_digest, decoders)
        self._series_basis = _digest(rules.digest, decoders)
        self.files_seen = 0
        self.files_read = 0

    def run(self) -> None:
        """Updates the rows of files, of series and of the choice.

        Raises:
            IngestError: the export cannot be listed. A fault of a file or a series becomes a reason code.
        """
        self._forget_another_export()
        changed = self._update_files()
        # In a fixed order: two scans of equal exports write equal rows.
        keys = sorted(changed | self._unsettled_series())
        loaded = (series for key in keys if (series := self._series_files(key)) is not None)
        for series, assessment in self._readers.map(self._assess, loaded):
            self._write_series(series, assessment)
            self._session.commit()  # after each: an interrupted scan goes on where it was
        self._choose()
        self._notice_many_studies()

    def _forget_another_export(self) -> None:
        """Drops all rows if they are of another folder: paths are relative, so they could be taken for this one's."""
        place = self._seal.seal(str(self._export.resolve()))
        known = self._session.get(FactRow, "export")
        if known is None or known.value != place:
            for table in (SliceRow, StackRow, FileRow):  # slices first: they refer to stacks
                self._session.execute(delete(table))
            self._session.merge(FactRow(name="export", value=place))
            self._session.flush()

    def _update_files(self) -> set[str]:
        """Reads the header of every new or changed file, and forgets files that are gone.

        Returns:
            Keys of the series to assess: those with such a file, and those whose patient or study it puts in doubt. A
            file that moved to another series names both.
        """
        known = {row.path: row for row in self._session.execute(select(*_KNOWN))}
        gone = set(known)
        series: set[str] = set()
        studies: set[str] = set()

        def note(*keys: tuple[str | None, str | None]) -> None:
            series.update(series_key for series_key, _ in keys if series_key)
            studies.update(study_key for _, study_key in keys if study_key)

        batch: list[dict[str, object]] = []
        for rows in self._readers.map(self._read_files, _batches(self._stale_files(known, gone), _FILES_A_READER)):
            for row in rows:
                old = known.get(row["path"])
                note((row["series_key"], row["study_key"]), *([(old.series_key, old.study_key)] if old else []))
            batch.extend(rows)
            if len(batch) >= BATCH:
                self._write_files(batch)
                batch = []
        self._write_files(batch)
        note(*((known[path].series_key, known[path].study_key) for path in gone))
        missing = sorted(gone)
        for start in range(0, len(missing), BATCH):
            self._session.execute(delete(FileRow).where(FileRow.path.in_(missing[start : start + BATCH])))
        self._session.flush()
        return series | self._series_in_doubt(studies)

    def _stale_files(self, known: Mapping[bytes, Any], gone: set[bytes]) -> Iterator[_StaleFile]:
        """Walks the export, and takes every file that it meets out of `gone`."""
        for file in walk(self._export):
            self.files_seen += 1
            path = self._seal.seal(file.path)
            old = known.get(path)
            gone.discard(path)
            if old is None or not _same_stamp(old, file) or old.basis != self._header_basis or old.code in _PASSING:
                self.files_read += file.skip is None
                yield _StaleFile(file, path, old)

    def _read_files(self, reader: Reader, stale: Sequence[_StaleFile]) -> list[dict[str, Any]]:
        """Makes the rows of files, in a thread of its own."""

        def is_read(file: ExportFile) -> bool:
            return file.skip is None or (file.doubtful and begins_as_dicom(self._export / file.path))

        to_read = [item.file for item in stale if is_read(item.file)]
        asked = [(self._export / file.path, file.size_bytes) for file in to_read]
        results = dict(
            zip((file.path for file in to_read), reader.headers(asked, self._secret, self._rules), strict=True)
        )
        return [self._file_row(item, results.get(item.file.path, item.file.skip)) for item in stale]

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
            "basis": self._header_basis,
            "study_key": header.study_key if header else None,
            "patient_key": stated_patient(header) if header else None,
            "series_key": header.series_key if header else None,
            "code": result.name if isinstance(result, Reason) else None,
            "header": header.to_json() if header else None,
        }

    def _write_files(self, batch: Sequence[Mapping[str, object]]) -> None:
        if batch:
            self._session.execute(delete(FileRow).where(FileRow.path.in_([row["path"] for row in batch])))
            self._session.execute(insert(FileRow), list(batch))
            self._session.commit()

    def _unsettled_series(self) -> set[str]:
        """Finds series without an assessment, with one by other rules, and those that were still arriving."""
        in_files = set(
            self._session.scalars(select(FileRow.series_key).where(FileRow.series_key.is_not(None)).distinct())
        )
        stacks = self._session.execute(
            select(StackRow.series_key, StackRow.rules, StackRow.state, StackRow.reasons)
        ).all()
        assessed = {row.series_key for row in stacks}
        again = {
            row.series_key
            for row in stacks
            if row.rules != self._series_basis
            or row.state == SeriesState.WAITING.name
            or _PASSING & set(row.reasons.split())
        }
        return {key for key in in_files - assessed if key is not None} | again

    def _series_in_doubt(self, studies: set[str]) -> set[str]:
        """Finds all series of those studies whose stacks no longer have the patient that the study's files name."""
        patients = self._patients(studies)
        doubtful: set[str] = set()
        for part in _batches(sorted(studies), BATCH):
            stacks = select(StackRow.study_key, StackRow.patient_key, StackRow.reasons).where(
                StackRow.study_key.in_(part)
            )
            for row in self._session.execute(stacks):
                named = patients.get(row.study_key, set())
                is_clash = Reason.Q_UID_CLASH.name in row.reasons.split()
                if is_clash or len(named) > 1 or (named and row.patient_key not in named):
                    doubtful.add(row.study_key)
        series: set[str] = set()
        for part in _batches(sorted(doubtful), BATCH):
            keys = select(FileRow.series_key).where(FileRow.study_key.in_(part)).distinct()
            series.update(key for key in self._session.scalars(keys) if key is not None)
        return series

    def _patients(self, studies: Iterable[str]) -> dict[str, set[str]]:
        """Gives for each study the patients that its files name."""
        patients: dict[str, set[str]] = {}
        for part in _batches(sorted(studies), BATCH):
            pairs = select(FileRow.study_key, FileRow.patient_key).where(FileRow.study_key.in_(part)).distinct()
            for row in self._session.execute(pairs):
                if row.patient_key is not None:
                    patients.setdefault(row.study_key, set()).add(row.patient_key)
        return patients

    def _series_files(self, series_key: str) -> _SeriesFiles | None:
        """Loads all files of a series; None, and no rows are left of it, when all of them are gone."""
        columns = (FileRow.path, FileRow.since_s, FileRow.header)
        query = select(*columns).where(FileRow.series_key == series_key).order_by(FileRow.path)
        rows = self._session.execute(query).all()
        if not rows:
            self._session.execute(delete(StackRow).where(StackRow.series_key == series_key))
            return None
        # Every row of a series has a header: series_key and header are written together.
        images = [Image(place, DicomHeader.from_json(row.header or "")) for place, row in enumerate(rows)]
        patients = self._patients({image.header.study_key for image in images})
        quiet_s = min(self._now_s - row.since_s for row in rows)
        return _SeriesFiles(series_key, with_one_parent(images, patients), [row.path for row in rows], quiet_s)

    def _assess(self, reader: Reader, series: _SeriesFiles) -> tuple[_SeriesFiles, Assessment]:
        """Assesses a series, in a thread of its own. While it may still be arriving, no file of it is opened."""
        rules = self._rules
        if rules.settle_s and series.quiet_s < max(rules.settle_s, rules.incomplete_after_s):
            arriving = await_series(series.images, rules)
            if series.quiet_s < rules.settle_s or arriving.lacks_slices:
                return series, arriving
        paths = series.paths
        path_of = lambda place: self._export / self._seal.decrypt(paths[place])  # noqa: E731
        return series, assess_series(series.images, path_of, rules, reader)

    def _write_series(self, series: _SeriesFiles, assessment: Assessment) -> None:
        self._session.execute(delete(StackRow).where(StackRow.series_key == series.series_key))
        copies = [series.paths[place] for place in assessment.copies]
        used = [path for place, path in enumerate(series.paths) if place not in set(assessment.copies)]
        # An image that was a copy in the scan before is used again once the other file is gone.
        for paths, code in ((copies, Reason.S_DUPLICATE.name), (used, None)):
            for part in _batches(paths, BATCH):
                self._session.execute(update(FileRow).where(FileRow.path.in_(part)).values(code=code))
        for stack in assessment.stacks:
            self._write_stack(stack, series)

    def _write_stack(self, assessed: AssessedSeries, series: _SeriesFiles) -> None:
        state = assessed.state
        images = assessed.stack.images
        head = images[0].header
        slices = sorted(image.header.slice_key for image in images)
        # From the slices it holds, not from its place in the series: another file must not rename its other stacks.
        identity = hashlib.sha256("|".join(slices).encode()).hexdigest()
        stack_key = self._secret.series(f"{series.series_key}|{head.study_key}|{identity}")
        row = {
            "stack_key": stack_key,
            "series_key": series.series_key,
            "study_key": head.study_key,
            "patient_key": head.patient_key,
            "state": state.name,
            "reasons": " ".join(reason.name for reason in assessed.reasons),
            "warnings": " ".join(warning.name for warning in assessed.warnings),
            "sheet": json.dumps([[line.criterion, line.value, line.points] for line in assessed.stack.sheet]),
            "score": assessed.stack.score,
            "slices": len(slices),
            "chosen": False,
            "content_hash": assessed.content_hash if state is SeriesState.READY else "",
            "rules": self._series_basis,
        }
        self._session.execute(insert(StackRow), [row])
        if state is SeriesState.READY:
            places = [
                {
                    "stack_key": stack_key,
                    "place": place,
                    "path": series.paths[image.file],
                    "slice_key": image.header.slice_key,
                }
                for place, image in enumerate(images)
            ]
            self._session.execute(insert(SliceRow), places)

    def _choose(self) -> None:
        """Marks one READY stack a study: the highest score, then the smallest key. The others stay READY, unchosen."""
        ready = self._session.execute(
            select(StackRow.stack_key, StackRow.study_key, StackRow.chosen)
            .where(StackRow.state == SeriesState.READY.name)
            .order_by(StackRow.study_key, StackRow.score.desc(), StackRow.stack_key)
        ).all()
        studies: set[str] = set()
        for row in ready:
            best = row.study_key not in studies
            studies.add(row.study_key)
            if row.chosen != best:
                change = update(StackRow).where(StackRow.stack_key == row.stack_key).values(chosen=best)
                self._session.execute(change)

    def _notice_many_studies(self) -> None:
        """Warns of patients with more studies than one is likely to have, and of no others."""
        counts = select(StackRow.patient_key, func.count(StackRow.study_key.distinct())).group_by(StackRow.patient_key)
        most = self._rules.studies_of_a_patient_max
        many = {patient for patient, count in self._session.execute(counts).all() if count > most}
        name = Warn.W_MANY_STUDIES.name
        for row in self._session.execute(select(StackRow.stack_key, StackRow.patient_key, StackRow.warnings)).all():
            warnings = row.warnings.split()
            if (name in warnings) != (row.patient_key in many):
                kept = sorted({*warnings, name} if row.patient_key in many else set(warnings) - {name})
                change = update(StackRow).where(StackRow.stack_key == row.stack_key)
                self._session.execute(change.values(warnings=" ".join(kept)))


_KNOWN = (
    FileRow.path, FileRow.size_bytes, FileRow.mtime_ns, FileRow.ctime_ns, FileRow.since_s, FileRow.basis,
    FileRow.code, FileRow.series_key, FileRow.study_key,
)  # fmt: skip


def _same_stamp(old: Any, file: ExportFile) -> bool:
    return (old.size_bytes, old.mtime_ns, old.ctime_ns) == (file.size_bytes, file.mtime_ns, file.ctime_ns)


def _digest(rules: str, decoders: Sequence[str]) -> str:
    return hashlib.sha256("|".join((rules, *decoders)).encode()).hexdigest()[:16]


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
