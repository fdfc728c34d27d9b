"""Blobs: named by their hash, complete only by their hash, resumable at an offset."""

import hashlib
import os
import stat
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from federation.limits import CHUNK_BYTES_MAX
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.errors import BlobRefused, DigestRefused, NotFound, OffsetRefused
from aggregator.store.blobs import Blobs, UploadProgress

LIMIT = 8 << 20


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs", LIMIT)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def read(blobs: Blobs, name: bytes) -> bytes:
    with blobs.open(name) as reader:
        return reader.read()


def test_an_upload_in_chunks_is_complete_after_the_last_one(blobs: Blobs) -> None:
    data = os.urandom(2 * CHUNK_BYTES_MAX + 17)
    name = digest(data)
    assert blobs.offer(name, len(data)) == UploadProgress(0, complete=False)
    for offset in range(0, len(data), CHUNK_BYTES_MAX):
        progress = blobs.put(name, len(data), offset, data[offset : offset + CHUNK_BYTES_MAX])
    assert progress == UploadProgress(len(data), complete=True)
    assert read(blobs, name) == data


def test_an_upload_goes_on_where_it_stopped_after_a_restart(blobs: Blobs, tmp_path: Path) -> None:
    data = os.urandom(3000)
    name = digest(data)
    blobs.put(name, len(data), 0, data[:1000])
    restarted = Blobs(tmp_path / "blobs", LIMIT)
    assert restarted.offer(name, len(data)) == UploadProgress(1000, complete=False)
    assert restarted.put(name, len(data), 1000, data[1000:]) == UploadProgress(3000, complete=True)


@settings(max_examples=25, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=400), cuts=st.lists(st.integers(1, 399), max_size=5), again=st.integers(0, 5)
)
def test_any_way_to_cut_an_upload_leads_to_the_same_blob(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int], again: int
) -> None:
    blobs = Blobs(tmp_path_factory.mktemp("cut"), LIMIT)
    name = digest(data)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for index, (start, end) in enumerate(pairwise(edges)):
        blobs.put(name, len(data), start, data[start:end])
        if index == again:  # the answer was lost: the same chunk once more
            blobs.put(name, len(data), start, data[start:end])
    assert blobs.offer(name, len(data)) == UploadProgress(len(data), complete=True)
    assert read(blobs, name) == data


def test_an_upload_of_something_complete_is_complete_at_once(blobs: Blobs, tmp_path: Path) -> None:
    stored = blobs.add(b"model")
    assert blobs.offer(stored.digest, 5) == UploadProgress(5, complete=True)
    assert blobs.put(stored.digest, 5, 0, b"model") == UploadProgress(5, complete=True)
    assert len(files_in(tmp_path)) == 1


@pytest.mark.parametrize("offset", [0, 500, 999, 1001, 2000])
def test_a_chunk_that_overlaps_or_leaves_a_gap_is_refused_with_where_to_continue(blobs: Blobs, offset: int) -> None:
    data = os.urandom(3000)
    blobs.put(digest(data), len(data), 0, data[:1000])
    with pytest.raises(OffsetRefused) as refused:
        blobs.put(digest(data), len(data), offset, data[offset : offset + 1000 + (offset == 0)])
    assert refused.value.held_bytes == 1000
    assert str(refused.value).endswith("continue at 1000")


def test_wrong_bytes_are_found_out_at_the_end_and_thrown_away(blobs: Blobs, tmp_path: Path) -> None:
    data = os.urandom(2000)
    name = digest(data)
    blobs.put(name, len(data), 0, b"x" * 1000)
    with pytest.raises(DigestRefused):
        blobs.put(name, len(data), 1000, data[1000:])
    assert files_in(tmp_path) == []
    assert blobs.offer(name, len(data)) == UploadProgress(0, complete=False)
    blobs.put(name, len(data), 0, data[:1000])
    assert blobs.put(name, len(data), 1000, data[1000:]).complete


def test_a_crash_between_the_last_byte_and_its_hashing_is_made_good_by_the_next_offer(
    blobs: Blobs, tmp_path: Path
) -> None:
    data = os.urandom(500)
    (tmp_path / "blobs" / "partial" / digest(data).hex()).write_bytes(data)
    assert blobs.offer(digest(data), 500) == UploadProgress(500, complete=True)
    assert read(blobs, digest(data)) == data


def test_a_partial_file_that_the_disk_spoilt_is_begun_again(blobs: Blobs, tmp_path: Path) -> None:
    data = os.urandom(500)
    (tmp_path / "blobs" / "partial" / digest(data).hex()).write_bytes(bytes(500))
    assert blobs.offer(digest(data), 500) == UploadProgress(0, complete=False)
    assert blobs.put(digest(data), 500, 0, data).complete


@pytest.mark.parametrize("name", [b"", b"short", b"../../../etc/passwd", b"x" * 31, b"x" * 33, b"/" * 64])
def test_only_32_bytes_are_a_name(blobs: Blobs, name: bytes, tmp_path: Path) -> None:
    for verb in (
        lambda: blobs.offer(name, 10),
        lambda: blobs.put(name, 10, 0, b"x"),
        lambda: blobs.open(name),
        lambda: blobs.drop(name),
    ):
        with pytest.raises(BlobRefused):
            verb()
    assert files_in(tmp_path) == []


def test_a_name_made_of_path_characters_stays_inside_the_folder(blobs: Blobs, tmp_path: Path) -> None:
    blobs.put(b"/../" * 8, 10, 0, b"x")
    assert [path.parent for path in files_in(tmp_path)] == [tmp_path / "blobs" / "partial"]


def test_a_link_in_the_place_of_a_partial_file_is_not_followed(blobs: Blobs, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "blobs" / "partial" / digest(b"data").hex()).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        blobs.put(digest(b"data"), 4, 0, b"data")
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("size", [-1, 0, LIMIT + 1])
def test_a_size_of_nothing_or_above_the_limit_is_refused(blobs: Blobs, size: int) -> None:
    with pytest.raises(BlobRefused, match="expected a blob of"):
        blobs.offer(bytes(32), size)
    with pytest.raises(BlobRefused, match="expected a blob of"):
        blobs.put(bytes(32), size, 0, b"x")


@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, b""), (0, bytes(CHUNK_BYTES_MAX + 1)), (-1, b"x"), (LIMIT, b"x"), (LIMIT - 1, b"xx")],
    ids=["empty", "too long", "negative", "beyond", "across the end"],
)
def test_a_chunk_that_does_not_fit_the_blob_is_refused(blobs: Blobs, offset: int, data: bytes) -> None:
    with pytest.raises(BlobRefused, match="expected a chunk"):
        blobs.put(bytes(32), LIMIT, offset, data)


def test_another_size_for_a_complete_blob_is_refused(blobs: Blobs) -> None:
    stored = blobs.add(b"model")
    with pytest.raises(BlobRefused, match="expected size 5"):
        blobs.offer(stored.digest, 6)


def test_a_file_added_is_the_same_blob_as_its_bytes(blobs: Blobs, tmp_path: Path) -> None:
    data = os.urandom(CHUNK_BYTES_MAX + 3)
    (tmp_path / "model").write_bytes(data)
    assert blobs.add(tmp_path / "model") == blobs.add(data)
    assert read(blobs, digest(data)) == data


def test_a_file_taken_becomes_the_blob_and_is_gone(blobs: Blobs, tmp_path: Path) -> None:
    data = os.urandom(CHUNK_BYTES_MAX + 3)
    (tmp_path / "model").write_bytes(data)
    (tmp_path / "again").write_bytes(data)
    assert blobs.take(tmp_path / "model") == blobs.take(tmp_path / "again") == blobs.add(data)
    assert read(blobs, digest(data)) == data
    (blob,) = files_in(tmp_path)
    assert stat.S_IMODE(blob.stat().st_mode) == 0o600


def test_a_file_too_large_to_be_taken_is_left_where_it_is(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(BlobRefused):
        blobs.take(tmp_path / "model")
    assert files_in(tmp_path) == [tmp_path / "model"]


def test_nothing_stays_behind_when_adding_is_refused(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(BlobRefused):
        blobs.add(bytes(LIMIT + 1))
    with pytest.raises(BlobRefused):
        blobs.add(b"")
    assert files_in(tmp_path) == []


def test_a_partial_blob_cannot_be_opened(blobs: Blobs) -> None:
    blobs.put(digest(b"whole"), 5, 0, b"who")
    with pytest.raises(NotFound):
        blobs.open(digest(b"whole"))


def test_dropping_forgets_complete_and_partial_blobs_and_is_quiet_about_absent_ones(
    blobs: Blobs, tmp_path: Path
) -> None:
    stored = blobs.add(b"model")
    blobs.put(digest(b"whole"), 5, 0, b"who")
    with blobs.open(stored.digest) as reader:
        for name in (stored.digest, digest(b"whole"), bytes(32)):
            blobs.drop(name)
        assert reader.read() == b"model"
    assert files_in(tmp_path) == []


def test_files_and_folders_are_for_their_owner_only(blobs: Blobs, tmp_path: Path) -> None:
    blobs.add(b"model")
    blobs.put(digest(b"whole"), 5, 0, b"who")
    for path in (tmp_path / "blobs").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.is_file() else 0o700)


def test_uploads_of_one_blob_at_once_end_in_one_whole_blob(blobs: Blobs, tmp_path: Path) -> None:
    """Six callers send the same chunks; refused offsets are gone on with, as a site does."""
    data = os.urandom(40_000)
    name, start = digest(data), threading.Barrier(6)

    def send() -> None:
        start.wait()
        progress = blobs.offer(name, len(data))
        while not progress.complete:
            held = progress.held_bytes
            try:
                progress = blobs.put(name, len(data), held, data[held : held + 1000])
            except OffsetRefused as refused:
                progress = UploadProgress(refused.held_bytes, complete=False)

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(blobs, name) == data
    assert len(files_in(tmp_path)) == 1
