"""The receiver with programs that others wrote: dcmtk's senders, and Orthanc as the hospital's archive."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from tests.ports import free_port
from tests.site_client.receiver.conftest import Receiver, image, wait
from tests.site_client.receiver.test_listener import dataset_bytes

PLUGINS = Path("/usr/share/orthanc/plugins")
PATH = "/usr/bin:/usr/local/bin"  # of dcmtk: pynetdicom puts programs of the same names into the environment
needs_dcmtk = pytest.mark.skipif(shutil.which("storescu", path=PATH) is None, reason="dcmtk is not installed")
needs_orthanc = pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Orthanc is not installed")
needs_dicomweb = pytest.mark.skipif(
    not list(PLUGINS.glob("*DicomWeb*")), reason="Orthanc's DICOMweb plugin is not installed"
)


def write(folder: Path, count: int) -> list[Path]:
    """A study of today, one file an image."""
    folder.mkdir()
    for number in range(1, count + 1):
        data = image(f"1.2.826.0.1.{number}")
        data.StudyDate, data.StudyTime, data.PatientName = f"{datetime.now():%Y%m%d}", "120000", "NOBODY"
        data.AccessionNumber, data.SeriesNumber, data.InstanceNumber = "4711", 1, number
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())


def run(program: str, *arguments: str | Path, good: bool = True) -> str:
    """Runs a program of dcmtk; gives what it says."""
    command = shutil.which(program, path=PATH)
    assert command is not None
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is good, done.stderr
    return done.stdout + done.stderr


def data_sets(paths: list[Path]) -> set[bytes]:
    return {dataset_bytes(path) for path in paths}


@needs_dcmtk
def test_dcmtk_echoes_and_sends_and_every_byte_is_there(standing: Receiver, tmp_path: Path) -> None:
    files = write(tmp_path / "sent", 3)
    ends = ["-aet", "NORTH", "-aec", "HEMOFED", "127.0.0.1", str(standing.port)]
    run("echoscu", *ends)
    run("storescu", *ends, *files)
    run("dcmsend", *ends, "--no-uid-checks", *files)
    assert data_sets(standing.files()) == data_sets(files)
    assert "Calling AE Title Not Recognized" in run("echoscu", "-aet", "WEST", *ends[2:], good=False)


@needs_dcmtk
@pytest.mark.skipif(shutil.which("dcmcjpls", path=PATH) is None, reason="dcmtk's encoders are not installed")
def test_a_compressed_image_of_dcmtk_stays_as_it_is(standing: Receiver, tmp_path: Path) -> None:
    (plain,) = write(tmp_path / "plain", 1)
    ends = ["-aet", "NORTH", "-aec", "HEMOFED", "127.0.0.1", str(standing.port)]
    for encoder, option in (("dcmcjpls", "-xt"), ("dcmcjpeg", "-xs"), ("dcmcrle", "-xr")):
        packed = tmp_path / f"{encoder}.dcm"
        run(encoder, plain, packed)
        run("storescu", option, *ends, packed)
        stored = {dataset_bytes(path): dcmread(path).file_meta.TransferSyntaxUID for path in standing.files()}
        assert stored[dataset_bytes(packed)] == dcmread(packed).file_meta.TransferSyntaxUID


@dataclass
class Orthanc:
    """Orthanc, as it runs."""

    http: int
    dicom: int

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def answers(self) -> bool:
        try:
            self.ask("/system")
        except OSError:
            return False
        return True


@pytest.fixture
def orthanc(receiver: Receiver, tmp_path: Path) -> Iterator[Orthanc]:
    made = Orthanc(free_port(), free_port())
    config = {
        "Name": "archive",
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": made.http,
        "DicomPort": made.dicom,
        "DicomAet": "NORTH",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomModalities": {"hemofed": ["HEMOFED", "127.0.0.1", receiver.port]},
        "Plugins": [str(PLUGINS)] if PLUGINS.is_dir() else [],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "HttpsCACertificates": "",
    }
    path = tmp_path / "orthanc.json"
    path.write_text(json.dumps(config))
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(path)], stdout=log, stderr=log)
    try:
        wait("Orthanc", lambda: process.poll() is not None or made.answers(), 60)
        assert process.poll() is None, (tmp_path / "orthanc.log").read_text()[-2000:]
        yield made
    finally:
        process.terminate()
        process.wait(30)


@needs_orthanc
def test_orthanc_sends_and_learns_that_its_images_are_safe(
    receiver: Receiver, orthanc: Orthanc, tmp_path: Path
) -> None:
    receiver.storage += f'\ncommitment = {{ NORTH = "127.0.0.1:{orthanc.dicom}" }}'
    receiver.start()
    files = write(tmp_path / "sent", 3)
    ids = [orthanc.ask("/instances", path.read_bytes())["ID"] for path in files]
    assert orthanc.ask("/modalities/hemofed/echo", {}) == {}
    sent = orthanc.ask("/modalities/hemofed/store", {"Resources": ids, "StorageCommitment": True})
    assert sent["FailedInstancesCount"] == 0
    assert data_sets(receiver.files()) == data_sets(files)
    transaction = sent["StorageCommitmentTransactionUID"]
    report = f"/storage-commitment/{transaction}"
    wait("a report", lambda: orthanc.ask(report)["Status"] != "Pending")
    assert orthanc.ask(report)["Status"] == "Success"
    assert len(orthanc.ask(report)["Success"]) == 3
    never_sent = [["1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5.6"]]
    asked = orthanc.ask("/modalities/hemofed/storage-commitment", {"DicomInstances": never_sent})
    report = f"/storage-commitment/{asked['ID']}"
    wait("a report", lambda: orthanc.ask(report)["Status"] != "Pending")
    assert orthanc.ask(report)["Status"] == "Failure"


@pytest.mark.slow
@needs_orthanc
@needs_dicomweb
def test_orthanc_is_pulled_from_byte_for_byte(receiver: Receiver, orthanc: Orthanc, tmp_path: Path) -> None:
    files = write(tmp_path / "sent", 5)
    for path in files:
        orthanc.ask("/instances", path.read_bytes())
    receiver.storage, receiver.dicomweb = "", f'url = "http://127.0.0.1:{orthanc.http}/dicom-web"\nevery_s = 1.0'
    receiver.start()
    wait("five images", lambda: len(receiver.files()) == 5)
    assert data_sets(receiver.files()) == data_sets(files)
    later = image("1.2.826.0.1.6")
    later.StudyDate, later.PatientName = f"{datetime.now():%Y%m%d}", "NOBODY"
    later.save_as(tmp_path / "sent" / "6.dcm", enforce_file_format=True)
    orthanc.ask("/instances", (tmp_path / "sent" / "6.dcm").read_bytes())
    wait("a new image", lambda: len(receiver.files()) == 6)
