"""What `hemofed-site catalog` does: one scan, then its counts as a page or as JSON."""

import json
from contextlib import closing
from dataclasses import asdict

from site_client.config import SiteSettings
from site_client.ingest.catalog.catalog import ScanReport, open_catalog
from site_client.ingest.catalog.report import SeriesSummary


def catalog_text(settings: SiteSettings, with_series: bool) -> str:
    """The page."""
    report, series = _scan(settings)
    lines = [report.as_text()]
    if with_series:
        lines += [line for summary in series for line in _lines(summary)]
    return "\n".join(lines)


def catalog_json(settings: SiteSettings, with_series: bool) -> str:
    """The same as one JSON object."""
    report, series = _scan(settings)
    table = report.as_json()
    if with_series:
        table["listed"] = [asdict(summary) for summary in series]
    return json.dumps(table, indent=2, sort_keys=True)


def _scan(settings: SiteSettings) -> tuple[ScanReport, list[SeriesSummary]]:
    with closing(open_catalog(settings)) as catalog:
        report = catalog.scan(settings.folders.export, settings.folders.labels)
        return report, catalog.series()


def _lines(summary: SeriesSummary) -> list[str]:
    notes = " ".join((*summary.reasons, *summary.warnings))
    head = f"study {summary.study_key}  series {summary.series_key}  {summary.state:<12}  {summary.slices:>4} slices"
    sheet = ", ".join(f"{criterion} {value}: {points}" for criterion, value, points in summary.sheet)
    return [f"{head}  {notes}".rstrip(), f"    {summary.score} points: {sheet}" if sheet else "    not scored"]
