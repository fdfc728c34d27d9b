"""Rows -> what is handed out: the dataset of a round, and the report of a scan."""

import hashlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from site_client.errors import DatasetGone, IngestError
from site_client.ingest.catalog.report import LabelReport, ScanReport, SeriesSummary
from site_client.ingest.catalog.scan import Fresh
from site_client.ingest.catalog.tables import DatasetRow, FactRow, FileRow, LabelRow, SliceRow, StackRow
from site_client.ingest.labels.labels import CONFLICT, UNKNOWN, Labels
from site_client.ingest.pseudonym import PathSeal, SiteSecret
from site_client.ingest.reasons import Reason, SeriesState
from site_client.ingest.records import Dataset, PatientKey, SeriesKey, SeriesRecord, StudyKey, StudyRecord

DATASETS_KEPT = 8
_NO_CELLS = bytes([UNKNOWN] * 6)


def assemble(session: Session, secret: SiteSecret) -> Dataset:
    """All chosen stacks that have labels and no conflict."""
    root, seal = _export(session, secret), secret.path_seal()
    studies = []
    for stack, paths, stated, rows in _matched(session):
        study = study_cells(stated, rows)
        if _standing(study, rows) != "labelled":
            continue
        studies.append(_record(stack, tuple(root / seal.decrypt(path) for path in paths), rows, study))
    return Dataset(_hash(studies), tuple(studies))


def chosen(session: Session, secret: SiteSecret) -> tuple[StudyRecord, ...]:
    """All chosen stacks, ordered by study key, without any label: what a model may be asked about."""
    root, seal = _export(session, secret), secret.path_seal()
    found = []
    for stack, paths, _, _ in _matched(session):
        files = tuple(root / seal.decrypt(path) for path in paths)
        found.append(_record(stack, files, [_NO_CELLS] * len(files), _NO_CELLS))
    return tuple(found)


def keep(session: Session, dataset: Dataset, secret: SiteSecret, now_s: float) -> None:
    """Stores a dataset under its hash, and drops all but the newest few."""
    seal = secret.path_seal()
    body = [
        {
            "study": study.study_key,
            "patient": study.patient_key,
            "series": study.series.series_key,
            "content": study.series.content_hash,
            "files": [seal.seal(str(path)).hex() for path in study.series.files],
            "slices": study.slice_labels.tolist(),
            "labels": study.study_labels.tolist(),
        }
        for study in dataset.studies
    ]
    session.merge(DatasetRow(hash=dataset.hash, made_s=now_s, body=zlib.compress(json.dumps(body).encode(), 1)))
    session.flush()
    newest = select(DatasetRow.hash).order_by(DatasetRow.made_s.desc(), DatasetRow.hash).limit(DATASETS_KEPT)
    session.execute(delete(DatasetRow).where(DatasetRow.hash.not_in(newest)))


def recall(session: Session, pinned: str, secret: SiteSecret) -> Dataset:
    """The dataset with this hash, as it was. Its files may have changed since: read_volume notices."""
    row = session.get(DatasetRow, pinned)
    if row is None:
        raise DatasetGone("the dataset of this round is no longer kept by the catalog; decline the round")
    seal = secret.path_seal()
    studies = tuple(_recalled(entry, seal) for entry in json.loads(zlib.decompress(row.body)))
    return Dataset(pinned, studies)


def label_counts(labels: Labels) -> bytes:
    """What the report needs of the label files after they are forgotten."""
    table = {
        "rows": labels.rows,
        "duplicates": labels.duplicates,
        "unreadable": labels.unreadable,
        "refused": labels.refused,
    }
    return json.dumps(table).encode()


def report(session: Session, fresh: Fresh, seconds: float) -> ScanReport:
    """Counts over the rows as they are now."""
    files = session.execute(select(FileRow.code, func.count()).group_by(FileRow.code)).all()
    stacks = session.execute(select(StackRow.state, StackRow.chosen, StackRow.reasons, StackRow.warnings)).all()
    series: Counter[str] = Counter()
    warnings: Counter[str] = Counter()
    for stack in stacks:
        waiting = stack.state == SeriesState.WAITING.name
        series.update([] if waiting else stack.reasons.split())
        warnings.update(stack.warnings.split() if stack.chosen else [])
        series[Reason.R_LOWER_SCORE.name] += stack.state == SeriesState.READY.name and not stack.chosen
    return ScanReport(
        files_seen=fresh.seen,
        files_read=fresh.read,
        seconds=round(seconds, 3),
        series_ready=sum(stack.state == SeriesState.READY.name for stack in stacks),
        series_waiting=sum(stack.state == SeriesState.WAITING.name for stack in stacks),
        studies_ready=sum(stack.chosen for stack in stacks),
        files={code: count for code, count in files if code is not None},
        series={name: count for name, count in series.items() if count},
        warnings=dict(warnings),
        labels=_label_report(session),
    )


def summaries(session: Session) -> list[SeriesSummary]:
    """All stacks, best first within their study."""
    query = select(StackRow).order_by(StackRow.study_key, StackRow.score.desc(), StackRow.stack_key)
    return [
        SeriesSummary(
            study_key=stack.study_key,
            series_key=stack.stack_key,
            state=_state(stack.state, stack.chosen),
            chosen=stack.chosen,
            slices=stack.slices,
            score=stack.score,
            reasons=_reasons(stack),
            warnings=tuple(stack.warnings.split()),
            sheet=tuple((criterion, value, points) for criterion, value, points in json.loads(stack.sheet)),
        )
        for stack in session.scalars(query)
    ]


def _state(state: str, chosen: bool) -> str:
    return SeriesState.NOT_SELECTED.name if state == SeriesState.READY.name and not chosen else state


def _reasons(stack: StackRow) -> tuple[str, ...]:
    beaten = stack.state == SeriesState.READY.name and not stack.chosen
    return (Reason.R_LOWER_SCORE.name,) if beaten else tuple(stack.reasons.split())


def _matched(session: Session) -> Iterator[tuple[StackRow, list[bytes], bytes, list[bytes]]]:
    """Every chosen stack with the sealed paths of its slices, its study's cells and its slices' cells."""
    slices: dict[str, list[tuple[bytes, bytes]]] = defaultdict(list)
    query = (
        select(SliceRow.stack_key, SliceRow.path, LabelRow.cells)
        .join(StackRow, StackRow.stack_key == SliceRow.stack_key)
        .join(LabelRow, LabelRow.key == SliceRow.slice_key, isouter=True)
        .where(StackRow.chosen)
        .order_by(SliceRow.stack_key, SliceRow.place)
    )
    for stack_key, path, cells in session.execute(query):
        slices[stack_key].append((path, cells or _NO_CELLS))
    stacks = select(StackRow, LabelRow.cells).join(LabelRow, LabelRow.key == StackRow.study_key, isouter=True)
    for stack, cells in session.execute(stacks.where(StackRow.chosen).order_by(StackRow.study_key)):
        places = slices[stack.stack_key]
        yield stack, [path for path, _ in places], cells or _NO_CELLS, [found for _, found in places]


def study_cells(stated: bytes, slices: Sequence[bytes]) -> bytes:
    """A study's labels: as stated, else what its slices imply (one positive slice makes it positive, all negative ones
    negative). Stated negative with a positive slice is CONFLICT; stated positive with none is left as it is.
    """
    cells = []
    for place, cell in enumerate(stated):
        seen = {row[place] for row in slices}
        if cell == UNKNOWN:
            cells.append(1 if 1 in seen else 0 if seen == {0} else UNKNOWN)
        else:
            cells.append(CONFLICT if cell == 0 and 1 in seen else cell)
    return bytes(cells)


def _array(rows: Sequence[bytes]) -> NDArray[np.int8]:
    cells = np.frombuffer(b"".join(rows), dtype=np.int8).reshape(-1, 6)  # UNKNOWN is 255, and so -1 in int8
    return cells.copy()


def _hash(studies: Sequence[StudyRecord]) -> str:
    digest = hashlib.sha256(b"hemofed dataset v1")
    for study in studies:
        head = f"|{study.study_key}|{study.patient_key}|{study.series.series_key}|{study.series.content_hash}|"
        digest.update(head.encode() + study.slice_labels.tobytes() + study.study_labels.tobytes())
    return digest.hexdigest()


def _export(session: Session, secret: SiteSecret) -> Path:
    row = session.get(FactRow, "export")
    if row is None:
        raise IngestError("expected a catalog that has scanned an export, got an empty one; scan first")
    return Path(secret.path_seal().decrypt(row.value))


def _record(stack: StackRow, files: tuple[Path, ...], rows: Sequence[bytes], study: bytes) -> StudyRecord:
    series = SeriesRecord(SeriesKey(stack.stack_key), stack.content_hash, files)
    return StudyRecord(
        StudyKey(stack.study_key), PatientKey(stack.patient_key), series, _array(rows), _array([study])[0]
    )


def _recalled(entry: Mapping[str, Any], seal: PathSeal) -> StudyRecord:
    files = tuple(Path(seal.decrypt(bytes.fromhex(path))) for path in entry["files"])
    return StudyRecord(
        StudyKey(entry["study"]),
        PatientKey(entry["patient"]),
        SeriesRecord(SeriesKey(entry["series"]), entry["content"], files),
        np.array(entry["slices"], dtype=np.int8).reshape(-1, 6),
        np.array(entry["labels"], dtype=np.int8),
    )


def _label_report(session: Session) -> LabelReport:
    fact = session.get(FactRow, "label_counts")
    counts = json.loads(fact.value) if fact is not None else {}
    studies: Counter[str] = Counter()
    slices: Counter[bool] = Counter()
    for _, _, stated, rows in _matched(session):
        studies[_standing(study_cells(stated, rows), rows)] += 1
        slices.update(row != _NO_CELLS for row in rows)
    total = session.scalar(select(func.count()).select_from(LabelRow)) or 0
    placed = select(LabelRow.key).where(
        LabelRow.key.in_(select(SliceRow.slice_key)) | LabelRow.key.in_(select(StackRow.study_key))
    )
    matched = session.scalar(select(func.count()).select_from(placed.subquery())) or 0
    return LabelReport(
        studies_labelled=studies["labelled"],
        studies_unlabelled=studies["unlabelled"],
        studies_in_conflict=studies["conflict"],
        slices_labelled=slices[True],
        slices_unlabelled=slices[False],
        labels_without_images=total - matched,
        rows=counts.get("rows", 0),
        duplicate_rows=counts.get("duplicates", 0),
        unreadable_cells=counts.get("unreadable", 0),
        refused_files=tuple(counts.get("refused", ())),
    )


def _standing(study: bytes, rows: Sequence[bytes]) -> str:
    cells = study + b"".join(rows)
    return "conflict" if CONFLICT in cells else "unlabelled" if set(cells) == {UNKNOWN} else "labelled"
