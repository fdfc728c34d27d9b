"""Content-addressed files: masked uploads, published sums, models. A blob is named by its SHA-256 and nothing else.

Eight verbs, so that an object store can stand behind the same ones later:

    offer(digest, size)              how much of it is here already
    put(digest, size, offset, data)  one chunk of an upload, in order; the last one completes it
    add(bytes or file)               a whole blob of our own making
    take(file)                       the same without a copy: the file becomes the blob
    open(digest)                     a complete blob, for reading
    check(digest)                    a complete blob still has the bytes that were stored
    drop(digest)                     forget it, complete or not
    digests()                        of all that are here

A blob is absent, partial or complete, and only its hash makes it complete: chunks gather in `partial/`, and are renamed
into place after hashing and fsync. An upload continues in the partial file that a crash left; if the disk lost part of
it, the hash is wrong and the upload begins again. Names on disk come from 32 raw bytes through hex, so no caller can
choose a path.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import structlog
from federation.limits import CHUNK_BYTES_MAX, DIGEST_BYTES

from aggregator.errors import BlobDamaged, BlobRefused, DigestRefused, NotFound, OffsetRefused

log = structlog.get_logger()

_OWN = "add-"  # before the name of a file that `add` is writing


@dataclass(frozen=True)
class UploadProgress:
    """Progress of an upload."""

    held_bytes: int
    complete: bool  # all bytes are here and the hash is right


@dataclass(frozen=True)
class StoredBlob:
    """A complete blob."""

    digest: bytes
    size_bytes: int


class Blobs:
    """One folder of blobs. Safe for several threads and processes: each partial blob is locked while it grows."""

    def __init__(self, folder: Path, size_limit_bytes: int) -> None:
        """Use `folder`, made if missing (0700).

        Args:
            folder: Holds the blobs and nothing else.
            size_limit_bytes: No blob may be larger.
        """
        self._whole = folder / "whole"
        self._partial = folder / "partial"
        self._size_limit_bytes = size_limit_bytes
        for path in (folder, self._whole, self._partial):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def offer(self, digest: bytes, size_bytes: int) -> UploadProgress:
        """Say where an upload should continue. Asking twice changes nothing.

        Raises:
            BlobRefused: For a digest that is not 32 bytes, a size of 0 or above the limit, or a complete blob of
                another size.
        """
        self._check_size(size_bytes)
        whole, partial = self._whole_path(digest), self._partial_path(digest)
        if whole.exists():
            return _finished(whole, size_bytes)
        if not partial.exists():
            return UploadProgress(0, complete=False)
        with self._locked_partial(digest) as file:
            held_bytes = os.fstat(file).st_size
            if held_bytes < size_bytes:
                return UploadProgress(held_bytes, complete=False)
            # A crash came between the last chunk and its hashing.
            try:
                self._complete(file, digest)
            except DigestRefused:
                return UploadProgress(0, complete=False)
            return UploadProgress(size_bytes, complete=True)

    def put(self, digest: bytes, size_bytes: int, offset: int, data: bytes) -> UploadProgress:
        """Append one chunk. A chunk that is here already is accepted and changes nothing.

        Raises:
            OffsetRefused: When it leaves a gap or straddles the end of the bytes that are held.
            BlobRefused: For a chunk that is empty, above 1 MiB, or goes beyond `size_bytes`.
            DigestRefused: When the last byte is here and the hash is wrong; all bytes are discarded.
        """
        self._check_size(size_bytes)
        if not 1 <= len(data) <= CHUNK_BYTES_MAX or offset < 0 or offset + len(data) > size_bytes:
            raise BlobRefused(
                f"expected a chunk of 1..{CHUNK_BYTES_MAX} bytes within {size_bytes}, got {len(data)} bytes at {offset}"
            )
        whole = self._whole_path(digest)
        with self._locked_partial(digest) as file:
            if whole.exists():  # completed before, or by a call that this one waited for
                self._partial_path(digest).unlink()
                return _finished(whole, size_bytes)
            held_bytes = os.fstat(file).st_size
            if offset > held_bytes or offset < held_bytes < offset + len(data):
                raise OffsetRefused(
                    f"expected the chunk at offset {held_bytes}, got one at {offset}; continue at {held_bytes}",
                    held_bytes,
                )
            if offset == held_bytes:  # else the chunk came before and its answer was lost
                _write_all(file, data)
                held_bytes += len(data)
            if held_bytes < size_bytes:
                return UploadProgress(held_bytes, complete=False)
            self._complete(file, digest)
            return UploadProgress(size_bytes, complete=True)

    def add(self, source: bytes | Path | Iterable[bytes]) -> StoredBlob:
        """Store a whole blob from memory, from a file, or piece by piece. The same content twice is one blob.

        Raises:
            BlobRefused: When it is empty or above the limit.
        """
        temporary = self._partial / f"{_OWN}{secrets.token_hex(16)}"
        hasher, size_bytes = hashlib.sha256(), 0
        # O_EXCL and O_NOFOLLOW: a name that is taken, even by a link, is an error and never written through.
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            for chunk in _chunks(source):
                _write_all(file, chunk)
                hasher.update(chunk)
                size_bytes += len(chunk)
            self._check_size(size_bytes)
            self._publish(file, temporary, hasher.digest())
        finally:
            os.close(file)
            temporary.unlink(missing_ok=True)
        return StoredBlob(hasher.digest(), size_bytes)

    def take(self, path: Path) -> StoredBlob:
        """Make a file a blob without copying it; it has to lie on the disk of this folder.

        Raises:
            BlobRefused: When it is empty or above the limit; the file stays.
        """
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            self._check_size(size_bytes)
            # The writer of the file chose its mode; a blob is for no other user of this machine.
            os.fchmod(file.fileno(), 0o600)
            digest = hashlib.file_digest(file, "sha256").digest()
            self._publish(file.fileno(), path, digest)
        return StoredBlob(digest, size_bytes)

    def open(self, digest: bytes) -> BufferedReader:
        """Open a complete blob for reading: a real file, which numpy may map.

        Raises:
            NotFound: When it is absent or only partial.
            BlobRefused: For a digest that is not 32 bytes.
        """
        try:
            return os.fdopen(os.open(self._whole_path(digest), os.O_RDONLY | os.O_NOFOLLOW), "rb")
        except FileNotFoundError:
            raise NotFound(f"no complete blob {digest.hex()}") from None

    def check(self, digest: bytes) -> None:
        """Read a complete blob and compare its bytes with its name.

        Raises:
            NotFound: When it is absent or only partial.
            BlobDamaged: When they are other bytes than were stored.
        """
        with self.open(digest) as file:
            if hashlib.file_digest(file, "sha256").digest() == digest:
                return
        log.error("blob damaged", digest=digest.hex())
        raise BlobDamaged(
            f"blob {digest.hex()[:16]} has changed on the aggregator's disk since it was stored; the coordinator has "
            "to check that disk"
        )

    def digests(self) -> set[bytes]:
        """Return the digests of all blobs, complete and partial, as of some moment of this call."""
        names = [path.name for folder in (self._partial, *self._whole.iterdir()) for path in folder.iterdir()]
        return {bytes.fromhex(name) for name in names if not name.startswith(_OWN)}

    def drop(self, digest: bytes) -> None:
        """Delete a blob, complete or partial, if there is one. A file that is open keeps its bytes."""
        self._whole_path(digest).unlink(missing_ok=True)
        self._partial_path(digest).unlink(missing_ok=True)

    def _complete(self, file: int, digest: bytes) -> None:
        path = self._partial_path(digest)
        # Hashed from the disk: earlier chunks may have come to another process, before a crash or beside this one.
        with open(path, "rb") as reader:
            actual = hashlib.file_digest(reader, "sha256").digest()
        if actual != digest:
            path.unlink()
            raise DigestRefused(f"expected bytes hashing to {digest.hex()}, got {actual.hex()}; send them again from 0")
        self._publish(file, path, digest)

    def _publish(self, file: int, path: Path, digest: bytes) -> None:
        whole = self._whole_path(digest)
        whole.parent.mkdir(mode=0o700, exist_ok=True)
        # In this order: after a power cut, a name in `whole/` must never lead to bytes that were not written.
        os.fsync(file)
        path.rename(whole)
        # Both folders: the first may be new, and then its name is an entry of the second.
        for folder in (whole.parent, self._whole):
            _sync_folder(folder)

    @contextmanager
    def _locked_partial(self, digest: bytes) -> Iterator[int]:
        path = self._partial_path(digest)
        while True:
            # O_APPEND: no write can land on bytes that were received before.
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                # A lock of the file and not of this process: several aggregators may share the folder.
                fcntl.flock(file, fcntl.LOCK_EX)
                # The holder before may have moved the file away or deleted it while this call waited for the lock.
                if _is_at(path, file):
                    yield file
                    return
            finally:
                os.close(file)

    def _check_size(self, size_bytes: int) -> None:
        if not 1 <= size_bytes <= self._size_limit_bytes:
            raise BlobRefused(f"expected a blob of 1..{self._size_limit_bytes} bytes, got {size_bytes}")

    def _whole_path(self, digest: bytes) -> Path:
        name = _name(digest)
        return self._whole / name[:2] / name

    def _partial_path(self, digest: bytes) -> Path:
        return self._partial / _name(digest)


def _name(digest: bytes) -> str:
    if len(digest) != DIGEST_BYTES:
        raise BlobRefused(f"expected a SHA-256 digest of {DIGEST_BYTES} bytes, got {len(digest)}")
    return digest.hex()


def _finished(whole: Path, size_bytes: int) -> UploadProgress:
    actual = whole.stat().st_size
    if actual != size_bytes:
        raise BlobRefused(f"expected size {actual} of the blob already here, got {size_bytes}")
    return UploadProgress(actual, complete=True)


def _is_at(path: Path, file: int) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _chunks(source: bytes | Path | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    if not isinstance(source, Path):
        yield from source
        return
    with open(source, "rb") as reader:
        while chunk := reader.read(CHUNK_BYTES_MAX):
            yield chunk


def _write_all(file: int, data: bytes) -> None:
    # One call may write less than all, for example the last bytes that a disk has room for.
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
