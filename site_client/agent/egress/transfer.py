"""Blobs in both directions: in order, resumed where they stopped, hashed at the end."""

from collections.abc import Iterator
from pathlib import Path

from federation.chunk_sizes import chunk_sizes
from federation.limits import CHUNK_BYTES_MAX, DIGEST_BYTES
from federation.v1 import blobs_pb2, rounds_pb2

from site_client.agent.egress.calls import OFFER_BLOB
from site_client.agent.egress.egress import Egress
from site_client.errors import ModelDamaged, StepRefused, Unreachable
from site_client.files import sha256_of


def upload(egress: Egress, round: blobs_pb2.RoundRef, data: memoryview, digest: bytes) -> None:
    """Upload a blob, from where an earlier try stopped.

    Args:
        egress: Whose guard has this upload as its own.
        round: That the upload belongs to.
        data: The whole blob.
        digest: SHA-256 of `data`.

    Raises:
        Unreachable: The connection broke off; the next try continues.
        Refused: The aggregator does not take it.
    """
    offer = blobs_pb2.BlobOffer(round=round, digest=digest, size_bytes=len(data))
    progress = egress.send(OFFER_BLOB, offer)
    egress.note_held(digest, progress.held_bytes)
    if progress.complete:
        return
    answer = egress.send_chunks(_chunks(data, digest, progress.held_bytes))
    # Put's answer is a BlobProgress: calls.py.
    if not answer.complete:  # type: ignore[attr-defined]
        raise Unreachable("the aggregator does not hold the whole upload yet; it is continued at the next try")


def download(egress: Egress, ref: rounds_pb2.BlobRef, target: Path, size_max: int) -> None:
    """Download a blob, from where an earlier try stopped. Afterwards `target` has the right hash.

    Args:
        egress: The way to the aggregator.
        ref: Digest and size of the blob.
        target: The file to make; nothing happens when it exists with these bytes.
        size_max: Bytes that a file of this kind can have at most.

    Raises:
        StepRefused: The blob is larger than `size_max`, its digest is none, or other bytes arrive than were asked for:
            an empty chunk, one over 1 MiB or past the promised size.
        ModelDamaged: Its hash is wrong; the next try begins anew.
        Unreachable: The connection broke off; the next try continues.
    """
    # Nothing here is synced, so a power cut may leave the name and not the bytes: they are fetched again.
    if target.exists():
        if sha256_of(target) == ref.digest:
            return
        target.unlink()
    if ref.size_bytes > size_max:
        raise StepRefused(f"expected a file of at most {size_max} bytes, got one of {ref.size_bytes} on offer")
    if len(ref.digest) != DIGEST_BYTES:  # a file will be named by it
        raise StepRefused(f"expected a file's digest of {DIGEST_BYTES} bytes, got {len(ref.digest)}; polling again")
    # Under a dot name until its hash is right.
    part = target.with_name(f".{ref.digest.hex()}.part")
    with part.open("ab") as file:
        if file.tell() < ref.size_bytes:
            for chunk in egress.fetch_chunks(blobs_pb2.BlobRequest(digest=ref.digest, offset=file.tell())):
                # Get's answers are BlobChunks: calls.py.
                file.write(_next_bytes(file.tell(), ref, chunk))  # type: ignore[arg-type]
                # So that the size on disk is the offset to continue from, after a crash too.
                file.flush()
        held_bytes = file.tell()
    if held_bytes < ref.size_bytes:
        raise Unreachable(
            f"the download stopped at {held_bytes} of {ref.size_bytes} bytes; it is continued at the next try"
        )
    if sha256_of(part) != ref.digest:
        # Which bytes are wrong cannot be known, so all are fetched anew.
        part.unlink()
        raise ModelDamaged(
            "a downloaded file does not have the digest it was announced with: it was damaged on the way, or on a "
            "disk; it is fetched again"
        )
    part.rename(target)


def _next_bytes(held_bytes: int, ref: rounds_pb2.BlobRef, chunk: blobs_pb2.BlobChunk) -> bytes:
    data = chunk.data
    left_bytes = ref.size_bytes - held_bytes
    # Empty chunks would count as progress for ever, and no file would come of them.
    is_sized = 1 <= len(data) <= min(left_bytes, CHUNK_BYTES_MAX)
    if chunk.offset != held_bytes or chunk.digest != ref.digest or not is_sized:
        raise StepRefused(
            f"expected the bytes from {held_bytes} on of the file asked for, got others; it is asked for again"
        )
    return data


def _chunks(data: memoryview, digest: bytes, offset: int) -> Iterator[blobs_pb2.BlobChunk]:
    sizes = chunk_sizes()
    while offset < len(data):
        # Copied, because protobuf keeps the bytes until gRPC has sent them.
        piece = bytes(data[offset : offset + next(sizes)])
        yield blobs_pb2.BlobChunk(digest=digest, offset=offset, data=piece)
        offset += len(piece)
