"""Removal of old files. Only a file that the receiver wrote, that is unchanged, old, and taken by ingest is removed.

`received_files` says how ingest answers. A study whose files are removed leaves the next dataset, like any study that
disappears from an export: `keep_days` says for how long a received study is trained on.
"""

from pathlib import Path
from typing import Final

import structlog

from site_client.files import sync_folder
from site_client.received_files import NAMES_MAX, answered, ask
from site_client.receiver.age_clock import AgeClock
from site_client.receiver.incoming import Incoming

_log = structlog.get_logger()
_DAY_S: Final = 86_400.0


class Cleaning:
    """The two steps, taken by one thread."""

    def __init__(self, incoming: Incoming, taken: Path, keep_days: int, clock: AgeClock) -> None:
        """Take the folders.

        Args:
            incoming: The folder to clean.
            taken: The folder with ingest's answer.
            keep_days: Files that arrived later stay; 0: all stay.
            clock: Says how old a file is.
        """
        self._incoming, self._taken, self._keep_days, self._clock = incoming, taken, keep_days, clock
        self._asked: set[str] = set()

    def run_once(self) -> int:
        """Remove what was asked for and taken, then ask for what is old now.

        Returns:
            The number of files removed.

        Raises:
            OSError: A file cannot be read, written or removed.
        """
        if not self._keep_days:
            return 0
        before_s = self._clock.now_s() - self._keep_days * _DAY_S
        # Oldest first, so that many old files leave in the order in which they came.
        old = sorted((state.st_ctime, name) for name, state in self._incoming.names() if state.st_ctime < before_s)
        names = [name for _, name in old]
        # Both: an answer to an earlier question may name a file that has since been sent again.
        removed = [name for name in set(names) & self._asked & set(answered(self._taken)) if self._remove(name)]
        self._asked = set(names[:NAMES_MAX]) - set(removed)
        ask(self._incoming.root, sorted(self._asked))
        if removed:
            _log.info("old files removed", files=len(removed))
        return len(removed)

    @property
    def days_held(self) -> int:
        """By how many days the machine's clock is ahead of the time by which files age."""
        return max(0, int(self._clock.lag_s / _DAY_S)) if self._keep_days else 0

    def _remove(self, name: str) -> bool:
        # An ordinary export may lie in the same folder, and a person may have changed a file.
        if not self._incoming.is_own(name):
            return False
        path = self._incoming.root / name
        path.unlink()
        sync_folder(path.parent)
        return True
