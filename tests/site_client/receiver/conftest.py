"""A receiver as it runs: a process of its own on the loopback interface, with a folder for its images."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]  # made when it is loaded

from tests.ports import free_port

START_S = 30.0


def wait(event: str, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at, f"{timeout_s} s without {event}"
        time.sleep(0.02)


@dataclass
class Receiver:
    """One receiver: its folder, its settings, and the process while it runs."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None
    top: str = ""
    disk_free_min_gib: float = 0.0
    storage: str = 'senders = { NORTH = ["127.0.0.1"] }'
    dicomweb: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def incoming(self) -> Path:
        return self.folder / "received"

    @property
    def config(self) -> Path:
        return self.folder / "receiver.toml"

    def write_config(self) -> None:
        self.incoming.mkdir(exist_ok=True)
        self.config.write_text(
            'incoming = "received"\nstate = "state"\ntaken = "taken"\n'
            f"disk_free_min_gib = {self.disk_free_min_gib}\n{self.top}\n[storage]\nport = {self.port}\n"
            f'address = "127.0.0.1"\n{self.storage}\n[dicomweb]\n{self.dicomweb}\n'
        )

    def start(self) -> None:
        """Returns once it answers."""
        self.write_config()
        command = [sys.executable, "-m", "site_client.cli", "receiver", "--config", str(self.config)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stderr=log, stdout=log, env={**os.environ, **self.environment}, cwd=self.folder
            )
        began = self.log.count("receiver started")
        wait("a start", lambda: self.log.count("receiver started") > began or self.process_ended, START_S)
        assert not self.process_ended, self.log

    @property
    def process_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def files(self) -> list[Path]:
        return sorted(self.incoming.glob("??/*.dcm"))

    def partials(self) -> list[Path]:
        return list((self.incoming / ".arriving").iterdir())

    def associate(
        self, title: str = "NORTH", classes: tuple[str, ...] = (CTImageStorage,), **options: str
    ) -> Association:
        ae = AE(title)
        ae.add_requested_context(Verification)
        for uid in classes:
            ae.add_requested_context(uid, options.get("syntax", ExplicitVRLittleEndian))
        return ae.associate("127.0.0.1", self.port, ae_title=options.get("called", "HEMOFED"))

    def send(self, *images: Dataset, title: str = "NORTH") -> list[int]:
        """Sends images over one association; gives the status of each."""
        syntax = images[0].file_meta.TransferSyntaxUID
        association = self.associate(title, (images[0].SOPClassUID,), syntax=syntax)
        assert association.is_established
        try:
            return [association.send_c_store(image).Status for image in images]
        finally:
            association.release()


def image(uid: str | None = None, *, syntax: str = ExplicitVRLittleEndian, size: int = 1024) -> FileDataset:
    """An axial CT image without any meaning."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, UID(syntax)
    meta.MediaStorageSOPInstanceUID = UID(uid or generate_uid())
    is_implicit = meta.TransferSyntaxUID.is_implicit_VR
    data = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=is_implicit, is_little_endian=True)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientID, data.Modality = "P1", "CT"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = max(1, size // 1024), 512, 16, 16, 15
    data.PixelRepresentation, data.SamplesPerPixel, data.PhotometricInterpretation = 0, 1, "MONOCHROME2"
    data.PixelData = bytes(data.Rows * 1024)
    return data


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pynetdicom as a sender drops a socket unclosed when its peer was faster; Python then closes it with a warning."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(scope="package")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    made = Receiver(tmp_path_factory.mktemp("standing"))
    made.storage = 'senders = { NORTH = ["127.0.0.1"], SOUTH = ["127.0.0.0/8"] }'
    made.start()
    try:
        yield made
    finally:
        made.stop()
        gc.collect()


@pytest.fixture
def standing(_running: Receiver) -> Receiver:
    """A receiver that runs already and has received nothing, for tests that need no settings of their own."""
    for path in (*_running.files(), *_running.partials()):
        path.unlink()
    assert not _running.process_ended
    return _running


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that a test starts itself, after setting it up."""
    made = Receiver(tmp_path)
    try:
        yield made
    finally:
        if made.process is not None:
            made.process.kill()
            made.process.wait(20)
        gc.collect()  # here, where their warning is expected
