"""The steps of a scan over the catalog's rows: files, then series, then the choice of one series a study."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.orm import Session

from site_client.ingest.catalog.tables import FactRow, FileRow, SliceRow, StackRow
from site_client.ingest.files.export import Seen, walk
from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.header_pass import read_header
from site_client.ingest.labels.labels import maps_beside
from site_client.ingest.pseudonym import PathSeal, SiteSecret
from site_client.ingest.reasons import Reason, SeriesState
from site_client.ingest.rules import Rules
from site_client.ingest.series.assess import AssessedSeries, judge_series
from site_client.ingest.series.stacks import Image

BATCH = 1000


@dataclass(frozen=True)
class Fresh:
    """What a scan met: files in all, files whose header was read, series that have a changed file."""

    seen: int
    read: int
    touched: frozenset[str]


def update_files(session: Session, export: Path, secret: SiteSecret, rules: Rules, now_s: float) -> Fresh:
    """Walks the export; reads the header of every file that is new or changed; forgets those that are gone.

    Commits in batches, so that a first scan of a large export that is interrupted goes on where it was.
    """
    seal = secret.path_seal()
    _remember_export(session, export, seal)
    columns = (FileRow.path, FileRow.size_bytes, FileRow.mtime_ns, FileRow.series_key)
    known = {row.path: row for row in session.execute(select(*columns))}
    touched: set[str] = set()
    batch: list[dict[str, object]] = []
    gone = set(known)
    seen = read = 0
    for file in walk(export):
        seen += 1
        path = seal.seal(file.path)
        old = known.get(path)
        gone.discard(path)
        if old is not None and (old.size_bytes, old.mtime_ns) == (file.size_bytes, file.mtime_ns):
            continue
        read += file.skip is None
        row = _row(file, path, export, secret, rules, now_s)
        touched |= {key for key in (row["series_key"], old.series_key if old else None) if isinstance(key, str)}
        batch.append(row)
        if len(batch) >= BATCH:
            _write(session, batch)
            batch = []
    _write(session, batch)
    touched |= {known[path].series_key for path in gone if known[path].series_key}
    _forget(session, gone)
    return Fresh(seen, read, frozenset(touched))


def judge_touched(session: Session, export: Path, secret: SiteSecret, rules: Rules, now_s: float, fresh: Fresh) -> None:
    """Judges every series whose files changed, whose verdict is of other rules, or which was still arriving."""
    for series_key in sorted(fresh.touched | _unsettled(session, rules)):
        columns = (FileRow.path, FileRow.mtime_ns, FileRow.since_s, FileRow.header)
        query = select(*columns).where(FileRow.series_key == series_key).order_by(FileRow.path)
        rows = session.execute(query).all()
        session.execute(delete(StackRow).where(StackRow.series_key == series_key))
        if rows:
            _judge(session, series_key, rows, export, secret, rules, now_s)
        session.commit()


def choose(session: Session) -> None:
    """Marks one READY stack in each study: highest score, then smallest key. The others stay READY, unchosen."""
    ready = session.execute(
        select(StackRow.stack_key, StackRow.study_key, StackRow.chosen)
        .where(StackRow.state == SeriesState.READY.name)
        .order_by(StackRow.study_key, StackRow.score.desc(), StackRow.stack_key)
    ).all()
    studies: set[str] = set()
    for row in ready:
        best = row.study_key not in studies
        studies.add(row.study_key)
        if row.chosen != best:
            session.execute(update(StackRow).where(StackRow.stack_key == row.stack_key).values(chosen=best))


def label_stamp(files: Sequence[Path], secret: SiteSecret) -> bytes:
    """Changes when a label file appears, goes or changes."""
    stats = [(str(path), path.stat()) for path in [*files, *maps_beside(files)] if path.is_file()]
    known = sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
    return secret.token("labels", repr(known)).encode()


def _remember_export(session: Session, export: Path, seal: PathSeal) -> None:
    place = seal.seal(str(export.resolve()))
    known = session.get(FactRow, "export")
    if known is None or known.value != place:
        session.execute(delete(SliceRow))
        session.execute(delete(StackRow))
        session.execute(delete(FileRow))
        session.merge(FactRow(name="export", value=place))
        session.flush()


def _row(file: Seen, path: bytes, export: Path, secret: SiteSecret, rules: Rules, now_s: float) -> dict[str, object]:
    found: DicomHeader | Reason = file.skip or read_header(export / file.path, file.size_bytes, secret, rules)
    header = found if isinstance(found, DicomHeader) else None
    return {
        "path": path,
        "size_bytes": file.size_bytes,
        "mtime_ns": file.mtime_ns,
        "since_s": now_s,
        "series_key": header.series_key if header else None,
        "code": found.name if isinstance(found, Reason) else None,
        "header": header.to_json() if header else None,
    }


def _write(session: Session, batch: Sequence[Mapping[str, object]]) -> None:
    if batch:
        session.execute(delete(FileRow).where(FileRow.path.in_([row["path"] for row in batch])))
        session.execute(insert(FileRow), list(batch))
        session.commit()


def _forget(session: Session, paths: Iterable[bytes]) -> None:
    ordered = sorted(paths)
    for start in range(0, len(ordered), BATCH):
        session.execute(delete(FileRow).where(FileRow.path.in_(ordered[start : start + BATCH])))
    session.flush()


def _unsettled(session: Session, rules: Rules) -> set[str]:
    in_files = set(session.scalars(select(FileRow.series_key).where(FileRow.series_key.is_not(None)).distinct()))
    judged = session.execute(select(StackRow.series_key, StackRow.rules, StackRow.state)).all()
    settled = {row.series_key for row in judged}
    again = {row.series_key for row in judged if row.rules != rules.digest or row.state == SeriesState.WAITING.name}
    return {key for key in in_files - settled if key is not None} | again


def _judge(
    session: Session,
    series_key: str,
    rows: Sequence[Row[bytes, int, float, str | None]],
    export: Path,
    secret: SiteSecret,
    rules: Rules,
    now_s: float,
) -> None:
    seal = secret.path_seal()
    # Every row of a series has a header: series_key and header are written together.
    images = [Image(place, DicomHeader.from_json(row.header or "")) for place, row in enumerate(rows)]
    quiet_s = min(_quiet_s(row.mtime_ns, row.since_s, now_s) for row in rows)
    verdict = judge_series(images, lambda place: export / seal.decrypt(rows[place].path), rules)
    for copy in verdict.copies:
        session.execute(update(FileRow).where(FileRow.path == rows[copy].path).values(code=Reason.S_DUPLICATE.name))
    kept = [row.path for place, row in enumerate(rows) if place not in set(verdict.copies)]
    session.execute(update(FileRow).where(FileRow.path.in_(kept)).values(code=None))
    for judged in verdict.stacks:
        state = _arriving(judged, quiet_s, rules) or judged.state
        stack = _stack_row(judged, state, series_key, secret, rules)
        session.execute(insert(StackRow), [stack])
        if state is SeriesState.READY:
            session.execute(insert(SliceRow), _slice_rows(judged, str(stack["stack_key"]), [row.path for row in rows]))


def _quiet_s(mtime_ns: int, since_s: float, now_s: float) -> float:
    """For how long a file has not changed. A time in the future (clocks of two machines) proves nothing."""
    return max(now_s - since_s, now_s - mtime_ns / 1e9)


def _arriving(judged: AssessedSeries, quiet_s: float, rules: Rules) -> SeriesState | None:
    if quiet_s < rules.settle_s:
        return SeriesState.WAITING
    incomplete = {Reason.Q_GAP, Reason.Q_INCOMPLETE} & set(judged.reasons)
    return SeriesState.WAITING if incomplete and quiet_s < rules.incomplete_after_s else None


def _stack_row(
    judged: AssessedSeries, state: SeriesState, series_key: str, secret: SiteSecret, rules: Rules
) -> dict[str, object]:
    slices = sorted(image.header.slice_key for image in judged.stack.images)
    head = judged.stack.images[0].header
    identity = hashlib.sha256("|".join(slices).encode()).hexdigest()
    return {
        "stack_key": secret.series(f"{series_key}|{head.study_key}|{identity}"),
        "series_key": series_key,
        "study_key": head.study_key,
        "patient_key": head.patient_key,
        "state": state.name,
        "reasons": " ".join(reason.name for reason in judged.reasons),
        "warnings": " ".join(warning.name for warning in judged.warnings),
        "sheet": json.dumps([[line.criterion, line.value, line.points] for line in judged.stack.sheet]),
        "score": judged.stack.score,
        "slices": len(slices),
        "chosen": False,
        "content_hash": judged.content_hash if state is SeriesState.READY else "",
        "rules": rules.digest,
    }


def _slice_rows(judged: AssessedSeries, stack_key: str, paths: Sequence[bytes]) -> list[dict[str, object]]:
    return [
        {"stack_key": stack_key, "place": place, "path": paths[image.file], "slice_key": image.header.slice_key}
        for place, image in enumerate(judged.stack.images)
    ]
