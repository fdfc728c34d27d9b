"""From a file, study or series to its verdict and back, for people of this site: the text holds paths and pseudonyms.

A query is a path, a UID, a pseudonym, an accession number or a patient ID. It is hashed and compared: the catalog holds
none of them in clear but paths, which are sealed.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from federation.labels import LABELS
from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from site_client.ingest.catalog import label_rows
from site_client.ingest.catalog.dataset import LabelledStack, LabelState, chosen_stacks, shared_accessions
from site_client.ingest.catalog.listed import expecting_listed
from site_client.ingest.catalog.opt_outs import has_opted_out
from site_client.ingest.catalog.remedies import remedy
from site_client.ingest.catalog.tables import FactRow, FileRow, StackRow
from site_client.ingest.catalog.thumbnails import measure_content
from site_client.ingest.files.addresses import as_path
from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.wording import accession_number
from site_client.ingest.labels.readings import CONFLICT
from site_client.ingest.labels.spelling import UNKNOWN
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason, SeriesState, Warn
from site_client.ingest.rules import Rules
from site_client.ingest.series.assess import NEVER_DECODED
from site_client.ingest.series.filters import HardFilter, content_filters, geometry_filters, header_filters
from site_client.ingest.series.stacks import Image, Stack, split

_FILES_SHOWN = 20
_CONTAINERS = 500  # a query
_COPY = Reason.S_DUPLICATE.name
_CELL_WORDS = {0: "no", 1: "yes", CONFLICT: "conflict", UNKNOWN: "unknown"}


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one stack as the catalog knows them. `stack` is None when the headers no longer give the stack."""

    paths: tuple[str, ...]
    stack: Stack | None
    images: tuple[Image, ...]
    seen_since_s: float


class Explainer:
    """Answers queries about one catalog, inside a session. It reads pixels only of a series that it explains."""

    def __init__(self, session: Session, secret: SiteSecret, rules: Rules, now_s: float) -> None:
        """Takes a catalog that has scanned an export."""
        self._session, self._secret, self._rules, self._now_s = session, secret, rules, now_s
        self._seal = secret.path_seal()
        export = session.get(FactRow, "export")
        self.export = Path(self._seal.decrypt(export.value)) if export is not None else None

    @cached_property
    def _chosen(self) -> dict[str, LabelledStack]:
        """The chosen stacks by study; those of patients who opted out are not among them."""
        return {stack.row.study_key: stack for stack in chosen_stacks(self._session)}

    def explain(self, query: str) -> list[str]:
        """Explains whatever the query names.

        Returns:
            Lines of text; one line that says so when the catalog knows nothing by that name.
        """
        if self.export is None:
            return ["no export was scanned yet: run hemofed-site catalog first"]
        for answer in (self._file, self._folder, self._stacks):
            lines = answer(query)
            if lines:
                return lines
        return [
            "the last scan met nothing by that name: expected a path of the export, a UID, a pseudonym, an accession "
            "number or a patient ID",
            f"the export is {self.export}; a file that came since then waits for the next scan",
        ]

    def files_of(self, row: StackRow) -> SeriesFiles:
        """Finds the files of a stack, and the stack itself as the headers give it."""
        columns = (FileRow.path, FileRow.header, FileRow.since_s)
        query = select(*columns).where(FileRow.series_key == row.series_key).order_by(FileRow.path)
        # A copy is in no stack: without it the headers split as they did in the scan.
        files = self._session.execute(query.where(or_(FileRow.code.is_(None), FileRow.code != _COPY))).all()
        images = [Image(place, DicomHeader.from_json(file.header or "")) for place, file in enumerate(files)]
        images = expecting_listed(self._session, row.series_key, images)
        stacks = split(images, self._rules) if images else []
        sheet = json.loads(row.sheet)
        same = (
            stack
            for stack in stacks
            if len(stack.images) == row.slices
            and [[line.criterion, line.value, line.points] for line in stack.sheet] == sheet
            and set(stack.reasons) <= {Reason[name] for name in row.reasons.split()}
        )
        stack = next(same, None)
        chosen = stack.images if stack is not None else images
        return SeriesFiles(
            tuple(self._seal.decrypt(files[image.file].path) for image in chosen),
            stack,
            tuple(chosen),
            max((file.since_s for file in files), default=self._now_s),
        )

    def waits_until(self, row: StackRow, files: SeriesFiles) -> str:
        """Says until when a stack waits, in local time."""
        incomplete = {Reason.Q_GAP.name, Reason.Q_INCOMPLETE.name} & set(row.reasons.split())
        wait_s = self._rules.incomplete_after_s if incomplete else self._rules.settle_s
        end = datetime.fromtimestamp(files.seen_since_s + wait_s).astimezone()
        cause = "for the rest of its images" if incomplete else "for two scans that find it unchanged"
        return f"waits {cause}, until a scan after {end:%Y-%m-%d %H:%M:%S}"

    def stack_lines(self, row: StackRow) -> Iterator[str]:
        """Explains one stack: verdict, files, filters, score sheet, remedy."""
        files = self.files_of(row)
        yield f"series {row.stack_key} of study {row.study_key}, patient {row.patient_key}"
        yield f"  verdict: {self.verdict(row)}"
        if row.state == SeriesState.WAITING.name:
            yield f"  {self.waits_until(row, files)}"
        for name in row.reasons.split():
            yield f"  {name}: {Reason[name].value}"
            yield f"    to make it READY: {remedy(Reason[name])}"
        for name in row.warnings.split():
            yield f"  {name}: {Warn[name].value}"
        folders = folders_of(files.paths)
        yield f"  {len(files.paths)} images in {', '.join(folders[:3])}{' and others' if len(folders) > 3 else ''}"
        yield "  hard filters:"
        filters = self._filters(row, files)
        # Other series and the pixels of all slices decide some codes, which nothing here can measure again.
        failed = {line.reason.name for line in filters if not line.passed}
        others = [Reason[name] for name in row.reasons.split() if name not in failed]
        filters += [HardFilter(reason, reason.value, "so in the last scan", "none", False) for reason in others]
        yield from (_filter_line(line) for line in filters)
        yield f"  score sheet: {row.score} points"
        yield from (f"    {criterion:<14} {value}: {points}" for criterion, value, points in json.loads(row.sheet))

    def _filters(self, row: StackRow, files: SeriesFiles) -> list[HardFilter]:
        filters = header_filters(files.images)
        if files.stack is None:
            return filters
        filters += geometry_filters(files.stack, self._rules)
        names = set(row.reasons.split())
        if names & {reason.name for reason in NEVER_DECODED} or not self._rules.check_content:
            return filters
        assert self.export is not None  # `explain` and the page ask only after a scan
        measured = measure_content([self.export / path for path in files.paths])
        if isinstance(measured, Reason):
            return [*filters, HardFilter(measured, "decoding of a sample", measured.name, "no failure", False)]
        return [*filters, *content_filters(measured)]

    def verdict(self, row: StackRow) -> str:
        """Says in words whether a stack is trained on, by its state, its labels and the opt-outs."""
        if row.chosen:
            stack = self._chosen.get(row.study_key)
            if stack is None:
                return "READY and chosen, but left out: the patient opted out"
            words = {
                LabelState.LABELLED: "READY, chosen and labelled: trained on",
                LabelState.UNLABELLED: "READY and chosen, but without a label: not trained on",
                LabelState.CONFLICT: "READY and chosen, but its labels contradict each other: not trained on",
            }
            return words[stack.label_state]
        if row.state == SeriesState.READY.name:
            return f"READY, not chosen ({Reason.R_LOWER_SCORE.name}): {Reason.R_LOWER_SCORE.value}"
        return SeriesState[row.state].value

    def _study_lines(self, study_key: str) -> Iterator[str]:
        yield f"study {study_key}"
        stack = self._chosen.get(study_key)
        opted_out = select(StackRow.stack_key).where(StackRow.study_key == study_key, has_opted_out())
        if self._session.scalars(opted_out).first() is not None:
            yield "  its patient, the study or its accession number is on an opt-out list"
        if stack is not None:
            cells = ", ".join(
                f"{name} {_CELL_WORDS[cell]}" for name, cell in zip(LABELS, stack.study_cells, strict=True)
            )
            yield f"  labels: {cells}"
            known = sum(set(cells) != {UNKNOWN} for cells in stack.slice_cells)
            yield f"  slices with a label of their own: {known} of {len(stack.slice_cells)}"
            if stack.row.accession_key in set(self._session.scalars(shared_accessions())):
                yield "  its accession number stands for another study too, so labels by that number do not count"
            if stack.label_state is LabelState.CONFLICT:
                yield f"    to make it READY: {remedy(Reason.Q_LABEL_CONFLICT)}"
        if label_rows.held(self._session) is not None:
            yield "  the labels are those in force; others wait for your word (hemofed-site catalog confirm labels)"

    def _stacks(self, query: str) -> list[str]:
        keys = {
            query,
            self._secret.study(query),
            self._secret.series(query),
            self._secret.patient(query),
        }
        accession = self._secret.accession(accession_number(query))
        is_meant = or_(
            StackRow.study_key.in_(keys),
            StackRow.patient_key.in_(keys),
            StackRow.series_key.in_(keys),
            StackRow.stack_key.in_(keys),
            StackRow.accession_key == accession,
            StackRow.series_key.in_(self._series_with_slice(query)),
        )
        order = (StackRow.study_key, StackRow.chosen.desc(), StackRow.score.desc(), StackRow.stack_key)
        return self._lines_of(self._session.scalars(select(StackRow).where(is_meant).order_by(*order)).all())

    def _series_with_slice(self, query: str) -> Select[str | None]:
        return select(FileRow.series_key).where(FileRow.slice_key.in_((query, self._secret.slice(query))))

    def _lines_of(self, rows: Sequence[StackRow]) -> list[str]:
        lines: list[str] = []
        for study_key in dict.fromkeys(row.study_key for row in rows):
            lines += self._study_lines(study_key)
            for row in rows:
                if row.study_key == study_key:
                    lines += [f"  {line}" for line in self.stack_lines(row)]
        return lines

    def _label_file(self, query: str) -> list[str]:
        for file in label_rows.counts(self._session, self._secret).files:
            if os.path.realpath(file.path) == os.path.realpath(query):
                lines = [f"label file {file.number}: {file.state.value}, {file.rows} rows"]
                return lines + ([f"  {file.sentence}"] if file.sentence else [])
        return []

    def _file(self, query: str) -> list[str]:
        # A label table at the top of the export is a file of the export, too.
        labels = self._label_file(query)
        for path in self._relative(query):
            for address in (path, *self._inside_containers(path)):
                row = self._session.get(FileRow, self._seal.seal(address))
                if row is not None:
                    return [*labels, *self._file_lines(address, row), *self._series_lines(self._series_of(row))]
        return labels

    def _inside_containers(self, path: str) -> Iterator[str]:
        """Yields the addresses of members and frames that people know by this path."""
        for sealed in self._session.scalars(select(FileRow.path).where(FileRow.container.is_not(None))):
            address = self._seal.decrypt(sealed)
            if as_path(address) == path:
                yield address

    def _series_of(self, row: FileRow) -> list[str]:
        """Lists the series of a file, or of all that it holds."""
        series, waiting = {row.series_key}, [row.path]
        while waiting:
            inside = select(FileRow.path, FileRow.series_key).where(FileRow.container.in_(waiting[:_CONTAINERS]))
            held = self._session.execute(inside).all()
            waiting = [*waiting[_CONTAINERS:], *(item.path for item in held if item.series_key is None)]
            series.update(item.series_key for item in held)
        return sorted(key for key in series if key is not None)

    def _folder(self, query: str) -> list[str]:
        wanted = tuple("" if path == "." else f"{path}/" for path in self._relative(query))
        if not wanted:
            return []
        rows = self._session.execute(select(FileRow.path, FileRow.series_key, FileRow.code)).all()
        inside = [
            (path, row) for row in rows for path in (as_path(self._seal.decrypt(row.path)),) if path.startswith(wanted)
        ]
        unused = [(path, row.code) for path, row in inside if row.code is not None]
        lines = [f"{len(inside)} files, {len(unused)} of them not used"] if inside else []
        lines += [f"  {path}: {code}, {Reason[code].value}" for path, code in unused[:_FILES_SHOWN]]
        lines += [f"  and {len(unused) - _FILES_SHOWN} others"] if len(unused) > _FILES_SHOWN else []
        return lines + self._series_lines(sorted({row.series_key for _, row in inside if row.series_key}))

    def _series_lines(self, series_keys: Sequence[str | None]) -> list[str]:
        keys = [key for key in series_keys if key is not None]
        query = select(StackRow).where(StackRow.series_key.in_(keys)).order_by(StackRow.study_key, StackRow.stack_key)
        return self._lines_of(self._session.scalars(query).all())

    def _file_lines(self, path: str, row: FileRow) -> list[str]:
        lines = [f"file {as_path(path)}: {row.size_bytes} bytes"]
        if row.code is not None:
            lines += [f"  {row.code}: {Reason[row.code].value}", f"    to make it READY: {remedy(Reason[row.code])}"]
        if row.header is not None:
            header = DicomHeader.from_json(row.header)
            lines += [f"  {reason.name}: {reason.value}" for reason in header.reasons]
            lines += [f"  contrast: {header.contrast}; kernel: {header.kernel}; origin: {header.origin}"]
            lines += [] if header.reasons or row.code else ["  nothing speaks against the file itself"]
        return lines

    def _relative(self, query: str) -> Iterator[str]:
        """Yields the paths inside the export that a query may mean: as typed, and below the export."""
        assert self.export is not None  # `explain` answers before
        top = os.path.realpath(self.export)
        for typed in (query, os.path.join(top, query)):
            # The folder's links are resolved and the file's own is not: the walk does not follow it either.
            parent, name = os.path.split(os.path.abspath(typed))
            path = os.path.relpath(os.path.join(os.path.realpath(parent), name), top)
            if not path.startswith(".."):
                yield path


def folders_of(addresses: Sequence[str]) -> list[str]:
    """Lists the folders of images for people; an archive and a multi-frame file count as the folders that they are."""
    return sorted({os.path.dirname(as_path(address).partition(", frame ")[0]) or "." for address in addresses})


def _filter_line(line: HardFilter) -> str:
    mark = "ok  " if line.passed else "FAIL"
    return f"    {mark} {line.reason.name:<16} {line.criterion}: {line.measured} (limit: {line.limit})"
