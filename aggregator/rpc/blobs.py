"""Uploads in, models and opened sums out."""

import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
from federation.limits import SLOW_PIECE_BYTES
from federation.v1 import blobs_pb2
from federation.v1.blobs_pb2_grpc import BlobsServicer
from federation.wire import check_known

from aggregator import errors
from aggregator.rounds import uploads
from aggregator.rpc.call_guard import CallGuard, translated
from aggregator.store.traffic import SeatKey, size_of_chunk

RECHECK_S = 5.0  # a stream's caller is authenticated anew this often

Chunk = TypeVar("Chunk")


class BlobsDoor(BlobsServicer):
    """Uploads in, models and opened sums out."""

    def __init__(self, gate: CallGuard) -> None:
        self._gate = gate
        self._app = gate.app

    def Offer(self, request: blobs_pb2.BlobOffer, context: grpc.ServicerContext) -> blobs_pb2.BlobProgress:
        def offer(site: str) -> blobs_pb2.BlobProgress:
            progress = uploads.offer(self._app, site, request)
            return blobs_pb2.BlobProgress(held_bytes=progress.held_bytes, complete=progress.complete)

        return self._gate.call(request, context, offer, SeatKey(request.round.run_id, request.round.round, ""))

    def Put(
        self, request_iterator: Iterator[blobs_pb2.BlobChunk], context: grpc.ServicerContext
    ) -> blobs_pb2.BlobProgress:
        with translated(context), self._gate.slot():
            site = self._gate.caller(context)
            upload: uploads.ExpectedUpload | None = None
            progress = blobs_pb2.BlobProgress()
            for chunk in self._rechecked(request_iterator, context):
                check_known(chunk)
                if upload is None:
                    upload = uploads.expected(self._app, site, chunk.digest)
                if chunk.digest != upload.digest:
                    raise errors.MessageRefused("expected chunks of one blob in a stream, got a second one")
                data = chunk.data
                held = self._app.uploads.put(upload.digest, upload.size_bytes, chunk.offset, data)
                progress = blobs_pb2.BlobProgress(held_bytes=held.held_bytes, complete=held.complete)
                self._app.traffic.add(upload.seat, up=size_of_chunk(chunk, len(data)))
            if upload is None:
                raise errors.MessageRefused("expected at least one chunk, got none")
            return progress

    def Get(self, request: blobs_pb2.BlobRequest, context: grpc.ServicerContext) -> Iterator[blobs_pb2.BlobChunk]:
        with translated(context), self._gate.slot():
            site = self._gate.caller(context)
            check_known(request)
            file, seat = uploads.readable(self._app, site, request.digest)
            with file:
                size_bytes = file.seek(0, os.SEEK_END)
                if request.offset > size_bytes:
                    raise errors.MessageRefused(f"expected an offset within the blob's {size_bytes} bytes, got another")
                file.seek(request.offset)
                for chunk, size_bytes in self._rechecked(_chunks_of(file.read, request), context):
                    self._app.traffic.add(seat, down=size_bytes)
                    yield chunk

    def _rechecked(self, chunks: Iterator[Chunk], context: grpc.ServicerContext) -> Iterator[Chunk]:
        """The chunks, as long as their caller is let in. A revocation ends a transfer within seconds."""
        checked = time.monotonic()
        for chunk in chunks:
            if time.monotonic() - checked >= RECHECK_S:
                self._gate.caller(context)
                checked = time.monotonic()
            yield chunk


def _chunks_of(
    read: Callable[[int], bytes], request: blobs_pb2.BlobRequest
) -> Iterator[tuple[blobs_pb2.BlobChunk, int]]:
    """Each chunk and its size as a message."""
    offset = request.offset
    while data := read(SLOW_PIECE_BYTES):
        chunk = blobs_pb2.BlobChunk(digest=request.digest, offset=offset, data=data)
        yield chunk, size_of_chunk(chunk, len(data))
        offset += len(data)
