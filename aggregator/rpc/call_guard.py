"""What every call goes through."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import grpc
import structlog
from federation.errors import FederationError
from federation.secagg import SecaggError
from federation.wire import check_known
from google.protobuf.message import Message

from aggregator import errors
from aggregator.context import AppContext
from aggregator.sites.authentication import authenticate
from aggregator.store.traffic import SeatKey

log = structlog.get_logger()

THREADS_KEPT_FREE = 4  # for calls that do not last

Reply = TypeVar("Reply", bound=Message)

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


class CallGuard:
    """What every call goes through."""

    def __init__(self, app: AppContext) -> None:
        self.app = app
        self.stopping = threading.Event()
        self._places = threading.BoundedSemaphore(max(1, app.settings.listen.threads - THREADS_KEPT_FREE))

    def call(
        self, request: Message, context: grpc.ServicerContext, act: Callable[[str], Reply], seat: SeatKey | None = None
    ) -> Reply:
        """One unary call of an enrolled site. `seat` (its site is filled in here) is whose bytes these are."""
        with translated(context):
            site = self.caller(context)
            check_known(request)
            reply = act(site)
            if seat is not None:
                self.app.traffic.add(seat._replace(site=site), up=request.ByteSize(), down=reply.ByteSize())
            return reply

    def caller(self, context: grpc.ServicerContext) -> str:
        """The approved site at the other end, still in. Raises: Denied."""
        # grpc's stub leaves the values' type open; x509_pem_cert holds PEM bytes, one entry a peer.
        shown: Sequence[bytes] = context.auth_context().get("x509_pem_cert", ())  # type: ignore[assignment]
        return authenticate(self.app.store, shown[0] if shown else None, self.app.clock())

    def acquire_slot(self) -> bool:
        """A place for a call that lasts; to be given back. Never waits."""
        return self._places.acquire(blocking=False)

    def release_slot(self) -> None:
        self._places.release()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place for a stream. Raises: Busy; the site tries again shortly, and resumes."""
        if not self.acquire_slot():
            raise errors.Busy("too many transfers at once; try again in a few seconds")
        try:
            yield
        finally:
            self.release_slot()


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
