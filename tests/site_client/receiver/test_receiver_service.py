"""The process: what it tells systemd, when it ends, what outlives a restart, and that nothing of a patient gets out."""

import signal
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileDataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]  # made when it is loaded

from site_client.prove.search import spellings
from tests.ports import free_port
from tests.site_client.receiver.conftest import Receiver, image, wait
from tests.site_client.receiver.test_listener import connected, store_request
from tests.site_client.receiver.web import serving

COMMITMENT = "1.2.840.10008.1.20.1.1"


def test_it_says_ready_what_came_in_that_it_lives_and_that_it_ends(receiver: Receiver, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        receiver.environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        receiver.start()
        assert receiver.send(image()) == [0]
        heard: list[str] = []
        while not any("1 objects received" in message for message in heard) or heard.count("WATCHDOG=1") < 2:
            heard.append(systemd.recv(4096).decode())
        assert heard[0] == "READY=1"
        assert receiver.stop() == 0
        while heard[-1] != "STOPPING=1":
            heard.append(systemd.recv(4096).decode())


def test_without_a_source_it_stands_by_and_touches_nothing(receiver: Receiver, tmp_path: Path) -> None:
    receiver.storage = ""
    receiver.write_config()
    command = [sys.executable, "-m", "site_client.cli", "receiver", "--config", str(receiver.config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"not configured" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("break_it", "status", "sentence"),
    [
        ("key", 78, "portt is unknown"),
        ("folder", 78, "`incoming` cannot be used (no such file or directory)"),
        ("port", 1, "cannot be bound (address already in use)"),
        ("lock", 1, "another receiver runs"),
    ],
)
def test_what_a_person_has_to_mend_ends_it_for_good_and_the_rest_does_not(
    receiver: Receiver, break_it: str, status: int, sentence: str
) -> None:
    receiver.write_config()
    with socket.socket() as taken:
        if break_it == "key":
            receiver.config.write_text(receiver.config.read_text().replace("port =", "portt ="))
        if break_it == "folder":
            receiver.incoming.rmdir()
        if break_it == "port":
            taken.bind(("127.0.0.1", receiver.port))
            taken.listen()
        if break_it == "lock":
            receiver.start()
        command = [sys.executable, "-m", "site_client.cli", "receiver", "--config", str(receiver.config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, sentence in done.stderr) == (status, True), done.stderr


def test_a_report_of_commitment_outlives_a_kill(receiver: Receiver) -> None:
    port, reports = free_port(), []

    def take(event: evt.Event) -> tuple[int, None]:
        reports.append((event.event_type, event.event_information))
        return 0, None

    receiver.storage += f'\ncommitment = {{ NORTH = "127.0.0.1:{port}" }}'
    receiver.start()
    stored = image()
    assert receiver.send(stored) == [0]
    information = Dataset()
    information.TransactionUID = "1.2.3.4"
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = stored.SOPClassUID, stored.SOPInstanceUID
    information.ReferencedSOPSequence = [item]
    association = receiver.associate(classes=(StorageCommitmentPushModel,))
    status, _ = association.send_n_action(information, 1, StorageCommitmentPushModel, COMMITMENT)
    assert status.Status == 0
    association.release()
    receiver.stop(signal.SIGKILL)  # nobody has listened for the report yet
    ae = AE("NORTH")
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)])
    try:
        receiver.start()
        wait("a report", lambda: bool(reports))
        event_type, report = reports[0]
        assert (event_type, report.TransactionUID, len(report.ReferencedSOPSequence)) == (1, "1.2.3.4", 1)
        wait("its end", lambda: list((receiver.folder / "state" / "commitments").iterdir()) == [])
    finally:
        assert server is not None
        server.shutdown()


def test_commitment_is_for_the_listed_only_and_needs_a_request_that_can_be_read(receiver: Receiver) -> None:
    receiver.storage = 'senders = { NORTH = ["127.0.0.1"], SOUTH = ["127.0.0.1"] }'
    receiver.storage += f'\ncommitment = {{ NORTH = "127.0.0.1:{free_port()}" }}'
    receiver.start()
    information = Dataset()
    information.TransactionUID = "1.2.3.4"
    for title, wanted in (("SOUTH", 0x0124), ("NORTH", 0x0110)):
        association = receiver.associate(title, (StorageCommitmentPushModel,))
        status, _ = association.send_n_action(information, 1, StorageCommitmentPushModel, COMMITMENT)
        assert status.Status == wanted
        association.release()
    assert list((receiver.folder / "state" / "commitments").iterdir()) == []


def test_no_value_of_a_patient_stands_in_a_line_a_status_or_a_name(receiver: Receiver, tmp_path: Path) -> None:
    """Every text, date and UID of the images is a canary, and so is all that a server answers."""
    images = [_full_of_canaries(number) for number in range(3)]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        serving([*images, _full_of_canaries(7)]) as server,
    ):
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        receiver.environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        receiver.top = "object_max_mib = 1"
        receiver.dicomweb = f'url = "{server.url}"\nevery_s = 1.0'
        receiver.start()
        assert set(receiver.send(*images)) == {0}
        wait("a pass", lambda: "archive asked" in receiver.log)
        large = _full_of_canaries(9)
        large.PixelData = bytes(2 << 20)
        association = receiver.associate()
        association.send_c_store(large)
        with connected(receiver) as connection:
            connection.sendall(store_request("KANARIUID/../x", b"KANARIVALUE"))
            connection.recv(4096)
        server.answer = 200, {"Content-Type": "KANARITYPE"}, b"KANARIBODY"
        wait("a failure", lambda: "archive failed" in receiver.log)
        receiver.stop()
        said = receiver.log
        while True:
            try:
                said += systemd.recv(4096).decode()
            except BlockingIOError:
                break
    folders = (receiver.incoming, tmp_path / "state")
    said += " ".join(str(path.relative_to(tmp_path)) for folder in folders for path in folder.rglob("*"))
    canaries = {
        str(element.value)
        for data in (*images, large)
        for element in data.iterall()
        if element.VR in ("UI", "PN", "LO", "SH", "LT", "ST", "DA") and element.keyword != "SOPClassUID"
    } | {"KANARITYPE", "KANARIBODY", "KANARIUID/../x", "KANARIVALUE"}
    assert [value for spelling, value in spellings(canaries).items() if spelling in said.encode()] == []
    assert "objects received" in said
    assert "an object was over object_max_mib" in said


def _full_of_canaries(number: int) -> FileDataset:
    data = image(f"1.2.826.999.{number}.7{number}")
    data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.826.999.{number}", f"1.2.826.999.{number}.8"
    data.StudyDate, data.PatientBirthDate = f"{datetime.now():%Y%m%d}", "19011213"
    names = (
        "PatientName PatientID AccessionNumber InstitutionName ReferringPhysicianName StudyDescription StationName "
        "SeriesDescription OperatorsName PatientAddress PatientComments DeviceSerialNumber"
    )
    for name in names.split():
        setattr(data, name, f"KANARI{name[:5]}{number}")
    return data
