"""`hemofed-site catalog` and its commands: scans, pages and lists for people of this site."""

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

from site_client.config import SiteSettings
from site_client.errors import IngestError, LabelsRefused
from site_client.ingest.catalog.catalog import Catalog, ScanReport, open_catalog
from site_client.ingest.catalog.label_rows import LabelsHeld
from site_client.ingest.catalog.report import SeriesSummary, held_lines, opt_out_lines


def catalog_text(settings: SiteSettings, with_series: bool) -> tuple[str, ScanReport]:
    """Scans the export and formats a page for people.

    Args:
        settings: Of this site.
        with_series: List every stack with its score sheet, too.

    Raises:
        IngestError: The export or the catalog cannot be read.
    """
    report, series = _scan(settings)
    lines = [report.as_text()]
    for summary in series if with_series else []:
        codes = " ".join((*summary.reasons, *summary.warnings))
        keys = f"study {summary.study_key}  series {summary.series_key}"
        lines.append(f"{keys}  {summary.state:<12}  {summary.slices:>4} slices  {codes}".rstrip())
        sheet = ", ".join(f"{criterion} {value}: {points}" for criterion, value, points in summary.sheet)
        lines.append(f"    {summary.score} points: {sheet}" if sheet else "    not scored")
    return "\n".join(lines), report


def catalog_json(settings: SiteSettings, with_series: bool) -> tuple[str, ScanReport]:
    """Does the same as `catalog_text` and gives one JSON object.

    Raises:
        IngestError: The export or the catalog cannot be read.
    """
    report, series = _scan(settings)
    table = report.as_json()
    # Under its own key: `series` holds the counts by reason.
    if with_series:
        table["listed"] = [asdict(summary) for summary in series]
    return json.dumps(table, indent=2, sort_keys=True), report


def refuse_failed_labels(report: ScanReport) -> None:
    """Ends a command after its output when labels need a person.

    Raises:
        LabelsRefused: A label file could not be read, or labels wait for a person's word.
    """
    failed = report.labels.refused_files
    if failed:
        raise LabelsRefused(f"{failed[0]} ({len(failed)} label files in all; hemofed-site catalog labels names them)")
    if report.labels.held is not None:
        raise LabelsRefused("known labels are missing in the label files; hemofed-site catalog confirm labels asks")


def labels_text(settings: SiteSettings) -> str:
    """Lists every label file by name, as the last scan left it. The names are for people of this site only.

    Raises:
        IngestError: The caller is another user, or the catalog cannot be read.
    """
    with own_catalog(settings) as catalog:
        lines = []
        for file in catalog.label_files():
            lines += [f"label file {file.number}: {file.path}", f"    {file.state.value}: {file.rows} rows"]
            if file.unreadable_rows or file.unreadable_cells:
                lines.append(
                    f"    {file.unreadable_rows} rows and {file.unreadable_cells} cells not understood, the first in "
                    f"line {file.first_unreadable}"
                )
            lines += [f"    {file.sentence}"] if file.sentence else []
        return "\n".join(lines) if lines else "the last scan met no label file; docs/HOSPITAL.md says where they belong"


def held_labels_text(settings: SiteSettings) -> tuple[LabelsHeld | None, str]:
    """Reads which labels wait for a person's word, and says it.

    Raises:
        IngestError: The caller is another user, or the catalog cannot be read.
    """
    with own_catalog(settings) as catalog:
        held = catalog.last_report().labels.held
    return held, "\n".join(held_lines(held)) if held is not None else "no labels wait for your word"


def confirm_held_labels(settings: SiteSettings, held: LabelsHeld) -> None:
    """Puts the held labels in force that a person has seen.

    Raises:
        LabelsRefused: A label file cannot be read, or the files changed meanwhile.
    """
    with own_catalog(settings) as catalog:
        catalog.confirm_labels(settings.folders.export, settings.folders.labels, held.stamp)


def missing_opt_outs_text(settings: SiteSettings) -> tuple[int, str]:
    """Reads how many entries the lists of patients who opted out no longer hold, and says it.

    Raises:
        IngestError: The caller is another user, or the catalog cannot be read.
    """
    with own_catalog(settings) as catalog:
        counts = catalog.last_report().opt_outs
    text = "\n".join(opt_out_lines(counts)) if counts.missing else "no entry of an opt-out list waits for your word"
    return counts.missing, text


def confirm_missing_opt_outs(settings: SiteSettings) -> None:
    """Lets entries go that the lists of patients who opted out no longer hold.

    Raises:
        OptOutsUnreadable: A list cannot be read.
    """
    with own_catalog(settings) as catalog:
        catalog.confirm_opt_outs(settings.folders.opt_outs)


def explain_text(settings: SiteSettings, query: str) -> str:
    """Explains a path, UID, pseudonym, accession number or patient ID by the last scan.

    Raises:
        IngestError: The caller is another user, or the catalog cannot be read.
    """
    with own_catalog(settings) as catalog:
        return "\n".join(catalog.explain(query))


def write_page(settings: SiteSettings, path: Path, with_pictures: bool) -> None:
    """Writes the whole catalog as an HTML page of mode 0600.

    Raises:
        IngestError: The caller is another user, the catalog cannot be read, or the page cannot or must not lie there.
    """
    folders = settings.folders
    for folder in (folders.export, folders.spool, folders.agent):
        if path.resolve().is_relative_to(folder.resolve()):
            raise IngestError("the page holds pictures of patients: write it outside of export, spool and agent folder")
    with own_catalog(settings) as catalog:
        try:
            catalog.write_page(path, with_pictures)
        except OSError as error:
            raise IngestError(f"the page cannot be written there ({error.strerror}); name another file") from None


@contextmanager
def own_catalog(settings: SiteSettings) -> Iterator[Catalog]:
    """Opens the catalog for a command that shows or changes more than counts.

    Raises:
        IngestError: The caller is neither root nor the trainer's user.
    """
    folder = settings.folders.trainer
    try:
        owner = folder.stat().st_uid
    except OSError:
        raise IngestError("expected a catalog, got none that you may read; run hemofed-site catalog first") from None
    # The folder's mode says the same to the kernel; the sentence is for a person who guesses at a traceback otherwise.
    if os.geteuid() not in (0, owner):
        raise IngestError("this command shows names and paths; run it as root or as the trainer's user")
    with closing(open_catalog(settings)) as catalog:
        yield catalog


def _scan(settings: SiteSettings) -> tuple[ScanReport, list[SeriesSummary]]:
    with closing(open_catalog(settings)) as catalog:
        folders = settings.folders
        report = catalog.scan(folders.export, folders.labels, folders.opt_outs)
        return report, catalog.series()
