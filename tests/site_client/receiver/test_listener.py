"""The listener, with pynetdicom as the sender: bytes as sent, who may send, and what a hostile sender can hold."""

import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from pynetdicom import ALL_TRANSFER_SYNTAXES, _config
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is loaded
    CTImageStorage,
    MRImageStorage,
)

from site_client.receiver.guarded_server import MessageBounds, PeerRefused, command_field, is_known
from site_client.receiver.settings import parse
from tests.site_client.receiver.conftest import Receiver, image, wait

OUT_OF_RESOURCES = 0xA700


def dataset_bytes(path: Path) -> bytes:
    """All bytes behind the file meta information."""
    data = path.read_bytes()
    assert data[128:132] == b"DICM"
    (length,) = struct.unpack_from("<L", data, 140)
    return data[144 + length :]


def encoded(data: Dataset) -> bytes:
    """The data set as pynetdicom puts it on the wire."""
    buffer = DicomBytesIO()
    syntax = data.file_meta.TransferSyntaxUID
    buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_dataset(buffer, Dataset({tag: data[tag] for tag in data.keys()}))  # noqa: SIM118  # elements, not values
    return bytes(buffer.getvalue())


def test_an_echo_is_answered_and_an_image_lies_there_byte_for_byte(standing: Receiver) -> None:
    association = standing.associate()
    assert association.send_c_echo().Status == 0
    association.release()
    sent = image()
    assert standing.send(sent) == [0]
    (path,) = standing.files()
    assert hashlib.sha256(dataset_bytes(path)).digest() == hashlib.sha256(encoded(sent)).digest()
    stored = dcmread(path)
    assert (stored.file_meta.MediaStorageSOPInstanceUID, stored.file_meta.TransferSyntaxUID) == (
        sent.SOPInstanceUID,
        sent.file_meta.TransferSyntaxUID,
    )
    assert path.stat().st_mode & 0o777 == 0o640
    assert standing.partials() == []


def test_all_transfer_syntaxes_are_accepted_and_none_is_encoded_again(standing: Receiver, tmp_path: Path) -> None:
    for syntax in ALL_TRANSFER_SYNTAXES:
        association = standing.associate(syntax=syntax)
        assert [str(context.transfer_syntax[0]) for context in association.accepted_contexts][-1] == syntax, syntax
        association.release()
    for syntax in (ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian):
        sent = image(syntax=syntax)
        if syntax in (RLELossless, JPEG2000Lossless):
            # Not a picture at all: whatever decoded it here would fail.
            sent.PixelData = (
                b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\x00\xe0\x06\0\0\0broken" + b"\xfe\xff\xdd\xe0\0\0\0\0"
            )
            sent["PixelData"].is_undefined_length = True
        path = tmp_path / "sent.dcm"
        sent.save_as(path, enforce_file_format=True)
        _config.STORE_SEND_CHUNKED_DATASET = True  # the file's own bytes
        try:
            association = standing.associate(syntax=syntax)
            assert association.send_c_store(path).Status == 0
            association.release()
        finally:
            _config.STORE_SEND_CHUNKED_DATASET = False
        assert dataset_bytes(path) in [dataset_bytes(stored) for stored in standing.files()]


def test_an_object_sent_twice_is_one_file_and_other_bytes_under_its_uid_are_a_second_one(receiver: Receiver) -> None:
    receiver.start()
    first, other = image("1.2.3.4.5"), image("1.2.3.4.5")
    other.PatientID = "P2"
    assert receiver.send(first, first, other, first) == [0, 0, 0, 0]
    names = [path.name for path in receiver.files()]
    assert len(names) == 2
    assert names[0].split("-")[0] == names[1].split("-")[0]  # one UID
    receiver.stop()
    receiver.start()  # the secret of the names outlives a restart
    assert receiver.send(first) == [0]
    assert [path.name for path in receiver.files()] == names


def test_two_senders_at_once_lose_nothing(standing: Receiver) -> None:
    sent = {title: [image() for _ in range(15)] for title in ("NORTH", "SOUTH")}
    results: dict[str, list[int]] = {}

    def send(title: str) -> None:
        results[title] = standing.send(*sent[title], title=title)

    threads = [threading.Thread(target=send, args=(title,)) for title in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {title: [0] * 15 for title in sent}
    stored = {dcmread(path).SOPInstanceUID for path in standing.files()}
    assert stored == {data.SOPInstanceUID for images in sent.values() for data in images}


@pytest.mark.parametrize(
    ("storage", "title", "called", "why"),
    [
        ('senders = { SOUTH = ["127.0.0.1"] }', "NORTH", "HEMOFED", "its title is not in storage.senders"),
        ('senders = { NORTH = ["127.0.0.1"] }', "NORTH", "OTHER", "it called another title"),
        (
            'senders = { NORTH = ["10.0.0.1"], SOUTH = ["127.0.0.1"] }',
            "NORTH",
            "HEMOFED",
            "its address is not that of its title",
        ),
        ('senders = { NORTH = ["10.0.0.1"] }', "NORTH", "HEMOFED", "the address is not in storage.senders"),
    ],
    ids=["title", "called title", "title of another address", "address"],
)
def test_a_sender_that_is_not_listed_gets_no_association(
    receiver: Receiver, storage: str, title: str, called: str, why: str
) -> None:
    receiver.storage = storage
    receiver.start()
    association = receiver.associate(title, called=called)
    assert not association.is_established
    # PS3.8 table 9-21: the archive's own log names the title that is wrong.
    reasons = {"its title": 3, "it called": 7, "its address": 3}
    expected = next((number for words, number in reasons.items() if why.startswith(words)), None)
    answered = association.acceptor.primitive
    assert (answered.diagnostic if answered is not None else None) == expected
    receiver.stop()
    assert why in receiver.log
    assert receiver.files() == []


def test_other_modalities_are_not_accepted_unless_all_are_asked_for(standing: Receiver, receiver: Receiver) -> None:
    association = standing.associate(classes=(CTImageStorage, MRImageStorage))
    assert MRImageStorage not in {context.abstract_syntax for context in association.accepted_contexts}
    association.release()
    receiver.storage += '\naccept = "all"'
    receiver.start()
    association = receiver.associate(classes=(MRImageStorage,))
    assert MRImageStorage in {context.abstract_syntax for context in association.accepted_contexts}
    association.release()


def test_on_a_disk_with_too_little_room_the_sender_is_told_to_keep_its_images(receiver: Receiver) -> None:
    receiver.disk_free_min_gib = 90_000.0
    receiver.start()
    assert receiver.send(image()) == [OUT_OF_RESOURCES]
    assert receiver.files() == receiver.partials() == []
    receiver.stop()
    assert "less free than disk_free_min_gib" in receiver.log


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="only root can mount a small disk")
def test_a_disk_that_fills_while_an_image_arrives_costs_that_image_and_nothing_else(receiver: Receiver) -> None:
    receiver.incoming.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0750", "none", str(receiver.incoming)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    try:
        receiver.start()
        assert receiver.send(image()) == [0]
        association = receiver.associate()
        answer = association.send_c_store(image(size=2 << 20))
        assert "Status" not in answer or answer.Status == OUT_OF_RESOURCES
        wait("the end", lambda: not association.is_established)
        assert len(receiver.files()) == 1
        receiver.stop()
        receiver.start()  # what was left of it is swept
        assert receiver.send(image()) == [0]
        receiver.stop()
    finally:
        subprocess.run(["umount", "-l", str(receiver.incoming)], check=True)


def test_a_kill_between_writing_and_renaming_leaves_no_image_and_a_restart_sweeps(receiver: Receiver) -> None:
    receiver.start()
    connection = _half_an_object(receiver)
    wait("a partial file", lambda: any(path.stat().st_size > 900 for path in receiver.partials()))
    receiver.stop(signal.SIGKILL)
    connection.close()
    assert (len(receiver.partials()), receiver.files()) == (1, [])
    receiver.start()
    assert receiver.partials() == []
    assert receiver.send(image()) == [0]


def test_a_broken_transfer_leaves_no_image(standing: Receiver) -> None:
    connection = _half_an_object(standing)
    wait("a partial file", lambda: bool(standing.partials()))
    connection.close()
    assert standing.send(image()) == [0]
    assert len(standing.files()) == 1


# Hostile senders, from an address that may send.


def test_uids_like_paths_name_no_file_outside(receiver: Receiver, tmp_path: Path) -> None:
    receiver.start()
    before = {path for path in tmp_path.rglob("*") if "received" not in path.parts}
    for uid in ("../../../../tmp/x", "/etc/passwd", "1.2/../../3", "1" * 64, "a\\b", "..", "DOE^JANE"):
        with connected(receiver) as connection:
            connection.sendall(store_request(uid, b"\x08\x00\x16\x00UI\x02\x001\0"))
            connection.settimeout(10)
            connection.recv(4096)  # an answer, or the end
    for path in receiver.incoming.rglob("*"):
        name = path.relative_to(receiver.incoming).as_posix()
        assert path.is_dir() or name.startswith(".arriving/") or path in receiver.files(), name
    assert {path for path in tmp_path.rglob("*") if "received" not in path.parts} == before
    assert receiver.send(image()) == [0]
    receiver.stop()
    assert "DOE" not in receiver.log + " ".join(str(path) for path in tmp_path.rglob("*"))


def test_an_object_over_the_limit_ends_its_association_and_nothing_else(receiver: Receiver) -> None:
    receiver.top = "object_max_mib = 1"
    receiver.start()
    association = receiver.associate()
    status = association.send_c_store(image(size=2 << 20))
    assert "Status" not in status
    wait("the end", lambda: not association.is_established)
    assert receiver.files() == []
    assert receiver.send(image()) == [0]
    receiver.stop()
    assert "an object was over object_max_mib" in receiver.log


def test_a_huge_pdu_is_refused_before_memory_is_taken_for_it(standing: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", standing.port)) as connection:
        connection.sendall(b"\x01\x00\xff\xff\xff\xf0" + b"x" * 1000)
        connection.settimeout(10)
        assert _ends(connection)
    assert standing.send(image()) == [0]
    assert _resident_mib(standing) < 300


def test_a_sender_that_drips_is_cut_off(receiver: Receiver) -> None:
    receiver.storage += "\nidle_s = 1.0"
    receiver.start()
    with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
        began = time.monotonic()
        connection.settimeout(0.2)
        connection.sendall(b"\x01\x00\x00\x00\x40\x00")
        while time.monotonic() - began < 15:
            try:
                connection.sendall(b"x")
                if not connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - began < 8
    assert receiver.send(image()) == [0]


@pytest.mark.parametrize("connections_count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_thousand_connections_take_few_threads_and_one_more_sender_still_gets_in(
    receiver: Receiver, connections_count: int
) -> None:
    receiver.storage += "\nidle_s = 2.0\nassociations_max = 4"
    receiver.start()
    connections = []
    for _ in range(connections_count):
        try:
            connections.append(socket.create_connection(("127.0.0.1", receiver.port), timeout=5))
        except OSError:
            continue
    wait("few threads", lambda: _threads(receiver) < 40, 30)
    for connection in connections:
        connection.close()

    def gets_in() -> bool:
        association = receiver.associate()
        if not association.is_established:
            return False
        status = association.send_c_store(image())
        association.release()
        return bool(status.Status == 0)

    wait("an association", gets_in, 30)
    receiver.stop()
    assert "too many connections" in receiver.log
    assert len(receiver.log.splitlines()) < 20


def test_messages_that_do_not_wait_for_answers_are_refused(standing: Receiver) -> None:
    with connected(standing) as connection:
        connection.settimeout(10)
        try:
            for _ in range(2000):
                connection.sendall(store_request("1.2.3", b"\x08\x00\x16\x00UI\x02\x001\0"))
            ended = _ends(connection)
        except OSError:
            ended = True
        assert ended
    assert standing.send(image()) == [0]


# The parts that need no process.


def test_the_bounds_of_a_message_follow_its_commands() -> None:
    store, action = _command(1, "1.2"), _command(0x0130, "1.2")
    assert (command_field(store), command_field(action), command_field(b"\0" * 5)) == (1, 0x0130, None)
    bounds = MessageBounds(object_max=1000)
    for _ in range(3):  # each message counts by itself
        bounds.add(memoryview(_value(3, store) + _value(0, b"x" * 600) + _value(2, b"x" * 400)))
    with pytest.raises(PeerRefused, match="over object_max_mib"):
        bounds.add(memoryview(_value(3, store) + _value(0, b"x" * 1001)))
    with pytest.raises(PeerRefused, match="command was too large"):
        MessageBounds(1).add(memoryview(_value(1, b"x" * 70_000)))
    for malformed in (b"\0\0", b"\0\0\0\1\1\3", b"\0\0\xff\xff\1\3abc"):
        with pytest.raises(PeerRefused, match="malformed"):
            MessageBounds(1).add(memoryview(malformed))


def test_an_address_is_known_by_its_networks_in_either_spelling() -> None:
    text = '[storage]\nsenders = { A = ["10.1.2.0/24", "fd00::1"] }'
    (networks,) = parse(text, Path("/")).storage.networks.values()
    assert [is_known(address, networks) for address in ("10.1.2.9", "::ffff:10.1.2.9", "fd00::1")] == [True] * 3
    assert [is_known(address, networks) for address in ("10.1.3.9", "fd00::2", "", "x")] == [False] * 4


def _value(control: int, data: bytes) -> bytes:
    return struct.pack(">LBB", len(data) + 2, 1, control) + data


def _command(field: int, uid: str, instance: str = "1.2.3") -> bytes:
    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHL", 0, number, len(value)) + value

    body = (
        element(0x0002, uid.encode())
        + element(0x0100, struct.pack("<H", field))
        + element(0x0110, struct.pack("<H", 1))
        + element(0x0700, struct.pack("<H", 0))
        + element(0x0800, struct.pack("<H", 1))
        + element(0x1000, instance.encode())
    )
    return element(0, struct.pack("<L", len(body))) + body


def store_request(instance: str, data: bytes, *, is_whole: bool = True) -> bytes:
    """A C-STORE request in one PDU, with any UID and any bytes."""
    values = _value(3, _command(1, CTImageStorage, instance)) + _value(2 if is_whole else 0, data)
    return struct.pack(">BBL", 4, 0, len(values)) + values


def connected(receiver: Receiver) -> socket.socket:
    """An association made by hand, with context 1 for CT images."""

    def item(kind: int, data: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(data)) + data

    context = b"\1\0\0\0" + item(0x30, CTImageStorage.encode()) + item(0x40, UID("1.2.840.10008.1.2").encode())
    user = item(0x51, struct.pack(">L", 16_384)) + item(0x52, b"1.2.3")
    body = struct.pack(">HH16s16s32x", 1, 0, b"HEMOFED".ljust(16), b"NORTH".ljust(16))
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    connection = socket.create_connection(("127.0.0.1", receiver.port), timeout=10)
    connection.sendall(struct.pack(">BBL", 1, 0, len(body)) + body)
    assert connection.recv(1) == b"\2"  # accepted
    return connection


def _half_an_object(receiver: Receiver) -> socket.socket:
    connection = connected(receiver)
    connection.sendall(store_request("1.2.3.4", b"x" * 1000, is_whole=False))
    return connection


def _ends(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def _status(receiver: Receiver, name: str) -> int:
    assert receiver.process is not None
    lines = Path(f"/proc/{receiver.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _resident_mib(receiver: Receiver) -> float:
    return _status(receiver, "VmRSS:") / 1024


def _threads(receiver: Receiver) -> int:
    return _status(receiver, "Threads:")
