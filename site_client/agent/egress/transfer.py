"""Blobs in both directions: in order, resumed where they stopped, hashed at the end."""

from collections.abc import Iterator
from pathlib import Path

from federation.v1 import blobs_pb2, rounds_pb2

from site_client.agent.egress.calls import OFFER_BLOB
from site_client.agent.egress.egress import Egress
from site_client.agent.egress.pieces import piece_sizes
from site_client.errors import ModelMismatch, StepRefused, Unreachable
from site_client.files import sha256_of, sync_folder


def upload(egress: Egress, round: blobs_pb2.RoundRef, data: memoryview, digest: bytes) -> None:
    """Brings a blob to the aggregator, from wherever an earlier try stopped. Errors: Unreachable, Refused."""
    offer = blobs_pb2.BlobOffer(round=round, digest=digest, size_bytes=len(data))
    progress = egress.send(OFFER_BLOB, offer)
    egress.note_held(digest, progress.held_bytes)
    if progress.complete:
        return
    done = egress.send_chunks(_chunks(data, digest, progress.held_bytes))
    if not done.complete:  # type: ignore[attr-defined]  # Put answers with BlobProgress
        raise Unreachable("the aggregator does not hold the whole upload yet; it is continued at the next try")


def download(egress: Egress, ref: rounds_pb2.BlobRef, target: Path, size_max: int) -> None:
    """Brings a blob into `target`, from wherever an earlier try stopped; there is no `target` before its hash is right.

    Errors: StepRefused when it is larger than `size_max` bytes, ModelMismatch when its hash is wrong, Unreachable.
    """
    if target.exists():
        return
    if ref.size_bytes > size_max:
        raise StepRefused(f"expected a file of at most {size_max} bytes, got one of {ref.size_bytes} on offer")
    part = target.with_name(f".{ref.digest.hex()}.part")
    with part.open("ab") as file:
        if file.tell() < ref.size_bytes:
            for chunk in egress.fetch_chunks(blobs_pb2.BlobRequest(digest=ref.digest, offset=file.tell())):
                file.write(_next_bytes(file.tell(), ref, chunk))  # type: ignore[arg-type]  # Get answers with BlobChunk
                file.flush()
        held = file.tell()
    if held < ref.size_bytes:
        raise Unreachable(f"the download stopped at {held} of {ref.size_bytes} bytes; it is continued at the next try")
    if sha256_of(part) != ref.digest:
        part.unlink()
        raise ModelMismatch("a downloaded file does not have the digest it was announced with; it is fetched anew")
    part.rename(target)
    sync_folder(target.parent)


def _next_bytes(held: int, ref: rounds_pb2.BlobRef, chunk: blobs_pb2.BlobChunk) -> bytes:
    data = chunk.data
    if chunk.offset != held or chunk.digest != ref.digest or held + len(data) > ref.size_bytes:
        raise StepRefused(f"expected the bytes from {held} on of the file asked for, got others; it is asked for again")
    return data


def _chunks(data: memoryview, digest: bytes, offset: int) -> Iterator[blobs_pb2.BlobChunk]:
    sizes = piece_sizes()
    while offset < len(data):
        piece = bytes(data[offset : offset + next(sizes)])
        yield blobs_pb2.BlobChunk(digest=digest, offset=offset, data=piece)
        offset += len(piece)
