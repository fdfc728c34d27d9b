"""`hemofed-site catalog`: one scan, then its counts as a page or as JSON."""

import json
from contextlib import closing
from dataclasses import asdict

from site_client.config import SiteSettings
from site_client.ingest.catalog.catalog import ScanReport, open_catalog
from site_client.ingest.catalog.report import SeriesSummary


def catalog_text(settings: SiteSettings, with_series: bool) -> str:
    """Scans the export and formats a page for people.

    Args:
        settings: of this site.
        with_series: list every stack with its score sheet, too.

    Raises:
        IngestError: the export or the catalog cannot be read.
    """
    report, series = _scan(settings)
    lines = [report.as_text()]
    for summary in series if with_series else []:
        codes = " ".join((*summary.reasons, *summary.warnings))
        keys = f"study {summary.study_key}  series {summary.series_key}"
        lines.append(f"{keys}  {summary.state:<12}  {summary.slices:>4} slices  {codes}".rstrip())
        sheet = ", ".join(f"{criterion} {value}: {points}" for criterion, value, points in summary.sheet)
        lines.append(f"    {summary.score} points: {sheet}" if sheet else "    not scored")
    return "\n".join(lines)


def catalog_json(settings: SiteSettings, with_series: bool) -> str:
    """Does the same as `catalog_text` and gives one JSON object.

    Raises:
        IngestError: the export or the catalog cannot be read.
    """
    report, series = _scan(settings)
    table = report.as_json()
    # Under its own key: `series` holds the counts by reason.
    if with_series:
        table["listed"] = [asdict(summary) for summary in series]
    return json.dumps(table, indent=2, sort_keys=True)


def _scan(settings: SiteSettings) -> tuple[ScanReport, list[SeriesSummary]]:
    with closing(open_catalog(settings)) as catalog:
        report = catalog.scan(settings.folders.export, settings.folders.labels)
        return report, catalog.series()
