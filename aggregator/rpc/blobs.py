"""The service that moves blobs: uploads in, models and published sums out."""

import math
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from federation.chunk_sizes import chunk_sizes
from federation.v1 import blobs_pb2
from federation.wire import check_known

from aggregator import errors
from aggregator.rounds import uploads
from aggregator.rpc.call_guard import CallContext, CallGuard, translated
from aggregator.store.traffic import SeatKey, size_of_chunk

RECHECK_S = 5.0  # how often the caller of a stream is authenticated again

Chunk = TypeVar("Chunk")


class BlobsServicer:
    """Moves blobs. A transfer that breaks off continues at the first byte that is missing."""

    def __init__(self, guard: CallGuard) -> None:
        self._guard = guard
        self._app = guard.app
        self._last_sent: dict[str, bytes] = {}  # by site: the blob that it was sent to the end last

    def Offer(self, request: blobs_pb2.BlobOffer, context: CallContext) -> blobs_pb2.BlobProgress:
        """Say how much of an upload is here."""

        def offer(site: str) -> blobs_pb2.BlobProgress:
            progress = uploads.offer(self._app, site, request)
            return blobs_pb2.BlobProgress(held_bytes=progress.held_bytes, complete=progress.complete)

        return self._guard.call(request, context, offer, SeatKey(request.round.run_id, request.round.round, ""))

    def receive(self, context: CallContext) -> Callable[[blobs_pb2.BlobChunk], blobs_pb2.BlobProgress]:
        """Begin a Put: return what takes the chunks of its stream one by one, each when it is here as a whole.

        The answer to the last chunk is the answer to the call.
        """
        upload: uploads.ExpectedUpload | None = None
        authenticated_at = -math.inf

        def take(chunk: blobs_pb2.BlobChunk) -> blobs_pb2.BlobProgress:
            nonlocal upload, authenticated_at
            with translated(context):
                if time.monotonic() - authenticated_at >= RECHECK_S:
                    site = self._guard.caller(context)
                    authenticated_at = time.monotonic()
                check_known(chunk)
                # Once a stream, without a lock: if the phase ends meanwhile, housekeeping deletes the blob.
                if upload is None:
                    upload = uploads.expected(self._app, site, chunk.digest)
                if chunk.digest != upload.digest:
                    raise errors.MessageRefused("expected chunks of one blob in a stream, got a second one")
                data = chunk.data
                stored = self._app.uploads.put(upload.digest, upload.size_bytes, chunk.offset, data)
                self._app.traffic.add(upload.seat, up=size_of_chunk(chunk, len(data)))
                return blobs_pb2.BlobProgress(held_bytes=stored.held_bytes, complete=stored.complete)

        return take

    def Put(self, request_iterator: Iterator[blobs_pb2.BlobChunk], context: CallContext) -> blobs_pb2.BlobProgress:
        """Receive chunks of one offered upload, all of which are here."""
        take, progress = self.receive(context), None
        for chunk in request_iterator:
            progress = take(chunk)
        with translated(context):
            if progress is None:
                raise errors.MessageRefused("expected at least one chunk, got none")
        return progress

    def Get(self, request: blobs_pb2.BlobRequest, context: CallContext) -> Iterator[blobs_pb2.BlobChunk]:
        """Send a model or a published sum from an offset on."""
        with translated(context):
            site = self._guard.caller(context)
            check_known(request)
            # Open for the whole stream: a blob that is deleted meanwhile is still read to its end.
            file, seat = uploads.readable(self._app, site, request.digest)
            with file:
                if request.offset == 0 and self._last_sent.get(site) == request.digest:
                    # What it got had another hash. Whose disk that was has to be known before it is sent again.
                    self._app.blobs.check(request.digest)
                size_bytes = file.seek(0, os.SEEK_END)
                if request.offset > size_bytes:
                    raise errors.MessageRefused(f"expected an offset within the blob's {size_bytes} bytes, got another")
                file.seek(request.offset)
                sizes = chunk_sizes()
                parts = iter(lambda: file.read(next(sizes)), b"")
                offset = request.offset
                for data in self._rechecked(parts, context):
                    chunk = blobs_pb2.BlobChunk(digest=request.digest, offset=offset, data=data)
                    self._app.traffic.add(seat, down=size_of_chunk(chunk, len(data)))
                    yield chunk
                    offset += len(data)
                self._last_sent[site] = request.digest

    def _rechecked(self, chunks: Iterator[Chunk], context: CallContext) -> Iterator[Chunk]:
        """Yield the chunks as long as their caller is let in: a revocation ends a transfer within seconds."""
        checked_at = time.monotonic()
        for chunk in chunks:
            if time.monotonic() - checked_at >= RECHECK_S:
                self._guard.caller(context)
                checked_at = time.monotonic()
            yield chunk
