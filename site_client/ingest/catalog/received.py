"""The answer to the receiver, which asks before it removes an old file (`received_files`)."""

from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from site_client.ingest.catalog.file_pass import BATCH, batches
from site_client.ingest.catalog.known_files import PASSING
from site_client.ingest.catalog.tables import FileRow, StackRow
from site_client.ingest.pseudonym import PathSeal
from site_client.ingest.reasons import Reason, SeriesState
from site_client.received_files import RECEIVED, answer, asked

_NO_VERDICT: Final = PASSING | {Reason.Q_STORAGE.name}  # of the machine, and not of the file


def answer_receiver(session: Session, export: Path, seal: PathSeal, folder: Path) -> None:
    """Write which of the files that the receiver asks for were taken.

    A file is taken when it has a verdict that stands: a code of its own, or a series that neither waits for more files
    nor could not be read. A file that no scan has met is not taken. A name stands for its file's bytes, so a file that
    was changed since is none of the receiver's.

    Args:
        session: Of the catalog, after a scan.
        export: Its root.
        seal: Of the catalog's paths.
        folder: Of the answer, <state>/trainer/taken.
    """
    # The receiver's folder is all of the export, or a folder of a fixed name at its top.
    for prefix in ("", f"{RECEIVED}/"):
        if names := asked(export / prefix):
            name_of = {seal.seal(prefix + name): name for name in names}
            answer(folder, sorted(name_of[path] for path in _taken(session, list(name_of))))


def _taken(session: Session, paths: list[bytes]) -> Iterator[bytes]:
    stacks = session.execute(select(StackRow.series_key, StackRow.state, StackRow.reasons)).all()
    settled = {row.series_key for row in stacks} - {
        row.series_key
        for row in stacks
        if row.state == SeriesState.WAITING.name or _NO_VERDICT & set(row.reasons.split())
    }
    for part in batches(paths, BATCH):
        query = select(FileRow.path, FileRow.code, FileRow.series_key).where(FileRow.path.in_(part))
        for row in session.execute(query):
            # A multi-frame file has neither code nor series; its frames have.
            images = _frames(session, row.path) if row.code is None and row.series_key is None else [row]
            if images and all(_is_settled(image, settled) for image in images):
                yield row.path


def _frames(session: Session, path: bytes) -> Sequence[Any]:
    return session.execute(select(FileRow.code, FileRow.series_key).where(FileRow.container == path)).all()


def _is_settled(image: Any, settled: Set[str]) -> bool:
    return image.code not in _NO_VERDICT if image.code is not None else image.series_key in settled
