"""The gRPC door: authenticate, parse, call one function, translate errors. The only file with servicers.

Every call is authenticated by its peer certificate against the database, streams again while they last. Requests with
fields this version does not know are refused: nothing unexamined is ever kept or handed on. Threads are few, so calls
that last (streams, held polls) share a bounded number of places and the others always find a thread.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import grpc
import structlog
from federation.errors import FederationError
from federation.pieces import piece_sizes
from federation.secagg import SecaggError
from federation.v1 import blobs_pb2, enrolment_pb2, line_pb2, rounds_pb2, secagg_pb2
from federation.v1.blobs_pb2_grpc import BlobsServicer
from federation.v1.enrolment_pb2_grpc import EnrolmentServicer
from federation.v1.line_pb2_grpc import LineServicer
from federation.v1.plan_pb2 import SignedPlan
from federation.v1.rounds_pb2_grpc import RoundsServicer
from federation.wire import check_known
from google.protobuf.message import Message

from aggregator import errors, polling, reports, rounds, uploads
from aggregator.auth import authenticate
from aggregator.echo import Echoes
from aggregator.enrolment import Enrolment
from aggregator.hub import Hub
from aggregator.tally import SeatKey, size_of_chunk

log = structlog.get_logger()

RECHECK_S = 5.0  # a stream's caller is authenticated anew this often
THREADS_KEPT_FREE = 4  # for calls that do not last

Chunk = TypeVar("Chunk")
Reply = TypeVar("Reply", bound=Message)
Said = TypeVar(
    "Said",
    rounds_pb2.ReadyMessage,
    rounds_pb2.DeclineMessage,
    secagg_pb2.KeysMessage,
    secagg_pb2.SharesMessage,
    secagg_pb2.UploadMessage,
    secagg_pb2.ConfirmMessage,
    secagg_pb2.RevealMessage,
)

_VERDICTS = {"accepted": rounds_pb2.Receipt.ACCEPTED, "late": rounds_pb2.Receipt.LATE}

# The first class that fits counts, so subclasses stand before their bases.
_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (errors.SiteRevoked, grpc.StatusCode.PERMISSION_DENIED),
    (errors.SiteLeft, grpc.StatusCode.PERMISSION_DENIED),
    (errors.JoinDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.Denied, grpc.StatusCode.UNAUTHENTICATED),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.LostRace, grpc.StatusCode.ABORTED),
    (errors.WrongState, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.OffsetRefused, grpc.StatusCode.ABORTED),
    (errors.DigestRefused, grpc.StatusCode.ABORTED),
    (errors.Busy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.MessageRefused, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.BlobRefused, grpc.StatusCode.INVALID_ARGUMENT),
    (FederationError, grpc.StatusCode.INVALID_ARGUMENT),
    (SecaggError, grpc.StatusCode.INVALID_ARGUMENT),
)


class Gate:
    """What every call goes through."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.stopping = threading.Event()
        self._places = threading.BoundedSemaphore(max(1, hub.settings.listen.threads - THREADS_KEPT_FREE))

    def call(
        self, request: Message, context: grpc.ServicerContext, act: Callable[[str], Reply], seat: SeatKey | None = None
    ) -> Reply:
        """One unary call of an enrolled site. `seat` (its site is filled in here) is whose bytes these are."""
        with translated(context):
            site = self.caller(context)
            check_known(request)
            reply = act(site)
            if seat is not None:
                self.hub.tally.add(seat._replace(site=site), up=request.ByteSize(), down=reply.ByteSize())
            return reply

    def caller(self, context: grpc.ServicerContext) -> str:
        """The approved site at the other end, still in. Raises: Denied."""
        # grpc's stub leaves the values' type open; x509_pem_cert holds PEM bytes, one entry a peer.
        shown: Sequence[bytes] = context.auth_context().get("x509_pem_cert", ())  # type: ignore[assignment]
        return authenticate(self.hub.store, shown[0] if shown else None, self.hub.clock())

    def take_place(self) -> bool:
        """A place for a call that lasts; to be given back. Never waits."""
        return self._places.acquire(blocking=False)

    def give_back_place(self) -> None:
        self._places.release()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for a stream. Raises: Busy; the site tries again shortly, and resumes."""
        if not self.take_place():
            raise errors.Busy("too many transfers at once; try again in a few seconds")
        try:
            yield
        finally:
            self.give_back_place()


class RoundsDoor(RoundsServicer):
    """Sites' side of a round: poll, say one thing a phase."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._hub = gate.hub
        # Jitter spreads sites out; nobody gains by predicting it.
        self._pace = polling.Pace(gate.hub.settings.pacing, random.random)

    def Poll(self, request: rounds_pb2.PollRequest, context: grpc.ServicerContext) -> rounds_pb2.PollReply:
        return self._gate.call(request, context, lambda site: self._poll(site, request))

    def FetchPlan(self, request: rounds_pb2.FetchPlanRequest, context: grpc.ServicerContext) -> SignedPlan:
        def fetch(site: str) -> SignedPlan:
            signed, seat = polling.plan_for(self._hub, site, request.plan_digest)
            self._hub.tally.add(seat, up=request.ByteSize(), down=signed.ByteSize())
            return signed

        return self._gate.call(request, context, fetch)

    def Ready(self, request: rounds_pb2.ReadyMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, rounds.accept_ready)

    def Decline(self, request: rounds_pb2.DeclineMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, rounds.decline)

    def SendKeys(self, request: secagg_pb2.KeysMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, rounds.accept_keys)

    def SendShares(self, request: secagg_pb2.SharesMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, rounds.accept_shares)

    def SendUpload(self, request: secagg_pb2.UploadMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, rounds.accept_upload)

    def SendConfirm(self, request: secagg_pb2.ConfirmMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, rounds.accept_confirm)

    def SendReveal(self, request: secagg_pb2.RevealMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, rounds.accept_reveal)

    def _receipt(
        self, request: Said, context: grpc.ServicerContext, accept: Callable[[Hub, str, Said], rounds.Verdict]
    ) -> rounds_pb2.Receipt:
        seat = SeatKey(request.round.run_id, request.round.round, "")

        def act(site: str) -> rounds_pb2.Receipt:
            return rounds_pb2.Receipt(verdict=_VERDICTS[accept(self._hub, site, request)])

        return self._gate.call(request, context, act, seat)

    def _poll(self, site: str, request: rounds_pb2.PollRequest) -> rounds_pb2.PollReply:
        """Answer now, or hold the call for a moment while something the site waits for may happen."""
        reports.keep(self._hub, site, request)
        ends_at = time.monotonic() + self._hub.settings.listen.answer_hold_ms / 1000
        heard, answer = self._look(site, request)
        if answer.hold and self._gate.take_place():
            try:
                while answer.hold and not self._gate.stopping.is_set() and (left_s := ends_at - time.monotonic()) > 0:
                    self._hub.phases.wait(heard, left_s)
                    heard, answer = self._look(site, request)
            finally:
                self._gate.give_back_place()
            if answer.hold:  # it was held for as long as its place lasts: come back for another
                answer.reply.retry_after_ms = polling.AT_ONCE_MS
        if answer.seat is not None:
            self._hub.tally.add(answer.seat, up=request.ByteSize(), down=answer.reply.ByteSize())
        return answer.reply

    def _look(self, site: str, request: rounds_pb2.PollRequest) -> tuple[int, polling.Answer]:
        heard = self._hub.phases.rings
        with self._hub.store.read() as session:
            return heard, polling.answer(session, site, request, self._hub.clock(), self._pace)


class BlobsDoor(BlobsServicer):
    """Uploads in, models and opened sums out."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._hub = gate.hub

    def Offer(self, request: blobs_pb2.BlobOffer, context: grpc.ServicerContext) -> blobs_pb2.BlobProgress:
        def offer(site: str) -> blobs_pb2.BlobProgress:
            progress = uploads.offer(self._hub, site, request)
            return blobs_pb2.BlobProgress(held_bytes=progress.held_bytes, complete=progress.complete)

        return self._gate.call(request, context, offer, SeatKey(request.round.run_id, request.round.round, ""))

    def Put(
        self, request_iterator: Iterator[blobs_pb2.BlobChunk], context: grpc.ServicerContext
    ) -> blobs_pb2.BlobProgress:
        with translated(context), self._gate.place():
            site = self._gate.caller(context)
            upload: uploads.Expected | None = None
            progress = blobs_pb2.BlobProgress()
            for chunk in self._rechecked(request_iterator, context):
                check_known(chunk)
                if upload is None:
                    upload = uploads.expected(self._hub, site, chunk.digest)
                if chunk.digest != upload.digest:
                    raise errors.MessageRefused("expected chunks of one blob in a stream, got a second one")
                data = chunk.data
                held = self._hub.uploads.put(upload.digest, upload.size_bytes, chunk.offset, data)
                progress = blobs_pb2.BlobProgress(held_bytes=held.held_bytes, complete=held.complete)
                self._hub.tally.add(upload.seat, up=size_of_chunk(chunk, len(data)))
            if upload is None:
                raise errors.MessageRefused("expected at least one chunk, got none")
            return progress

    def Get(self, request: blobs_pb2.BlobRequest, context: grpc.ServicerContext) -> Iterator[blobs_pb2.BlobChunk]:
        with translated(context), self._gate.place():
            site = self._gate.caller(context)
            check_known(request)
            file, seat = uploads.readable(self._hub, site, request.digest)
            with file:
                size_bytes = file.seek(0, os.SEEK_END)
                if request.offset > size_bytes:
                    raise errors.MessageRefused(f"expected an offset within the blob's {size_bytes} bytes, got another")
                file.seek(request.offset)
                for chunk, size_bytes in self._rechecked(_chunks_of(file.read, request), context):
                    self._hub.tally.add(seat, down=size_bytes)
                    yield chunk

    def _rechecked(self, chunks: Iterator[Chunk], context: grpc.ServicerContext) -> Iterator[Chunk]:
        """The chunks, as long as their caller is let in. A revocation ends a transfer within seconds."""
        checked = time.monotonic()
        for chunk in chunks:
            if time.monotonic() - checked >= RECHECK_S:
                self._gate.caller(context)
                checked = time.monotonic()
            yield chunk


class LineDoor(LineServicer):
    """A site measures how fast its line is. Such calls are large: they share the places of those that last."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._echoes = Echoes()

    def Echo(self, request: line_pb2.EchoRequest, context: grpc.ServicerContext) -> line_pb2.EchoReply:
        def echo(site: str) -> line_pb2.EchoReply:
            with self._gate.place():
                return self._echoes.answer(site, request)

        return self._gate.call(request, context, echo)


class EnrolledDoor(EnrolmentServicer):
    """The part of enrolment that asks for a certificate; on the mutual-TLS listener."""

    def __init__(self, gate: Gate, enrolment: Enrolment) -> None:
        self._gate = gate
        self._enrolment = enrolment

    def Renew(self, request: enrolment_pb2.RenewRequest, context: grpc.ServicerContext) -> enrolment_pb2.Credentials:
        return self._gate.call(request, context, lambda site: self._enrolment.renew(site, request))

    def FetchRoster(
        self, request: enrolment_pb2.FetchRosterRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.SignedRoster:
        return self._gate.call(request, context, lambda _site: self._enrolment.roster())

    def Leave(self, request: enrolment_pb2.LeaveRequest, context: grpc.ServicerContext) -> enrolment_pb2.LeaveReply:
        with translated(context):
            try:
                site = self._gate.caller(context)
                check_known(request)
                self._enrolment.leave(site)
            except errors.SiteLeft:  # it has; the answer to its first call was lost
                check_known(request)
            return enrolment_pb2.LeaveReply()

    def Join(self, request: enrolment_pb2.JoinRequest, context: grpc.ServicerContext) -> enrolment_pb2.JoinReply:
        _other_listener(context)

    def Challenge(
        self, request: enrolment_pb2.ChallengeRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.ChallengeReply:
        _other_listener(context)

    def Recover(
        self, request: enrolment_pb2.RecoverRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.Credentials:
        _other_listener(context)


class JoiningDoor(EnrolmentServicer):
    """The part of enrolment for hosts without a certificate; on the enrolment listener, which has nothing else."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment

    def Join(self, request: enrolment_pb2.JoinRequest, context: grpc.ServicerContext) -> enrolment_pb2.JoinReply:
        with translated(context):
            check_known(request)
            return self._enrolment.join(request)

    def Challenge(
        self, request: enrolment_pb2.ChallengeRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.ChallengeReply:
        with translated(context):
            check_known(request)
            return self._enrolment.challenge(request)

    def Recover(
        self, request: enrolment_pb2.RecoverRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.Credentials:
        with translated(context):
            check_known(request)
            return self._enrolment.recover(request)

    def Renew(self, request: enrolment_pb2.RenewRequest, context: grpc.ServicerContext) -> enrolment_pb2.Credentials:
        _other_listener(context)

    def FetchRoster(
        self, request: enrolment_pb2.FetchRosterRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.SignedRoster:
        _other_listener(context)

    def Leave(self, request: enrolment_pb2.LeaveRequest, context: grpc.ServicerContext) -> enrolment_pb2.LeaveReply:
        _other_listener(context)


@contextmanager
def translated(context: grpc.ServicerContext) -> Iterator[None]:
    """Our errors as status codes with their one sentence; a bug as INTERNAL, with nothing of it in the answer."""
    try:
        yield
        return
    except grpc.RpcError:  # the caller went away in the middle of a stream; it resumes when it is back
        raise
    except tuple(kind for kind, _code in _CODES) as error:
        code = next(code for kind, code in _CODES if isinstance(error, kind))
        sentence = str(error)
        log.info("call refused", code=code.name, why=sentence, peer=context.peer())
    except Exception:
        log.exception("call failed")
        code, sentence = grpc.StatusCode.INTERNAL, "the aggregator failed at this; its log says how. Try again later"
    context.abort(code, sentence)


def _other_listener(context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "this call belongs to the aggregator's other listener")


def _chunks_of(
    read: Callable[[int], bytes], request: blobs_pb2.BlobRequest
) -> Iterator[tuple[blobs_pb2.BlobChunk, int]]:
    """Each chunk and its size as a message."""
    offset = request.offset
    sizes = piece_sizes()
    while data := read(next(sizes)):
        chunk = blobs_pb2.BlobChunk(digest=request.digest, offset=offset, data=data)
        yield chunk, size_of_chunk(chunk, len(data))
        offset += len(data)
