"""The pull from a DICOMweb server: what is fetched, once, and what a server cannot make the receiver do."""

import signal
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset

from site_client.errors import ArchiveError, ConfigRefused
from site_client.receiver.archive import Archive, Pace, uid_of
from site_client.receiver.incoming import Incoming
from site_client.receiver.multipart import MultipartRefused, boundary_of, write_part
from site_client.receiver.pull import PassResult, Pull
from site_client.receiver.settings import DicomwebSettings, ReceiverSettings
from tests.site_client.receiver.conftest import Receiver, image, wait
from tests.site_client.receiver.web import part10, self_signed, serving

NOW = datetime(2026, 12, 1, 12, 0).astimezone()


def study(
    number: int, *, images: int = 3, day: datetime = NOW, modality: str = "CT", part: str = ""
) -> list[FileDataset]:
    made = [image(f"1.2.{number}.1.{index}") for index in range(1, images + 1)]
    for data in made:
        data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.{number}", f"1.2.{number}.1"
        data.StudyDate, data.Modality = f"{day:%Y%m%d}", modality
        if part:
            data.BodyPartExamined = part
    return made


def folder(tmp_path: Path) -> Incoming:
    (tmp_path / "received").mkdir(exist_ok=True)
    return Incoming(tmp_path / "received", bytes(32))


def pulled(incoming: Incoming, web: DicomwebSettings, now: Callable[[], datetime] = lambda: NOW) -> PassResult:
    settings = ReceiverSettings(disk_free_min_gib=0.0, dicomweb=web)
    return Pull(settings, incoming, now, _raise).one_pass(threading.Event())


def _raise(error: OSError) -> None:
    raise error


def stored(incoming: Incoming) -> set[bytes]:
    return {(incoming.root / name).read_bytes() for name, _ in incoming.names()}


def test_a_pass_fetches_byte_for_byte_what_is_wanted_and_the_next_one_nothing(tmp_path: Path) -> None:
    wanted = [*study(1), *study(2, part="HEAD"), *study(3, day=NOW - timedelta(days=3))]
    others = [
        *study(4, modality="MR"),
        *study(5, day=NOW - timedelta(days=4)),
        *study(6, day=NOW + timedelta(days=1)),
        *study(7, part="CHEST"),
    ]
    incoming = folder(tmp_path)
    with serving([*wanted, *others]) as server:  # it ignores every key of a search, as a server may
        web = DicomwebSettings(server.url, body_parts=("HEAD", "BRAIN"))
        server.page_max = 2
        assert pulled(incoming, web) == PassResult(9, 0, True)
        assert stored(incoming) == {part10(data) for data in wanted}
        assert any("StudyDate=20261128-20261201" in path for path in server.asked)
        server.retrieved.clear()
        assert pulled(incoming, web) == PassResult(0, 0, True)
        assert server.retrieved == []
    assert list(incoming.arriving.iterdir()) == []


def test_a_pull_killed_at_any_moment_goes_on_without_loss_and_without_doubles(receiver: Receiver) -> None:
    images = study(1, images=40, day=datetime.now())
    with serving(images) as server:
        receiver.storage, receiver.dicomweb = "", f'url = "{server.url}"\nkib_s = 20\nevery_s = 1.0'
        receiver.start()
        wait("some images", lambda: len(receiver.files()) >= 5)
        receiver.stop(signal.SIGKILL)
        kept = {path.name for path in receiver.files()}
        receiver.dicomweb = f'url = "{server.url}"'
        receiver.start()
        wait("all images", lambda: len(receiver.files()) == 40)
        assert kept <= {path.name for path in receiver.files()}
        assert {path.read_bytes() for path in receiver.files()} == {part10(data) for data in images}
        # Only those that were on their way may have been asked for twice.
        assert len(server.retrieved) <= 40 + 2 * 2
        assert receiver.stop() == 0
        assert receiver.partials() == []


def test_a_rate_holds_for_all_connections_together(tmp_path: Path) -> None:
    images, kib_s = study(1, images=8), 24
    with serving(images) as server:
        began_s = time.monotonic()
        result = pulled(folder(tmp_path), DicomwebSettings(server.url, kib_s=kib_s, concurrency=4))
        passed_s = time.monotonic() - began_s
    assert result == PassResult(8, 0, True)
    assert passed_s >= sum(len(part10(data)) for data in images) / (kib_s * 1024)


def test_outside_its_hours_nothing_is_asked(tmp_path: Path) -> None:
    incoming = folder(tmp_path)
    with serving(study(1)) as server:
        web = DicomwebSettings(server.url, windows=("22:00 for 8h",))
        result = pulled(incoming, web)
        assert (result, server.retrieved) == (PassResult(0, 0, False), [])
        assert pulled(incoming, web, lambda: NOW.replace(hour=23)) == PassResult(3, 0, True)


def test_hours_that_end_during_a_pass_end_it(tmp_path: Path) -> None:
    incoming, asked = folder(tmp_path), 0

    def clock() -> datetime:
        nonlocal asked
        asked += 1
        return NOW.replace(hour=23) if asked < 5 else NOW

    with serving(study(1, images=9)) as server:
        result = pulled(incoming, DicomwebSettings(server.url, windows=("22:00 for 8h",), concurrency=1), clock)
    assert not result.is_whole
    assert result.fetched < 9


def test_on_a_disk_with_too_little_room_nothing_is_fetched(tmp_path: Path) -> None:
    incoming = folder(tmp_path)
    with serving(study(1)) as server:
        settings = ReceiverSettings(disk_free_min_gib=90_000.0, dicomweb=DicomwebSettings(server.url))
        result = Pull(settings, incoming, lambda: NOW, _raise).one_pass(threading.Event())
        assert (result, server.retrieved) == (PassResult(0, 0, False), [])


@pytest.mark.parametrize(
    ("status", "headers", "body", "why"),
    [
        (302, {"Location": "http://127.0.0.2:9/stolen"}, b"", "redirects, which is not followed"),
        (401, {}, b"DOE^JANE", "refuses (HTTP 401)"),
        (500, {}, b"DOE^JANE", "answers HTTP 500"),
        (200, {}, b"<html>DOE^JANE", "is not JSON"),
        (200, {}, b'{"DOE^JANE": 1}', "is no list"),
        (200, {}, b"[" * 100_000, "is not JSON"),
    ],
)
def test_an_answer_that_is_none_is_named_without_a_word_of_it(
    tmp_path: Path, status: int, headers: dict[str, str], body: bytes, why: str
) -> None:
    with serving([]) as server:
        server.answer = status, headers, body
        with pytest.raises(ArchiveError) as refusal:
            pulled(folder(tmp_path), DicomwebSettings(server.url))
    assert why in str(refusal.value)
    assert "DOE" not in str(refusal.value)
    assert "stolen" not in str(refusal.value)


@pytest.mark.parametrize(
    "retrieval",
    [
        part10(image("1.2.9.1.1")),
        b"<html><title>502</title>no answer about MEIER^ANNA" + b" " * 500 + b"</html>",
        bytes(128) + b"DICM" + bytes(500),
        bytes(128) + b"DICM" + b"\x02\0\x03\0UI",
        bytes(4000),
    ],
)
def test_another_image_than_the_one_asked_for_is_not_kept_under_its_name(tmp_path: Path, retrieval: bytes) -> None:
    incoming = folder(tmp_path)
    with serving(study(1)) as server:
        server.retrieval = retrieval
        web = DicomwebSettings(url=server.url)
        assert pulled(incoming, web) == PassResult(0, 3, is_whole=False)
        assert not list(incoming.names())
        assert not list(incoming.arriving.iterdir())
        server.retrieval = None
        assert pulled(incoming, web).fetched == 3


def test_a_search_of_any_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("site_client.receiver.archive._JSON_MAX", 10_000)
    with serving([]) as server:
        server.answer = 200, {}, b"[" + b" " * 20_000 + b"]"
        with pytest.raises(ArchiveError, match="is over"):
            pulled(folder(tmp_path), DicomwebSettings(server.url))


def test_a_search_of_many_small_values_takes_no_memory_for_them(tmp_path: Path) -> None:
    with serving(study(1)) as server:
        body = b"[" + b"[]," * 3_000_000 + b"[]]"
        server.answer = (200, {"Content-Type": "application/dicom+json"}, body)
        tracemalloc.start()
        with pytest.raises(ArchiveError, match="over 2000000 values"):
            pulled(folder(tmp_path), DicomwebSettings(url=server.url))
        assert tracemalloc.get_traced_memory()[1] < 8 * len(body)
        tracemalloc.stop()


@pytest.mark.parametrize("lines", [b"HTTP/1.1 100 Continue\r\n\r\n", b"y"], ids=["continue", "drip"])
def test_an_answer_whose_head_never_ends_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: bytes) -> None:
    monkeypatch.setattr("site_client.receiver.archive._HEAD_S", 1.0)
    is_over = threading.Event()

    def answer_for_ever() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            while not is_over.wait(0.02):
                connection.sendall(lines)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer_for_ever)
        thread.start()
        web = DicomwebSettings(url=f"http://127.0.0.1:{listening.getsockname()[1]}", stall_s=60.0)
        with pytest.raises(ArchiveError, match="does not answer"):
            pulled(folder(tmp_path), web)
        is_over.set()
        thread.join()


def test_a_server_that_knows_no_pages_is_asked_twice_and_not_for_ever() -> None:
    with serving([]) as server:
        server.answer = 200, {}, b'[{"0020000D": {"vr": "UI", "Value": ["1.2"]}}]'
        found = list(Archive(DicomwebSettings(server.url), Pace(0)).search("studies", {}, ()))
    assert (len(found), len(server.asked)) == (1, 2)


def test_uids_that_are_none_reach_no_request(tmp_path: Path) -> None:
    for uid in ("../../admin", "1.2/..", "DOE^JANE", "", "..", "1" * 65):
        assert uid_of({"0020000D": [uid]}, "0020000D") == ""
    assert uid_of({"0020000D": ["1.2.3"]}, "0020000D") == "1.2.3"


def test_the_credential_goes_to_the_server_over_tls_of_the_named_ca_only(tmp_path: Path) -> None:
    tls, ca = self_signed(tmp_path)
    secret = tmp_path / "credential"
    secret.write_text("user:swordfish\n")
    secret.chmod(0o640)
    incoming = folder(tmp_path)
    with serving(study(1), tls) as server:
        web = DicomwebSettings(server.url, ca_file=str(ca), credential="basic", credential_file=str(secret))
        assert pulled(incoming, web).fetched == 3
        assert server.authorization == {"Basic dXNlcjpzd29yZGZpc2g="}
        bearer = DicomwebSettings(server.url, ca_file=str(ca), credential="bearer", credential_file=str(secret))
        pulled(incoming, bearer)
        assert "Bearer user:swordfish" in server.authorization
        server.authorization.clear()
        with pytest.raises(ArchiveError, match="certificate is not of ca_file"):
            pulled(incoming, DicomwebSettings(server.url, credential="basic", credential_file=str(secret)))
        assert server.authorization == set()
    secret.chmod(0o644)
    with pytest.raises(ConfigRefused, match="chmod 0640") as refusal:
        Archive(web, Pace(0))
    assert "swordfish" not in str(refusal.value)
    with pytest.raises(ConfigRefused, match="needs an https:// url"):
        DicomwebSettings("http://pacs/dicom-web", credential="basic")


# The one part of an answer.


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_part_is_written_whole_however_its_bytes_arrive(step: int) -> None:
    body = bytes(range(256)) * 8 + b"\r\n--B\r\n--"
    answer = b"\r\n--B0\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n--B0--\r\nepilogue"
    pieces = iter([answer[at : at + step] for at in range(0, len(answer), step)])
    file = BytesIO()
    assert write_part(lambda: next(pieces, b""), b"B0", file, 1 << 20) == len(body)
    assert file.getvalue() == body


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "ended too early"),
        (b"--B0\r\n\r\nhalf", "ended too early"),
        (b"--B0\r\n\r\none\r\n--B0\r\n\r\ntwo\r\n--B0--", "more than one part"),
        (b"x" * 200_000, "head is too long"),
        (b"--B0\r\n\r\n" + b"x" * 2000 + b"\r\n--B0--", "over object_max_mib"),
    ],
)
def test_an_answer_without_exactly_one_whole_part_is_refused(answer: bytes, why: str) -> None:
    pieces = iter([answer])
    with pytest.raises(MultipartRefused, match=why):
        write_part(lambda: next(pieces, b""), b"B0", BytesIO(), 1000)


def test_a_boundary_is_read_in_quotes_and_without() -> None:
    plain = 'multipart/related; type="application/dicom"; boundary=a-b'
    assert boundary_of(plain) == boundary_of(plain.replace("a-b", '"a-b"')) == b"a-b"
    for wrong in ("text/html", "multipart/related", "multipart/related; boundary="):
        with pytest.raises(MultipartRefused):
            boundary_of(wrong)
