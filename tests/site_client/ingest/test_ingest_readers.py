"""Reader processes: whatever a file does to one, it is a code, and the next file is read."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import psutil
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless

from site_client.ingest.catalog.catalog import Catalog
from site_client.ingest.files import reader as reader_module
from site_client.ingest.files.frames import LENGTHS, read_lengths, write_frame
from site_client.ingest.files.header import DicomHeader
from site_client.ingest.files.reader import Reader
from site_client.ingest.files.readers import Readers
from site_client.ingest.files.slices import Slice
from site_client.ingest.pseudonym import SiteSecret
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import Rules
from tests.site_client.ingest.conftest import Scanner
from tests.site_client.ingest.damage import CANARIES, compressed, deflated, encodings, endless, mutations, nested


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """One for all tests: whatever one of them does to its process, the next one finds a sound one."""
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture
def ct(scanner: Scanner) -> Path:
    return scanner.series(slices=1)[0]


def worker(reader: Reader) -> psutil.Process:
    """The process that reads the files: the only child of the reader process."""
    reader.decoders()
    assert reader._process is not None
    deadline = time.monotonic() + 10
    while not (children := psutil.Process(reader._process.pid).children()):
        assert time.monotonic() < deadline
    return children[0]


def header(reader: Reader, path: Path, secret: SiteSecret) -> DicomHeader | Reason:
    (result,) = reader.headers([(path, path.stat().st_size)], secret, Rules())
    assert isinstance(result, DicomHeader | Reason)
    return result


def pixels(reader: Reader, path: Path) -> Slice | Reason:
    (result,) = reader.slices([path])
    return result


def aborting(ct: Path, reader: Reader) -> Path:
    """A JPEG-LS file whose damage makes the decoder abort its process."""
    sound = compressed(ct, JPEGLSLossless)
    data = sound.read_bytes()
    stream = data.index(b"\xe0\x7f\x10\x00OB") + 20
    before = worker(reader).pid
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 6)):
            damaged[int(rng.integers(stream, stream + 120))] = int(rng.integers(256))
        sound.write_bytes(bytes(damaged))
        pixels(reader, sound)
        if worker(reader).pid != before:
            return sound
    pytest.skip("no damage makes this version of the decoder abort")


def test_a_decoder_that_aborts_costs_its_file_a_code_and_no_other_file_anything(
    scanner: Scanner, ct: Path, reader: Reader, catalog: Catalog
) -> None:
    path = aborting(ct, reader)
    sound = pixels(reader, ct)
    assert isinstance(sound, Slice)
    first, second, third = reader.slices([ct, path, ct])
    assert second is Reason.Q_DECODE
    for image in (first, third):
        assert isinstance(image, Slice)
        assert np.array_equal(image.stored, sound.stored)
    ct.unlink()
    scanner.series("1.2.4")
    report = catalog.scan(scanner.root)
    assert (report.studies_ready, report.series["Q_DECODE"]) == (1, 1)


def test_a_worker_that_is_killed_from_outside_costs_no_file_its_verdict(reader: Reader, ct: Path) -> None:
    at_work = worker(reader)
    at_work.suspend()
    threading.Timer(0.3, at_work.kill).start()
    assert isinstance(pixels(reader, ct), Slice)
    assert worker(reader).pid != at_work.pid


def test_a_reader_process_that_is_killed_is_started_again(reader: Reader, ct: Path, secret: SiteSecret) -> None:
    assert isinstance(header(reader, ct, secret), DicomHeader)
    assert reader._process is not None
    first = psutil.Process(reader._process.pid)
    both = [first, *first.children()]
    first.kill()
    assert isinstance(header(reader, ct, secret), DicomHeader)  # perhaps by the worker, which outlives it for a moment
    assert psutil.wait_procs(both, timeout=10)[1] == []
    assert isinstance(header(reader, ct, secret), DicomHeader)
    assert worker(reader) not in both


def test_a_file_that_gives_no_answer_is_left_and_the_next_one_read(
    reader: Reader, ct: Path, secret: SiteSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work = worker(reader)
    monkeypatch.setattr(reader_module, "STALL_S", 1)
    at_work.suspend()
    assert header(reader, ct, secret) is Reason.Q_DECODE_LIMIT
    assert isinstance(header(reader, ct, secret), DicomHeader)


def test_a_pause_of_both_sides_is_no_silence(
    reader: Reader, ct: Path, secret: SiteSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The reading side counts its own seconds: one that is suspended counts none. Here it counts two, of three allowed.
    at_work = worker(reader)
    monkeypatch.setattr(reader_module, "STALL_S", 3)
    at_work.suspend()
    threading.Timer(2.2, at_work.resume).start()
    assert isinstance(header(reader, ct, secret), DicomHeader)
    assert worker(reader).pid == at_work.pid


def test_no_module_is_taken_from_the_folder_in_which_a_person_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Reader
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "struct.py").write_text("raise SystemExit\n")
    (tmp_path / "site_client").mkdir()
    (tmp_path / "site_client" / "__init__.py").write_text("raise SystemExit\n")
    assert reader.decoders()


def test_processes_end_with_the_program_that_asked_them(tmp_path: Path) -> None:
    reader = Reader()
    at_work = worker(reader)
    assert reader._process is not None
    both = [psutil.Process(reader._process.pid), at_work]
    # As when that program is killed: nothing but the pipe tells them.
    assert reader._process.stdin is not None
    reader._process.stdin.close()
    assert psutil.wait_procs(both, timeout=10)[1] == []
    reader.close()


def test_a_worker_may_write_no_file_and_leave_no_core(reader: Reader) -> None:
    at_work = worker(reader)
    assert at_work.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert at_work.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert at_work.rlimit(psutil.RLIMIT_AS)[1] < 2 << 30
    assert "torch" not in " ".join(mapped.path for mapped in at_work.memory_maps())


@pytest.mark.parametrize("megabytes", [0, 100])
def test_a_deflated_file_is_read_up_to_its_limit_and_in_bounded_memory(
    reader: Reader, ct: Path, secret: SiteSecret, tmp_path: Path, megabytes: int
) -> None:
    path = tmp_path / "deflated"
    path.write_bytes(deflated(ct, megabytes))
    assert path.stat().st_size < 200_000
    if megabytes:
        assert header(reader, path, secret) is Reason.Q_DECODE_LIMIT
        assert pixels(reader, path) is Reason.Q_DECODE_LIMIT
    else:
        assert header(reader, path, secret) == header(reader, ct, secret)
        plain, image = pixels(reader, ct), pixels(reader, path)
        assert isinstance(plain, Slice)
        assert isinstance(image, Slice)
        assert np.array_equal(plain.stored, image.stored)
    peak_kib = int((Path("/proc") / str(worker(reader).pid) / "status").read_text().split("VmHWM:")[1].split()[0])
    assert peak_kib < 400_000


def test_sequences_a_thousand_deep_are_a_limit(reader: Reader, ct: Path, secret: SiteSecret, tmp_path: Path) -> None:
    path = tmp_path / "nested"
    path.write_bytes(nested(ct, 1000))
    assert header(reader, path, secret) in (Reason.Q_DECODE_LIMIT, Reason.Q_READ)
    assert isinstance(header(reader, ct, secret), DicomHeader)


@pytest.mark.slow
def test_an_element_without_end_is_a_limit(reader: Reader, ct: Path, secret: SiteSecret, tmp_path: Path) -> None:
    began_s = time.monotonic()
    assert header(reader, endless(ct, tmp_path / "endless"), secret) in (Reason.Q_DECODE_LIMIT, Reason.Q_READ)
    assert time.monotonic() - began_s < 40
    assert isinstance(header(reader, ct, secret), DicomHeader)


def test_a_file_larger_than_any_image_is_not_read_into_memory(
    reader: Reader, ct: Path, secret: SiteSecret, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    path.write_bytes(ct.read_bytes())
    with path.open("r+b") as file:
        file.truncate(12 << 30)
    result = header(reader, path, secret)
    assert isinstance(result, DicomHeader)
    assert result.reasons == (Reason.Q_DECODE_LIMIT,)
    assert pixels(reader, path) is Reason.Q_DECODE_LIMIT


def test_compressed_pixels_are_whole_without_their_last_delimiter(reader: Reader, ct: Path, secret: SiteSecret) -> None:
    path = compressed(ct, RLELossless)
    path.write_bytes(path.read_bytes()[:-8])
    result, image, plain = header(reader, path, secret), pixels(reader, path), pixels(reader, ct)
    assert isinstance(result, DicomHeader)
    assert isinstance(image, Slice)
    assert isinstance(plain, Slice)
    assert (result.reasons, image.stored.tolist()) == ((), plain.stored.tolist())


@pytest.mark.parametrize("encapsulated", [False, True])
def test_values_are_read_from_the_bits_that_the_header_names(reader: Reader, ct: Path, encapsulated: bool) -> None:
    plain = pixels(reader, ct)
    assert isinstance(plain, Slice)
    dataset = dcmread(ct)
    twelve = np.clip(plain.stored, 0, 4095).astype("<u2")
    dataset.PixelData = ((twelve << 4) | 0x9).tobytes()  # the lowest four bits are nobody's
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 15, 0
    if encapsulated:
        dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(ct)
    image = pixels(reader, ct)
    assert isinstance(image, Slice)
    assert np.array_equal(image.stored, twelve)


def test_questions_one_after_the_other_take_one_process_which_may_have_been_started_before(ct: Path) -> None:
    readers = Readers(3)
    try:
        readers.start()
        (started,) = [reader._process for reader in readers._readers if reader._process is not None]
        assert readers.decoders()
        for _ in range(3):
            (image,) = readers.slices([ct])
            assert isinstance(image, Slice)
        assert [reader._process for reader in readers._readers if reader._process is not None] == [started]
    finally:
        readers.close()


def test_all_readers_together_keep_the_order_of_their_questions(scanner: Scanner) -> None:
    paths = scanner.series()
    pool = Readers(2)
    try:
        images = pool.slices([*paths, *reversed(paths)], step=4)
    finally:
        pool.close()
    heights = [image.position[2] for image in images if isinstance(image, Slice)]
    assert heights == [*(5.0 * k for k in range(24)), *(5.0 * k for k in reversed(range(24)))]


def fuzz(
    count: int, seed: int, ct: Path, tmp_path: Path, secret: SiteSecret, capfd: pytest.CaptureFixture[str]
) -> None:
    """Reads `count` damaged files. Each gives a header, a slice or a code; none takes long; nothing is said of them."""
    pool = Readers(2)
    folder = tmp_path / "damaged"
    folder.mkdir()

    def ask(reader: Reader, item: tuple[int, bytes]) -> tuple[float, DicomHeader | Reason, Slice | Reason]:
        number, data = item
        path = folder / f"CANARYNAME{number}"
        path.write_bytes(data)
        began_s = time.monotonic()
        result = header(reader, path, secret), pixels(reader, path)
        path.unlink()
        return time.monotonic() - began_s, *result

    longest_s = 0.0
    try:
        for seconds, head, image in pool.map(ask, enumerate(mutations(encodings(ct), count, seed))):
            longest_s = max(longest_s, seconds)
            assert isinstance(head, DicomHeader | Reason)
            assert isinstance(image, Slice | Reason)
            told = repr(head) + (head.to_json() if isinstance(head, DicomHeader) else "") + repr(image)
            assert not [canary for canary in CANARIES if canary in told]
    finally:
        pool.close()
    assert longest_s < 60
    assert capfd.readouterr() == ("", "")


def test_two_thousand_damaged_files_get_past_no_door(
    ct: Path, tmp_path: Path, secret: SiteSecret, capfd: pytest.CaptureFixture[str]
) -> None:
    fuzz(2000, 1, ct, tmp_path, secret, capfd)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_fifty_thousand_damaged_files_get_past_no_door(
    ct: Path, tmp_path: Path, secret: SiteSecret, capfd: pytest.CaptureFixture[str]
) -> None:
    fuzz(50_000, 2, ct, tmp_path, secret, capfd)


def test_damaged_and_odd_files_beside_a_good_series_cost_it_nothing(
    scanner: Scanner, ct: Path, catalog: Catalog
) -> None:
    files = encodings(ct)
    for path in scanner.root.rglob("*"):
        if path.is_file():
            path.unlink()
    scanner.series("1.2.4")
    for number, data in enumerate(mutations(files, 60, 3)):
        (scanner.root / f"bad{number}").write_bytes(data)

    def one_pixel(dataset: Dataset, index: int) -> None:
        dataset.Rows = dataset.Columns = 1
        dataset.PixelData = bytes(2)

    (tiny,) = scanner.series("1.2.5", slices=1, edit=one_pixel)
    (unknown_vr,) = scanner.series("1.2.6", slices=1)
    data = unknown_vr.read_bytes()
    unknown_vr.write_bytes(data.replace(b"\x28\x00\x53\x10DS", b"\x28\x00\x53\x10D0"))
    assert unknown_vr.read_bytes() != data
    report = catalog.scan(scanner.root)
    assert report.studies_ready == 1
    for path in (tiny, unknown_vr):
        assert re.search(r"\b[QR]_[A-Z_]+\b", "\n".join(catalog.explain(str(path))))


def test_a_file_that_takes_too_much_processor_time_ends_its_worker(
    ct: Path, secret: SiteSecret, tmp_path: Path
) -> None:
    """An element without end, with a lower limit: the real one takes ten seconds."""
    program = (
        "from site_client.ingest.files import reader_process as process\n"
        "process.CPU_S_MAX['header'] = 0.2\n"
        "process.main()\n"
    )
    asked = {"task": "header", "secret": secret.value.hex(), "rules": msgspec.to_builtins(Rules())}
    files = [[str(path), path.stat().st_size] for path in (endless(ct, tmp_path / "endless"), ct)]
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def answer(stream: IO[bytes]) -> dict[str, Any]:
            table: dict[str, Any] = json.loads(stream.read(read_lengths(stream.read(LENGTHS.size))[0]))
            return table

        assert "decoders" in answer(process.stdout)
        write_frame(process.stdin.fileno(), {**asked, "id": 1, "files": files[:1]})
        assert answer(process.stdout) == {"died": signal.SIGPROF}
        write_frame(process.stdin.fileno(), {**asked, "id": 2, "files": files[1:]})
        assert "header" in answer(process.stdout)
        process.stdin.close()


def test_signals_that_end_a_worker_are_told_apart(reader: Reader, ct: Path, secret: SiteSecret) -> None:
    for number, reason in ((signal.SIGSEGV, Reason.Q_READ), (signal.SIGPROF, Reason.Q_DECODE_LIMIT)):
        at_work = worker(reader)
        at_work.suspend()
        asked = threading.Timer(
            0.3, lambda at_work=at_work, number=number: (at_work.send_signal(number), at_work.resume())
        )
        asked.start()
        assert header(reader, ct, secret) is reason
        # The next worker may find the old question, too: its answer is no answer to a new one.
        assert isinstance(pixels(reader, ct), Slice)
        assert isinstance(header(reader, ct, secret), DicomHeader)
