"""The pull: in passes, it asks the archive for head CTs of the last days and fetches the images that are not here yet.

It keeps no list of its own: the incoming folder says which images are here. So a pass that was cut off at any moment is
simply begun again, and nothing is lost or fetched twice. Every answer is filtered again here, because a server may
ignore a key of a search (PS3.18 section 8.3.4.5, optional matching).
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

from site_client.errors import ArchiveError
from site_client.receiver.archive import Archive, Pace, uid_of
from site_client.receiver.incoming import Incoming, instance_of
from site_client.receiver.settings import DicomwebSettings, ReceiverSettings
from site_client.windows import parse_window

_log = structlog.get_logger()
_STUDY_DATE, _MODALITIES, _MODALITY, _BODY_PART = "00080020", "00080061", "00080060", "00180015"
_SERIES_BODY_PART: Final = ("BodyPartExamined",)
_STUDY_UID, _SERIES_UID, _INSTANCE_UID, _CLASS_UID = "0020000D", "0020000E", "00080018", "00080016"
_CT_CLASSES: Final = frozenset(
    ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
)
_FAILED_FIRST_S: Final = 30.0


@dataclass(frozen=True)
class RemoteInstance:
    """The address of one image."""

    study: str
    series: str
    instance: str


@dataclass(frozen=True)
class PassResult:
    """The outcome of a pass. `is_whole`: nothing was left for the next one."""

    fetched: int
    failed: int
    is_whole: bool


class Pull:
    """The passes. `clock` is the local wall clock, aware."""

    def __init__(
        self,
        settings: ReceiverSettings,
        incoming: Incoming,
        clock: Callable[[], datetime],
        disk_failed: Callable[[OSError], None],
    ) -> None:
        """Take the parts; `run` begins.

        Raises:
            ConfigRefused: The CA or the credential cannot be read.
        """
        self._settings, self._incoming, self._clock, self._disk_failed = settings, incoming, clock, disk_failed
        self._web: DicomwebSettings = settings.dicomweb
        self._windows = [parse_window(text) for text in self._web.windows]
        self._pace = Pace(self._web.kib_s * 1024)
        self._why = ""  # the archive failed, as last logged
        self.fetched = 0
        Archive(self._web, self._pace)  # a file that cannot be read ends the start, not the first pass

    def is_open(self) -> bool:
        """Whether it may ask now, by `dicomweb.windows`."""
        now = self._clock()
        return not self._windows or any(window.contains(now) for window in self._windows)

    def run(self, stopping: threading.Event) -> None:
        """Make passes until `stopping`."""
        wait_s, failures = 0.0, 0
        while not stopping.wait(wait_s):
            wait_s = min(self._web.every_s, 60.0)
            if not self.is_open():
                continue
            try:
                result = self.one_pass(stopping)
            except ArchiveError as error:
                self._failed(str(error))
                failures += 1
                wait_s = min(self._web.every_s, _FAILED_FIRST_S * 2.0 ** min(failures, 6))
                continue
            except OSError as error:
                self._disk_failed(error)
                continue
            except Exception as error:
                self._failed(f"the pass ended with {type(error).__name__}")
                wait_s = self._web.every_s
                continue
            failures = 0
            if result.fetched or result.failed:
                _log.info("archive asked", fetched=result.fetched, failed=result.failed)
            if result.is_whole:
                self._recovered()
                wait_s = self._web.every_s

    def one_pass(self, stopping: threading.Event) -> PassResult:
        """Fetch all that is not here yet.

        Raises:
            ArchiveError: The searches failed. A retrieval that fails is counted.
        """
        local = threading.local()
        archives: list[Archive] = []
        fetched = failed = 0
        is_whole = True

        def fetch(wanted: RemoteInstance) -> bool | None:
            if stopping.is_set() or not self.is_open() or self._is_low():
                return None
            if not hasattr(local, "archive"):
                local.archive = Archive(self._web, self._pace)
                archives.append(local.archive)
            return self._fetch(local.archive, wanted)

        searching = Archive(self._web, self._pace)
        archives.append(searching)
        try:
            with ThreadPoolExecutor(self._web.concurrency, thread_name_prefix="pull") as pool:
                for series in self._series(searching):
                    if stopping.is_set() or not self.is_open():
                        is_whole = False
                        break
                    missing = [item for item in self._instances(searching, *series) if not self._has(item)]
                    for outcome in pool.map(fetch, missing):
                        fetched += outcome is True
                        failed += outcome is False
                        is_whole = is_whole and outcome is True
        finally:
            for archive in archives:
                archive.close()
        return PassResult(fetched, failed, is_whole)

    def _series(self, archive: Archive) -> Iterator[tuple[str, str]]:
        """Yield study and series UIDs of the CT series of the last days."""
        last = self._clock().date()
        first = last - timedelta(days=self._web.days_back)
        query = {"StudyDate": f"{first:%Y%m%d}-{last:%Y%m%d}", "ModalitiesInStudy": "CT"}
        # A list: the pages of a search must not wait while series of the first one are fetched.
        for study in list(archive.search("studies", query, ())):
            study_uid = uid_of(study, _STUDY_UID)
            if not study_uid or not _is_within(study, first, last) or "CT" not in study.get(_MODALITIES, ["CT"]):
                continue
            for series in archive.search(f"studies/{study_uid}/series", {"Modality": "CT"}, _SERIES_BODY_PART):
                series_uid = uid_of(series, _SERIES_UID)
                if series_uid and series.get(_MODALITY) == ["CT"] and self._is_wanted_part(series):
                    yield study_uid, series_uid

    def _instances(self, archive: Archive, study: str, series: str) -> Iterator[RemoteInstance]:
        for match in archive.search(f"studies/{study}/series/{series}/instances", {}, ()):
            uid, classes = uid_of(match, _INSTANCE_UID), match.get(_CLASS_UID, [])
            if uid and (not classes or classes[0] in _CT_CLASSES):
                yield RemoteInstance(study, series, uid)

    def _is_wanted_part(self, series: dict[str, list[str]]) -> bool:
        """Whether no other part of the body is stated. Servers may leave the attribute out; ingest sees the pixels."""
        parts = {part.upper() for part in series.get(_BODY_PART, []) if part}
        return not self._web.body_parts or not parts or bool(parts & set(self._web.body_parts))

    def _has(self, item: RemoteInstance) -> bool:
        return self._incoming.has(item.instance)

    def _is_low(self) -> bool:
        if self._incoming.free_bytes() >= self._settings.disk_free_min_bytes:
            return False
        self._failed("the disk has less free than disk_free_min_gib", event="pull held")
        return True

    def _fetch(self, archive: Archive, wanted: RemoteInstance) -> bool:
        path: Path | None = None
        try:
            with self._incoming.new_file() as file:
                path = Path(file.name)
                size_max = self._settings.object_max_bytes
                archive.fetch(wanted.study, wanted.series, wanted.instance, file, size_max)
            # Before it has its name, by which it would count as the image that was asked for.
            if instance_of(path) != wanted.instance:
                raise ArchiveError("the archive's answer to a retrieval cannot be used: it is not the image asked for")
            self.fetched += self._incoming.put(path, wanted.instance)
        except ArchiveError as error:
            self._failed(str(error))
            return False
        except OSError as error:
            self._disk_failed(error)
            return False
        finally:
            if path is not None and os.path.exists(path):
                path.unlink()
        return True

    def _failed(self, why: str, event: str = "archive failed") -> None:
        if why != self._why:  # changes only: an archive may be away for a week
            _log.warning(event, why=why)
        self._why = why

    def _recovered(self) -> None:
        if self._why:
            _log.info("pull went on")
        self._why = ""


def _is_within(study: dict[str, list[str]], first: date, last: date) -> bool:
    """Whether (0008,0020) *Study Date* is in the range. A study without a date is left out."""
    (text, *_) = study.get(_STUDY_DATE) or [""]
    try:
        day = datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return False
    return first <= day <= last
