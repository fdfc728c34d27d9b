"""The report of a scan, in counts. It is safe to log and to show: it holds no name and no path of an image."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from site_client.ingest.catalog import label_rows, opt_outs
from site_client.ingest.catalog.dataset import NO_CELLS, LabelState, chosen_stacks, shared_accessions
from site_client.ingest.catalog.label_rows import LabelsHeld
from site_client.ingest.catalog.opt_outs import OptOutCounts
from site_client.ingest.catalog.questions import MatchCounts, MatchQuestion, ask
from site_client.ingest.catalog.tables import FileRow, LabelRow, SliceRow, StackRow
from site_client.ingest.labels.files import LabelFileState
from site_client.ingest.reasons import Reason, SeriesState, Warn


@dataclass(frozen=True)
class SeriesSummary:
    """One stack as assessed. `sheet`: criterion, value, points. Keys are pseudonyms, and stay on this site."""

    study_key: str
    series_key: str
    state: str
    chosen: bool
    slices: int
    score: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    sheet: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class LabelFileReport:
    """The outcome of one label file, by its number. `state`: LabelFileState's name."""

    number: int
    state: str
    rows: int
    unreadable_cells: int
    unreadable_rows: int
    first_unreadable: int


@dataclass(frozen=True)
class LabelReport:
    """Counts of labels and of images that they match. Studies are counted among those with a chosen series."""

    studies_labelled: int
    studies_unlabelled: int
    studies_in_conflict: int
    slices_labelled: int
    slices_unlabelled: int
    labels_without_images: int
    labels_of_two_studies: int
    rows: int
    duplicate_rows: int
    unreadable_cells: int
    refused_files: tuple[str, ...]
    files: tuple["LabelFileReport", ...]
    held: LabelsHeld | None


@dataclass(frozen=True)
class ScanReport:
    """Counts by Reason name: `files` that are no usable images, `series` (stacks) that are not trained on."""

    files_seen: int
    files_read: int
    seconds: float
    series_ready: int
    series_waiting: int
    studies_ready: int
    files: Mapping[str, int]
    series: Mapping[str, int]
    warnings: Mapping[str, int]
    labels: LabelReport
    opt_outs: OptOutCounts
    questions: tuple[MatchQuestion, ...]

    def as_json(self) -> dict[str, object]:
        """Gives plain values for json.dumps."""
        return asdict(self)

    def as_text(self) -> str:
        """Formats a page for people."""
        labels = self.labels
        lines = [
            f"{self.files_seen} files, {self.files_read} read in {self.seconds:.1f} s",
            f"series ready to train on: {self.series_ready}, of studies: {self.studies_ready}"
            + (f"; still arriving: {self.series_waiting}" if self.series_waiting else ""),
            *_table("series not used", self.series, {reason.name: reason.value for reason in Reason}),
            *_table("files not used", self.files, {reason.name: reason.value for reason in Reason}),
            *_table("series used, but noticed", self.warnings, {warning.name: warning.value for warning in Warn}),
            f"labels: {labels.studies_labelled} studies with, {labels.studies_unlabelled} without, "
            f"{labels.studies_in_conflict} in conflict; {labels.slices_labelled} slices with, "
            f"{labels.slices_unlabelled} without",
            f"label files: {labels.rows} rows, {labels.duplicate_rows} repeated, {labels.unreadable_cells} unreadable "
            f"cells, {labels.labels_without_images} labels without an image",
            *(_file_line(file) for file in labels.files),
            *(f"  refused: {sentence}" for sentence in labels.refused_files),
            *held_lines(labels.held),
            *opt_out_lines(self.opt_outs),
            *(["questions:"] if self.questions else []),
            *(f"  {question.text}" for question in self.questions),
        ]
        return "\n".join(lines)


def _file_line(file: LabelFileReport) -> str:
    words = [f"  label file {file.number}: {LabelFileState[file.state].value}"]
    if file.rows:
        words.append(f"{file.rows} rows")
    if file.unreadable_rows or file.unreadable_cells:
        words.append(
            f"{file.unreadable_rows} rows and {file.unreadable_cells} cells not understood, the first in line "
            f"{file.first_unreadable}"
        )
    return ", ".join(words)


def held_lines(held: LabelsHeld | None) -> list[str]:
    """Says in words which labels wait for a person."""
    if held is None:
        return []
    return [
        f"labels wait for a person: {held.withdrawn} of {held.in_force} known ones would lose a label, and the files "
        f"now hold {held.offered}. Training uses the known ones until then.",
        "  Correct the files, or type: hemofed-site catalog confirm labels",
    ]


def opt_out_lines(counts: OptOutCounts) -> list[str]:
    """Says in words how many studies are left out because their patients opted out."""
    if not counts.entries:
        return []
    lines = [f"opted out: {counts.entries} entries, which keep {counts.studies} usable studies out of training"]
    if counts.missing:
        lines += [
            f"  {counts.missing} of them are no longer in the lists and stay in force.",
            "  Correct the lists, or type: hemofed-site catalog confirm opt-outs",
        ]
    return lines


def _table(title: str, counts: Mapping[str, int], words: Mapping[str, str]) -> list[str]:
    if not counts:
        return []
    return [f"{title}:", *(f"  {count:>7}  {name:<18} {words[name]}" for name, count in sorted(counts.items()))]


def scan_report(session: Session, files_seen: int, files_read: int, seconds: float) -> ScanReport:
    """Counts the rows as they are now. The first three figures are those of the scan itself."""
    files = session.execute(select(FileRow.code, func.count()).group_by(FileRow.code)).all()
    stacks = session.execute(select(StackRow.state, StackRow.chosen, StackRow.reasons, StackRow.warnings)).all()
    series: Counter[str] = Counter()
    warnings: Counter[str] = Counter()
    for stack in stacks:
        # A stack that waits has no settled reasons: tomorrow the missing slices may be there.
        if stack.state != SeriesState.WAITING.name:
            series.update(_reasons(stack.state, stack.chosen, stack.reasons))
        # A warning about an unused stack would only distract.
        warnings.update(stack.warnings.split() if stack.chosen else [])
    opted_out = opt_outs.counts(session)
    labels, questions = _label_report(session)
    return ScanReport(
        files_seen=files_seen,
        files_read=files_read,
        seconds=round(seconds, 3),
        series_ready=sum(stack.state == SeriesState.READY.name for stack in stacks),
        series_waiting=sum(stack.state == SeriesState.WAITING.name for stack in stacks),
        studies_ready=sum(stack.chosen for stack in stacks) - opted_out.studies,
        files={code: count for code, count in files if code is not None},
        series=dict(series),
        warnings=dict(warnings),
        labels=labels,
        opt_outs=opted_out,
        questions=questions,
    )


def series_summaries(session: Session) -> list[SeriesSummary]:
    """Lists all stacks, the best of a study first."""
    query = select(StackRow).order_by(StackRow.study_key, StackRow.score.desc(), StackRow.stack_key)
    return [
        SeriesSummary(
            study_key=stack.study_key,
            series_key=stack.stack_key,
            state=SeriesState.NOT_SELECTED.name if _lost(stack.state, stack.chosen) else stack.state,
            chosen=stack.chosen,
            slices=stack.slices,
            score=stack.score,
            reasons=_reasons(stack.state, stack.chosen, stack.reasons),
            warnings=tuple(stack.warnings.split()),
            sheet=tuple((criterion, value, points) for criterion, value, points in json.loads(stack.sheet)),
        )
        for stack in session.scalars(query)
    ]


def _lost(state: str, chosen: bool) -> bool:
    """Tells whether a sound stack lost against another one of its study. No row says so: the choice may change."""
    return state == SeriesState.READY.name and not chosen


def _reasons(state: str, chosen: bool, reasons: str) -> tuple[str, ...]:
    return (Reason.R_LOWER_SCORE.name,) if _lost(state, chosen) else tuple(reasons.split())


def _label_report(session: Session) -> tuple[LabelReport, tuple[MatchQuestion, ...]]:
    file_counts = label_rows.counts(session)
    files = file_counts.files
    studies: Counter[LabelState] = Counter()
    slices: Counter[bool] = Counter()
    stacks = list(chosen_stacks(session))
    for stack in stacks:
        studies[stack.label_state] += 1
        slices.update(cells != NO_CELLS for cells in stack.slice_cells)
    # Labels without an image usually mean that a UID was altered on the way: worth a line in the report.
    total = session.scalar(select(func.count()).select_from(LabelRow)) or 0
    matching = select(LabelRow.key).where(
        LabelRow.key.in_(select(SliceRow.slice_key))
        | LabelRow.key.in_(select(StackRow.study_key))
        | LabelRow.key.in_(select(StackRow.accession_key))
    )
    matched = session.scalar(select(func.count()).select_from(matching.subquery())) or 0
    ambiguous = select(func.count()).select_from(LabelRow).where(LabelRow.key.in_(shared_accessions()))
    report = LabelReport(
        studies_labelled=studies[LabelState.LABELLED],
        studies_unlabelled=studies[LabelState.UNLABELLED],
        studies_in_conflict=studies[LabelState.CONFLICT],
        slices_labelled=slices[True],
        slices_unlabelled=slices[False],
        labels_without_images=total - matched,
        labels_of_two_studies=session.scalar(ambiguous) or 0,
        rows=sum(file.rows for file in files if file.state is LabelFileState.READ),
        duplicate_rows=sum(file.duplicates for file in files),
        unreadable_cells=sum(file.unreadable_cells + file.unreadable_rows for file in files),
        refused_files=tuple(file.sentence for file in files if file.sentence),
        files=tuple(
            LabelFileReport(
                file.number,
                file.state.name,
                file.rows,
                file.unreadable_cells,
                file.unreadable_rows,
                file.first_unreadable,
            )
            for file in files
        ),
        held=label_rows.held(session),
    )
    waiting = session.scalar(
        select(func.count()).select_from(StackRow).where(StackRow.state == SeriesState.WAITING.name)
    )
    matched_counts = MatchCounts(
        labels=total,
        # The slices of a series that is still arriving are not known yet.
        labels_without_images=0 if waiting else report.labels_without_images,
        labels_of_two_studies=report.labels_of_two_studies,
        contradicted=file_counts.contradicted,
        not_understood=report.unreadable_cells,
    )
    return report, ask(stacks, matched_counts)
