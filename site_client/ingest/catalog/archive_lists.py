"""The archives of an export, listed as folders are, within limits for an archive and all archives inside it."""

from collections.abc import Sequence
from pathlib import Path

from site_client.ingest.files.addresses import archives_deep, containers
from site_client.ingest.files.export import ExportFile, in_archive
from site_client.ingest.files.readers import Readers
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import (
    ARCHIVE_BYTES_MAX,
    ARCHIVE_FREE_BYTES,
    ARCHIVE_MEMBERS_MAX,
    ARCHIVE_RATIO_MAX,
    ARCHIVES_DEEP_MAX,
)


class ArchiveLists:
    """Lists archives. It counts over all archives inside one file of the export, so that no nesting escapes a limit."""

    def __init__(self, export: Path, readers: Readers) -> None:
        """Takes the root folder, and the readers that open its files."""
        self._export, self._readers = export, readers
        self._members_left: dict[str, int] = {}
        self._bytes_left: dict[str, int] = {}

    def members(self, archive: ExportFile) -> Sequence[ExportFile] | Reason:
        """Gives the files in an archive, or Q_ARCHIVE_LIMIT, Q_ARCHIVE_LOCKED, Q_ARCHIVE_DAMAGED or Q_READ."""
        if archives_deep(archive.path) >= ARCHIVES_DEEP_MAX:
            return Reason.Q_ARCHIVE_LIMIT
        listed = self._readers.archive(self._export / archive.path)
        if isinstance(listed, Reason):
            return listed
        outermost = [archive.path, *containers(archive.path)][-1]
        # The outermost archive is listed first, and its size is that of its file.
        members = self._members_left.setdefault(outermost, ARCHIVE_MEMBERS_MAX) - len(listed)
        allowed = min(ARCHIVE_BYTES_MAX, max(ARCHIVE_FREE_BYTES, ARCHIVE_RATIO_MAX * archive.size_bytes))
        unpacked = self._bytes_left.setdefault(outermost, allowed) - sum(member.size_bytes for member in listed)
        if min(members, unpacked) < 0:
            return Reason.Q_ARCHIVE_LIMIT
        self._members_left[outermost], self._bytes_left[outermost] = members, unpacked
        return [in_archive(archive, member) for member in listed]
