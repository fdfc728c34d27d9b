"""A scan: it brings the catalog's rows up to date. Files come first, then series, then the choice of one a study.

Reader processes open the files, several at once; only the scan's own thread touches the catalog.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from site_client.ingest.catalog.file_pass import BATCH, FilePass, basis, batches
from site_client.ingest.catalog.known_files import PASSING
from site_client.ingest.catalog.listed import expecting_listed
from site_client.ingest.catalog.tables import FactRow, FileRow, ListedRow, SliceRow, StackRow
from site_client.ingest.files.addresses import parse_address
from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.reader import Reader
from site_client.ingest.files.readers import Readers, shared_readers
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason, SeriesState, Warn
from site_client.ingest.rules import Rules
from site_client.ingest.series.assess import AssessedSeries, Assessment, assess_series, await_series
from site_client.ingest.series.identity import with_one_parent
from site_client.ingest.series.stacks import Image


@dataclass(frozen=True)
class _SeriesFiles:
    """All files with one series UID, as the catalog knows them.

    `stamps`: the times of each file, archive or multi-frame file when its headers were read. `quiet_s`: for how long no
    scan saw a change.
    """

    series_key: str
    images: list[Image]
    paths: list[bytes]
    stamps: Mapping[Path, tuple[int, int]]
    quiet_s: float


class ExportScan:
    """One scan of one export, inside a session of the catalog."""

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
            session: Of the catalog. The scan commits to it in batches.
            export: The root folder.
            secret: Keys the pseudonyms and the paths.
            rules: Thresholds for series.
            now_s: Unix time of the scan.
            readers: Open the files; None: those of this process.
        """
        self._session, self._export, self._secret, self._rules, self._now_s = session, export, secret, rules, now_s
        self._readers = readers or shared_readers()
        self._seal = secret.path_seal()
        self._basis = basis(rules.digest, self._readers.decoders())
        self._files = FilePass(session, export, secret, rules, now_s, self._readers)
        self._patients: dict[str, set[str]] = {}
        self._claimed: dict[str, set[str]] = {}

    @property
    def files_seen(self) -> int:
        """Files that the walk met."""
        return self._files.files_seen

    @property
    def files_read(self) -> int:
        """Files whose header was read, because they were new or no longer as known."""
        return self._files.files_read

    def run(self) -> None:
        """Updates the rows of files, of series and of the choice.

        Raises:
            IngestError: The export cannot be listed. A fault of a file or a series becomes a reason code.
        """
        self._forget_another_export()
        # A clock that was wrong and was set back: or a series would wait until that time comes again.
        ahead = update(FileRow).where(FileRow.since_s > self._now_s)
        self._session.execute(ahead.values(since_s=self._now_s))
        self._files.run()
        self._patients, self._claimed = self._named_patients(), self._claimed_images()
        # In a fixed order: two scans of equal exports write equal rows.
        loaded = (series for key in sorted(self._unsettled_series()) if (series := self._series_files(key)) is not None)
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
            for table in (SliceRow, StackRow, ListedRow, FileRow):  # slices first: they refer to stacks
                self._session.execute(delete(table))
            self._session.merge(FactRow(name="export", value=place))
            self._session.flush()

    def _unsettled_series(self) -> set[str]:
        """Finds the series whose assessment is missing, still waits, or does not stand any more."""
        in_files = select(FileRow.series_key).where(FileRow.series_key.is_not(None)).distinct()
        of_stack = (StackRow.series_key, StackRow.study_key, StackRow.patient_key, StackRow.rules, StackRow.state)
        stacks = self._session.execute(select(*of_stack, StackRow.reasons)).all()
        again = {row.series_key for row in stacks if row.rules != self._basis or self._is_in_doubt(row)}
        # A series whose last file is gone has a stack and no file: it is among `again`, because its file was marked.
        return ({*self._session.scalars(in_files)} - {row.series_key for row in stacks}) | again

    def _is_in_doubt(self, stack: Any) -> bool:
        """Tells whether a stack's assessment may be another one although no file of its series changed."""
        reasons = set(stack.reasons.split())
        named = self._patients.get(stack.study_key, set())
        return (
            stack.state == SeriesState.WAITING.name
            or bool(reasons & PASSING)
            # Files of another series decide with it, as they do about the patient.
            or Reason.Q_UID_CLASH.name in reasons
            or stack.series_key in self._claimed
            or len(named) > 1
            or (bool(named) and stack.patient_key not in named)
        )

    def _named_patients(self) -> dict[str, set[str]]:
        """Gives for each study the patients that its files name."""
        patients: dict[str, set[str]] = {}
        for study, patient in self._session.execute(select(FileRow.study_key, FileRow.patient_key).distinct()):
            if study is not None and patient is not None:
                patients.setdefault(study, set()).add(patient)
        return patients

    def _claimed_images(self) -> dict[str, set[str]]:
        """Gives, by series, the images whose UID two studies claim, or two series of a study for two places.

        Two series of a study may hold one image: a converted one has the UID of its source.
        """
        in_series = func.count(FileRow.series_key.distinct())
        shared = select(FileRow.slice_key).where(FileRow.slice_key.is_not(None)).group_by(FileRow.slice_key)
        place = func.json_extract(FileRow.header, "$.position")
        claimed = (
            select(FileRow.slice_key)
            .where(FileRow.slice_key.in_(shared.having(in_series > 1)))
            .group_by(FileRow.slice_key)
            .having((func.count(FileRow.study_key.distinct()) > 1) | (func.count(place.distinct()) > 1))
        )
        images: dict[str, set[str]] = {}
        query = select(FileRow.series_key, FileRow.slice_key).where(FileRow.slice_key.in_(claimed))
        for series, image in self._session.execute(query):
            # A row has both keys or none.
            assert series is not None
            assert image is not None
            images.setdefault(series, set()).add(image)
        return images

    def _series_files(self, series_key: str) -> _SeriesFiles | None:
        """Loads all files of a series; None, and no rows are left of it, when all of them are gone."""
        columns = (FileRow.path, FileRow.since_s, FileRow.header, FileRow.mtime_ns, FileRow.ctime_ns)
        rows = self._session.execute(select(*columns).where(FileRow.series_key == series_key)).all()
        if not rows:
            self._session.execute(delete(StackRow).where(StackRow.series_key == series_key))
            return None
        # By the path in clear: of two copies the first by name is used, under any secret.
        paths, rows = zip(*sorted((self._seal.decrypt(row.path), row) for row in rows), strict=True)
        # Every row of a series has a header: series_key and header are written together.
        images = [Image(place, DicomHeader.from_json(row.header or "")) for place, row in enumerate(rows)]
        images = expecting_listed(self._session, series_key, images)
        quiet_s = min(self._now_s - row.since_s for row in rows)
        images = with_one_parent(images, self._patients, self._claimed.get(series_key, frozenset()))
        stamps = {parse_address(path).file: (row.mtime_ns, row.ctime_ns) for path, row in zip(paths, rows, strict=True)}
        return _SeriesFiles(series_key, images, [row.path for row in rows], stamps, quiet_s)

    def _assess(self, reader: Reader, series: _SeriesFiles) -> tuple[_SeriesFiles, Assessment]:
        """Assesses a series, in a thread of its own. While it may still be arriving, no file of it is opened."""
        rules = self._rules
        if rules.settle_s and series.quiet_s < max(rules.settle_s, rules.incomplete_after_s):
            arriving = await_series(series.images, rules)
            if series.quiet_s < rules.settle_s or arriving.lacks_slices:
                return series, arriving
        paths = series.paths
        path_of = lambda place: self._export / self._seal.decrypt(paths[place])  # noqa: E731
        assessment = assess_series(series.images, path_of, rules, reader)
        # Its headers were read minutes or hours ago: pixels that came since may be another patient's.
        if any(stack.state is SeriesState.READY for stack in assessment.stacks) and not self._is_unchanged(series):
            assessment = await_series(series.images, rules)
        return series, assessment

    def _is_unchanged(self, series: _SeriesFiles) -> bool:
        """Tells whether all files still have the times with which their headers were read."""
        for file, stamp in series.stamps.items():
            try:
                status = (self._export / file).stat(follow_symlinks=False)
            except OSError:
                return False
            if (status.st_mtime_ns, status.st_ctime_ns) != stamp:
                return False
        return True

    def _write_series(self, series: _SeriesFiles, assessment: Assessment) -> None:
        self._session.execute(delete(StackRow).where(StackRow.series_key == series.series_key))
        copies = [series.paths[place] for place in assessment.copies]
        used = [path for place, path in enumerate(series.paths) if place not in set(assessment.copies)]
        # An image that was a copy in the scan before is used again once the other file is gone.
        for paths, code in ((copies, Reason.S_DUPLICATE.name), (used, None)):
            for part in batches(paths, BATCH):
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
            "rules": self._basis,
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
