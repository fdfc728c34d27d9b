"""The rows of files that a scan finds in the catalog: are they still true, and which of their files are gone?"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from site_client.ingest.catalog.tables import FileRow
from site_client.ingest.files.addresses import containers
from site_client.ingest.files.export import ExportFile
from site_client.ingest.pseudonym import PathSeal
from site_client.ingest.reasons import Reason

# Faults that may pass although no file changes: a share was not mounted, a mode was mended.
PASSING = frozenset((Reason.Q_READ.name,))
_COLUMNS = (
    FileRow.path, FileRow.container, FileRow.size_bytes, FileRow.mtime_ns, FileRow.ctime_ns, FileRow.since_s,
    FileRow.basis, FileRow.code, FileRow.series_key,
)  # fmt: skip


class KnownFiles:
    """The rows by sealed path. `gone`: the paths that the scan has not met yet."""

    def __init__(self, session: Session, seal: PathSeal, basis: str) -> None:
        """Loads the rows.

        Args:
            session: Of the catalog.
            seal: Of its paths.
            basis: Digest that a row must have been written by.
        """
        self._basis = basis
        self._rows = {row.path: row for row in session.execute(select(*_COLUMNS))}
        self.gone = set(self._rows)
        self._inside: dict[bytes, list[bytes]] = defaultdict(list)
        # What has to be opened again for something inside, although it is unchanged itself.
        self._opened: set[bytes] = set()
        for row in self._rows.values():
            if row.container is not None:
                self._inside[row.container].append(row.path)
                if not self._is_settled(row):
                    self._opened.update(map(seal.seal, containers(seal.decrypt(row.path))))

    def row(self, path: bytes) -> Any:
        """Gives the row of a path, or None."""
        return self._rows.get(path)

    def series_of(self, paths: Sequence[bytes]) -> list[str]:
        """Gives the series that files belonged to."""
        rows = map(self.row, paths)
        return [row.series_key for row in rows if row is not None and row.series_key is not None]

    def is_true(self, file: ExportFile, path: bytes) -> bool:
        """Tells whether the row of a file, and all rows of what it holds, still say what a reading would."""
        row = self.row(path)
        return row is not None and same_stamp(row, file) and self._is_settled(row) and path not in self._opened

    def _is_settled(self, row: Any) -> bool:
        return bool(row.basis == self._basis and row.code not in PASSING)

    def keep(self, path: bytes) -> int:
        """Counts a path and all that it holds as met.

        Returns:
            How many files: an archive and its members; frames are none.
        """
        files, waiting = 0, [(path, True)]
        while waiting:
            place, is_file = waiting.pop()
            files += is_file
            self.gone.discard(place)
            row = self.row(place)
            is_archive = row is not None and row.code == Reason.S_ARCHIVE.name
            waiting += [(inner, is_archive) for inner in self._inside.get(place, ())]
        return files


def same_stamp(row: Any, file: ExportFile) -> bool:
    """Tells whether a row was written of a file with this size and these times."""
    return (row.size_bytes, row.mtime_ns, row.ctime_ns) == (file.size_bytes, file.mtime_ns, file.ctime_ns)
