"""The guard that every call passes: authentication, and errors as status codes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
import structlog
from federation.errors import FederationError
from federation.secagg import SecaggError
from federation.wire import check_known
from google.protobuf.message import Message
from sqlalchemy.orm import Session

from aggregator import errors
from aggregator.context import AppContext
from aggregator.sites.authentication import authenticate, authenticate_within
from aggregator.store.traffic import SeatKey

log = structlog.get_logger()

Reply = TypeVar("Reply", bound=Message | None)

# The first class that fits counts, so subclasses stand before their bases. UNAUTHENTICATED and PERMISSION_DENIED make a
# site act (renew, stop); ABORTED and RESOURCE_EXHAUSTED make it try again.
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


class CallContext(Protocol):
    """The part of gRPC's ServicerContext that servicers use."""

    def auth_context(self) -> Any:
        """Return what TLS found out about the caller, by property."""

    def peer(self) -> str:
        """Return the caller's address."""

    def abort(self, code: grpc.StatusCode, details: str, /) -> NoReturn:
        """End the call with a status and one sentence, by an exception."""


class CallGuard:
    """Authenticates callers. Shared by all servicers."""

    def __init__(self, app: AppContext) -> None:
        self.app = app

    def call(
        self, request: Message, context: CallContext, act: Callable[[str], Reply], seat: SeatKey | None = None
    ) -> Reply:
        """Answer one unary call of an enrolled site.

        Args:
            request: Refused when it has unknown fields.
            context: gRPC's; a refusal ends the call through it.
            act: Gets the site's name and returns the reply.
            seat: The bytes of the call are counted for it; its site is filled in here.
        """
        with translated(context):
            site = self.caller(context)
            check_known(request)
            reply = act(site)
            if seat is not None and reply is not None:
                self.app.traffic.add(seat._replace(site=site), up=request.ByteSize(), down=reply.ByteSize())
            return reply

    def caller(self, context: CallContext) -> str:
        """Return the name of the approved site at the other end.

        Raises:
            Denied: When it is none, or is no longer one.
        """
        return authenticate(self.app.store, _certificate_of(context), self.app.clock())

    def caller_within(self, session: Session, context: CallContext) -> str:
        """Return the same, for a call that reads more in the transaction of `session`, which begins here."""
        return authenticate_within(session, _certificate_of(context), self.app.clock())

    def site_of(self, context: CallContext) -> str:
        """Return the site that a new connection counts for. One that has left may repeat its farewell."""
        with translated(context):
            try:
                return self.caller(context)
            except errors.SiteLeft as left:
                return left.site


def _certificate_of(context: CallContext) -> bytes | None:
    # It holds PEM bytes, one entry a peer.
    certificates: Sequence[bytes] = context.auth_context().get("x509_pem_cert", ())
    return certificates[0] if certificates else None


@contextmanager
def translated(context: CallContext) -> Iterator[None]:
    """Answer a refusal with its status code and its one sentence, and a bug with INTERNAL and nothing of the bug."""
    try:
        yield
        return
    except grpc.RpcError:  # the caller went away in the middle of a stream; it continues when it is back
        raise
    except tuple(kind for kind, _code in _CODES) as error:
        code = next(code for kind, code in _CODES if isinstance(error, kind))
        sentence = str(error)
        log.info("call refused", code=code.name, why=sentence, peer=context.peer())
    except Exception:
        log.exception("call failed")
        code, sentence = grpc.StatusCode.INTERNAL, "the aggregator failed at this; its log says how. Try again later"
    context.abort(code, sentence)
