"""What a scan found, in counts. Safe to log and to show: no key, no name, no path of an image."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from site_client.ingest.reasons import Reason, Warn


@dataclass(frozen=True)
class SeriesSummary:
    """One stack as judged. `sheet`: criterion, value, points. Keys are pseudonyms: for this site's eyes only."""

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
class LabelReport:
    """How labels and images meet. Studies are counted among those with a chosen series."""

    studies_labelled: int
    studies_unlabelled: int
    studies_in_conflict: int
    slices_labelled: int
    slices_unlabelled: int
    labels_without_images: int
    rows: int
    duplicate_rows: int
    unreadable_cells: int
    refused_files: tuple[str, ...]


@dataclass(frozen=True)
class ScanReport:
    """Counts by Reason name: `files` that are not images to use, `series` (stacks) that are not trained on."""

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

    def as_json(self) -> dict[str, object]:
        """Plain values for json.dumps."""
        return asdict(self)

    def as_text(self) -> str:
        """A page for people."""
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
            *(f"  refused: {sentence}" for sentence in labels.refused_files),
        ]
        return "\n".join(lines)


def _table(title: str, counts: Mapping[str, int], words: Mapping[str, str]) -> list[str]:
    if not counts:
        return []
    return [f"{title}:", *(f"  {count:>7}  {name:<18} {words[name]}" for name, count in sorted(counts.items()))]
