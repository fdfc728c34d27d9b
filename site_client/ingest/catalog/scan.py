"""A scan: it brings the catalog's rows up to date. Files come first, then series, then the choice of one a study."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from site_client.ingest.catalog.tables import FactRow, FileRow, SliceRow, StackRow
from site_client.ingest.files.export import ExportFile, walk
from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.header_pass import read_header
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason, SeriesState
from site_client.ingest.rules import Rules
from site_client.ingest.series.assess import AssessedSeries, assess_series
from site_client.ingest.series.stacks import Image

BATCH = 1000  # rows a commit; also below SQLite's limit of variables in a statement


class ExportScan:
    """One scan of one export, inside a session of the catalog. `files_seen` and `files_read` count what it met."""

    def __init__(self, session: Session, export: Path, secret: SiteSecret, rules: Rules, now_s: float) -> None:
        """Starts nothing; `run` does.

        Args:
            session: of the catalog. The scan commits to it in batches.
            export: the root folder.
            secret: keys the pseudonyms and the paths.
            rules: thresholds for series.
            now_s: Unix time of the scan.
        """
        self._session, self._export, self._secret, self._rules, self._now_s = session, export, secret, rules, now_s
        self._seal = secret.path_seal()
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
        for series_key in sorted(changed | self._unsettled_series()):
            self._assess_series(series_key)
            self._session.commit()  # after each: an interrupted scan goes on where it was
        self._choose()

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
            Keys of the series with such a file. A file that moved to another series names both.
        """
        columns = (FileRow.path, FileRow.size_bytes, FileRow.mtime_ns, FileRow.series_key)
        known = {row.path: row for row in self._session.execute(select(*columns))}
        changed: set[str] = set()
        batch: list[dict[str, object]] = []
        gone = set(known)
        for file in walk(self._export):
            self.files_seen += 1
            path = self._seal.seal(file.path)
            old = known.get(path)
            gone.discard(path)
            if old is not None and (old.size_bytes, old.mtime_ns) == (file.size_bytes, file.mtime_ns):
                continue
            self.files_read += file.skip is None
            row = self._file_row(file, path)
            changed |= {key for key in (row["series_key"], old.series_key if old else None) if isinstance(key, str)}
            batch.append(row)
            if len(batch) >= BATCH:
                self._write_files(batch)
                batch = []
        self._write_files(batch)
        changed |= {known[path].series_key for path in gone if known[path].series_key}
        missing = sorted(gone)
        for start in range(0, len(missing), BATCH):
            self._session.execute(delete(FileRow).where(FileRow.path.in_(missing[start : start + BATCH])))
        self._session.flush()
        return changed

    def _file_row(self, file: ExportFile, path: bytes) -> dict[str, object]:
        result = file.skip or read_header(self._export / file.path, file.size_bytes, self._secret, self._rules)
        header = result if isinstance(result, DicomHeader) else None
        return {
            "path": path,
            "size_bytes": file.size_bytes,
            "mtime_ns": file.mtime_ns,
            "since_s": self._now_s,
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
        stacks = self._session.execute(select(StackRow.series_key, StackRow.rules, StackRow.state)).all()
        assessed = {row.series_key for row in stacks}
        again = {
            row.series_key for row in stacks if row.rules != self._rules.digest or row.state == SeriesState.WAITING.name
        }
        return {key for key in in_files - assessed if key is not None} | again

    def _assess_series(self, series_key: str) -> None:
        columns = (FileRow.path, FileRow.mtime_ns, FileRow.since_s, FileRow.header)
        query = select(*columns).where(FileRow.series_key == series_key).order_by(FileRow.path)
        rows = self._session.execute(query).all()
        self._session.execute(delete(StackRow).where(StackRow.series_key == series_key))
        if not rows:  # all its files are gone
            return
        # Every row of a series has a header: series_key and header are written together.
        images = [Image(place, DicomHeader.from_json(row.header or "")) for place, row in enumerate(rows)]
        paths = [row.path for row in rows]
        assessment = assess_series(images, lambda place: self._export / self._seal.decrypt(paths[place]), self._rules)
        copies = [paths[place] for place in assessment.copies]
        used = [path for place, path in enumerate(paths) if place not in set(assessment.copies)]
        for path in copies:
            self._session.execute(update(FileRow).where(FileRow.path == path).values(code=Reason.S_DUPLICATE.name))
        # An image that was a copy in the scan before is used again once the other file is gone.
        self._session.execute(update(FileRow).where(FileRow.path.in_(used)).values(code=None))
        quiet_s = min(self._quiet_s(row.mtime_ns, row.since_s) for row in rows)
        for stack in assessment.stacks:
            self._write_stack(stack, series_key, paths, quiet_s)

    def _quiet_s(self, mtime_ns: int, since_s: float) -> float:
        """Computes for how long a file has not changed.

        A time stamp in the future proves nothing, because the export's machine may have another clock. Then the time
        since the scan that first met the file counts.
        """
        return max(self._now_s - since_s, self._now_s - mtime_ns / 1e9)

    def _write_stack(self, assessed: AssessedSeries, series_key: str, paths: Sequence[bytes], quiet_s: float) -> None:
        state = assessed.state
        incomplete = {Reason.Q_GAP, Reason.Q_INCOMPLETE} & set(assessed.reasons)
        if quiet_s < self._rules.settle_s or (incomplete and quiet_s < self._rules.incomplete_after_s):
            state = SeriesState.WAITING
        images = assessed.stack.images
        head = images[0].header
        slices = sorted(image.header.slice_key for image in images)
        # From the slices it holds, not from its place in the series: another file must not rename its other stacks.
        identity = hashlib.sha256("|".join(slices).encode()).hexdigest()
        stack_key = self._secret.series(f"{series_key}|{head.study_key}|{identity}")
        row = {
            "stack_key": stack_key,
            "series_key": series_key,
            "study_key": head.study_key,
            "patient_key": head.patient_key,
            "accession_key": head.accession_key,
            "state": state.name,
            "reasons": " ".join(reason.name for reason in assessed.reasons),
            "warnings": " ".join(warning.name for warning in assessed.warnings),
            "sheet": json.dumps([[line.criterion, line.value, line.points] for line in assessed.stack.sheet]),
            "score": assessed.stack.score,
            "started_s": assessed.stack.started_s,
            "series_number": head.series_number,
            "slices": len(slices),
            "chosen": False,
            "content_hash": assessed.content_hash if state is SeriesState.READY else "",
            "rules": self._rules.digest,
        }
        self._session.execute(insert(StackRow), [row])
        if state is SeriesState.READY:
            places = [
                {"stack_key": stack_key, "place": place, "path": paths[image.file], "slice_key": image.header.slice_key}
                for place, image in enumerate(images)
            ]
            self._session.execute(insert(SliceRow), places)

    def _choose(self) -> None:
        """Marks one READY stack a study; the others stay READY, unchosen.

        The highest score decides, then the earliest image, then the lowest series number: a native series comes before
        one with contrast, which no header may have declared. Last comes the hash of the files' bytes, which is the same
        under any secret.
        """
        ready = self._session.execute(
            select(StackRow.stack_key, StackRow.study_key, StackRow.chosen)
            .where(StackRow.state == SeriesState.READY.name)
            .order_by(
                StackRow.study_key,
                StackRow.score.desc(),
                StackRow.started_s.is_(None),
                StackRow.started_s,
                StackRow.series_number < 0,
                StackRow.series_number,
                StackRow.content_hash,
            )
        ).all()
        studies: set[str] = set()
        for row in ready:
            best = row.study_key not in studies
            studies.add(row.study_key)
            if row.chosen != best:
                change = update(StackRow).where(StackRow.stack_key == row.stack_key).values(chosen=best)
                self._session.execute(change)
