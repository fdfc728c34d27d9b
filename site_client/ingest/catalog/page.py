"""The whole catalog as one HTML page for the eyes of this site. It is a file on this machine, and is never sent.

The page loads nothing and runs no script. It holds pseudonyms, folders of the export and small pictures of patients, so
the file has mode 0600.
"""

import json
import os
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from site_client.ingest.catalog.dataset import chosen_stacks
from site_client.ingest.catalog.explain import Explainer, folders_of
from site_client.ingest.catalog.questions import PUBLISHED_SHARES, shares
from site_client.ingest.catalog.report import ScanReport, held_lines, opt_out_lines
from site_client.ingest.catalog.tables import StackRow
from site_client.ingest.catalog.thumbnails import picture
from site_client.ingest.reasons import Reason, SeriesState, Warn

_SHOWN_PLACE: Final = 0.6  # of the stack from its caudal end: a slice through the ventricles
_STYLE: Final = (
    "body{font:15px/1.5 sans-serif;margin:2rem;max-width:75rem}table{border-collapse:collapse;margin:0 0 1.5rem}"
    "th,td{border-bottom:1px solid #ccc;padding:.3rem .6rem;text-align:left;vertical-align:top}"
    "td.n{text-align:right}img{background:#000;display:block}.k{font-family:monospace;overflow-wrap:anywhere}"
)
_WORDS: Final[Mapping[str, str]] = {
    **{reason.name: reason.value for reason in Reason},
    **{warning.name: warning.value for warning in Warn},
}


def catalog_page(session: Session, explainer: Explainer, report: ScanReport, with_pictures: bool) -> Iterator[str]:
    """Writes the page in pieces, so that the pictures of ten thousand series are never in memory together.

    Args:
        session: Of the catalog.
        explainer: On the same session.
        report: The catalog's counts.
        with_pictures: Decode one slice of each series.

    Yields:
        HTML.
    """
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>hemofed catalog</title>'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'\"><style>{_STYLE}</style></head><body><h1>Catalog of this site</h1>"
        "<p>This page holds pictures of patients. It stays on this machine.</p>"
    )
    yield (
        f"<p>{report.studies_ready} studies ready, {report.series_ready} series ready, {report.series_waiting} still "
        f"arriving. {report.labels.studies_labelled} studies with labels, {report.labels.studies_unlabelled} without, "
        f"{report.labels.studies_in_conflict} in conflict.</p>"
    )
    yield from _counts("Series not used", report.series)
    yield from _counts("Files not used", report.files)
    yield from _counts("Series used, but noticed", report.warnings)
    yield from _match(session, report)
    yield '<h2>Series</h2><table><tr><th>slice</th><th>series</th><th>verdict</th><th class="n">score</th></tr>'
    order = (StackRow.study_key, StackRow.chosen.desc(), StackRow.score.desc(), StackRow.stack_key)
    for row in session.scalars(select(StackRow).order_by(*order)):
        yield _series(row, explainer, with_pictures)
    yield "</table></body></html>\n"


def write_privately(path: Path, pieces: Iterator[str]) -> None:
    """Writes a file that only the caller can read, whole or not at all.

    Raises:
        OSError: It cannot be written there.
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    # Never through a link, and never into a file that another user has opened before.
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.writelines(pieces)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def _counts(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    if counts:
        yield f"<h2>{title}</h2>" + _table(
            ("count", "code", "meaning"),
            [(str(count), name, _WORDS.get(name, "")) for name, count in sorted(counts.items())],
        )


def _match(session: Session, report: ScanReport) -> Iterator[str]:
    yield "<h2>Labels and images</h2>"
    rows = []
    for label, (positive, known) in shares([stack.study_cells for stack in chosen_stacks(session)]).items():
        published = PUBLISHED_SHARES[label]
        share = f"{100 * positive / known:.1f} %" if known else ""
        span = f"{100 * published.low:.1f} to {100 * published.high:.1f} %"
        rows.append((label, str(positive), str(known), share, span))
    yield _table(("label", "studies with it", "of known", "share", "published"), rows)
    yield "<p>Published: cohorts that were not chosen by findings (Chilamkurthy et al. 2018; Abrigo et al. 2023).</p>"
    sentences = (
        *(question.text for question in report.questions),
        *report.labels.refused_files,
        *(held_lines(report.labels.held) if report.labels.held is not None else ()),
        *opt_out_lines(report.opt_outs),
    )
    yield "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _series(row: StackRow, explainer: Explainer, with_pictures: bool) -> str:
    files = explainer.files_of(row)
    reasons = row.reasons.split()
    image = ""
    # Burned-in text may be a name: it is looked at by the archive's own viewer, not copied into a page.
    if with_pictures and files.paths and Reason.R_BURNED_IN.name not in reasons and explainer.export is not None:
        shown = picture(explainer.export / files.paths[round(_SHOWN_PLACE * (len(files.paths) - 1))])
        image = shown.name if isinstance(shown, Reason) else _image(shown)
    folders = folders_of(files.paths)
    words = "".join(f"<br>{code}: {escape(_WORDS[code])}" for code in (*reasons, *row.warnings.split()))
    wait = f"<br>{explainer.waits_until(row, files)}" if row.state == SeriesState.WAITING.name else ""
    sheet = "".join(f"<br>{escape(str(name))} {escape(str(value))}: {points}" for name, value, points in _sheet(row))
    return (
        f'<tr><td>{image}</td><td class="k">{row.stack_key}<br>study {row.study_key}<br>'
        f"{escape(', '.join(folders[:3]))}<br>{row.slices} slices</td>"
        f"<td>{escape(explainer.verdict(row))}{words}{wait}</td><td>{row.score} points{sheet}</td></tr>"
    )


def _sheet(row: StackRow) -> list[tuple[object, object, int]]:
    return [(name, value, points) for name, value, points in json.loads(row.sheet)]


def _image(data: bytes) -> str:
    return f'<img alt="one slice in the brain window" src="data:image/png;base64,{b64encode(data).decode()}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"
