"""Storage commitment, PS3.4 annex J: a sender asks whether its objects are safe here, and deletes its own when told so.

A request is on disk before it is answered, and its report is sent over an association of our own, until the sender has
taken it or a day has passed. So a restart between the two loses nothing. A report is made when it is sent: an object
counts as committed when its file is in the incoming folder, where `Incoming.put` has synced it.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from msgspec import Meta
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]  # made when it is loaded

from site_client.files import replace_file
from site_client.receiver.incoming import Incoming
from site_client.receiver.settings import StorageSettings
from site_client.typed_json import decode, encode

_log = structlog.get_logger()
_INSTANCE: Final = "1.2.840.10008.1.20.1.1"  # PS3.4 section J.3.5: the well-known SOP instance
_COMMITTED: Final = 1  # event types, PS3.4 table J.3.3-1
_FAILURES: Final = 2
_NO_SUCH_OBJECT: Final = 0x0112  # PS3.3 section C.14.1.1
_OBJECTS_MAX: Final = 100_000
_SIZE_MAX: Final = 1 << 25
_FIRST_S: Final = 1.0
_LONGEST_S: Final = 300.0
_GIVE_UP_S: Final = 86_400.0
_WAITING_MAX: Final = 1_000

Uid = Annotated[str, Meta(pattern=r"^[0-9.]{1,64}$")]


@dataclass(frozen=True)
class CommitmentRequest:
    """A request as it waits on disk. `objects`: pairs of SOP Class and SOP Instance UID."""

    title: str
    transaction: Uid
    requested_s: float
    objects: list[list[Uid]]


class Commitments:
    """The requests that wait, one file each, in a folder of mode 0700: they hold UIDs, which stand nowhere else."""

    def __init__(self, folder: Path, incoming: Incoming, storage: StorageSettings) -> None:
        """Take the folder; `run` sends reports."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder, self._incoming, self._storage = folder, incoming, storage
        self._news = threading.Event()
        self._undelivered: set[str] = set()  # names of files, as logged

    def request(self, title: str, information: Any) -> None:
        """Keep a request.

        Args:
            title: The sender's, one of `storage.commitment`.
            information: The data set of the N-ACTION, PS3.4 table J.3-1.

        Raises:
            ValueError: It is not understood, or too many wait. So may pydicom raise anything.
            OSError: The disk is full or failing.
        """
        if sum(1 for _ in self._folder.glob("*.json")) >= _WAITING_MAX:
            raise ValueError("too many requests wait")
        objects = [
            [str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)]
            for item in information.ReferencedSOPSequence
        ]
        if len(objects) > _OBJECTS_MAX:
            raise ValueError("too many objects")
        record = encode(CommitmentRequest(title, str(information.TransactionUID), time.time(), objects))
        decode(CommitmentRequest, record, size_max=_SIZE_MAX)  # the bounds hold before the file is there
        replace_file(self._folder / f"{time.time_ns():020d}.json", record)
        self._news.set()

    def run(self, stopping: threading.Event) -> None:
        """Send reports until `stopping`, those of before a restart first."""
        wait_s = _FIRST_S
        while not stopping.is_set():
            waiting = sorted(self._folder.glob("*.json"))
            is_done = [self._report(path) for path in waiting if not stopping.is_set()]
            wait_s = _FIRST_S if all(is_done) else min(_LONGEST_S, 2 * wait_s)
            self._news.wait(_LONGEST_S if not waiting else wait_s)
            self._news.clear()

    def wake(self) -> None:
        """Let `run` look again, such as at `stopping`."""
        self._news.set()

    def _report(self, path: Path) -> bool:
        """Send one report. Returns whether nothing is left to do."""
        try:
            request = decode(CommitmentRequest, path.read_bytes(), size_max=_SIZE_MAX)
            peer = self._storage.commitment.get(request.title)
            if peer is None or time.time() - request.requested_s > _GIVE_UP_S:
                _log.warning("commitment given up", title=request.title)
                path.unlink()
                return True
            event_type, report = self._answer(request)
            if not self._send(request.title, peer, event_type, report):
                # Once a request: a peer may be away for a day.
                if path.name not in self._undelivered:
                    _log.warning("commitment not delivered", title=request.title, peer=peer)
                self._undelivered.add(path.name)
                return False
            self._undelivered.discard(path.name)
            path.unlink()
        except ValueError:
            path.unlink()  # damaged; the sender asks again
            return True
        except OSError as error:
            _log.warning("commitment not delivered", kind=type(error).__name__)
            return False
        _log.info("commitment delivered", title=request.title, objects=len(request.objects), event_type=event_type)
        return True

    def _answer(self, request: CommitmentRequest) -> tuple[int, Dataset]:
        """Make the report, PS3.4 table J.3-2."""
        report = Dataset()
        report.TransactionUID = request.transaction
        stored, missing = [], []
        for class_uid, instance_uid in request.objects:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = class_uid, instance_uid
            if self._incoming.has(instance_uid):
                stored.append(item)
            else:
                item.FailureReason = _NO_SUCH_OBJECT
                missing.append(item)
        if stored:
            report.ReferencedSOPSequence = stored
        if missing:
            report.FailedSOPSequence = missing
        return (_FAILURES if missing else _COMMITTED), report

    def _send(self, title: str, peer: str, event_type: int, report: Dataset) -> bool:
        host, _, port = peer.rpartition(":")
        ae = AE(self._storage.title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = self._storage.idle_s
        ae.add_requested_context(StorageCommitmentPushModel)
        # The roles are turned round: who sends a report is the provider (PS3.4 section J.3.3, PS3.7 annex D.3.3.4).
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        assoc = ae.associate(host.strip("[]"), int(port), ae_title=title, ext_neg=[role])
        if not assoc.is_established:
            return False
        try:
            status, _ = assoc.send_n_event_report(report, event_type, StorageCommitmentPushModel, _INSTANCE)
            return "Status" in status and status.Status == 0
        except (ValueError, RuntimeError):  # no context accepted, or the association ended
            return False
        finally:
            assoc.release()
