"""Receives a call: authenticated, counted, and here as a whole before it takes a thread.

Calls that wait (for a message, a slow reader, the next phase) wait in the event loop of `call_server`, where they cost
memory and no thread. Servicers are synchronous, and run in a few threads.

    1. the connection is a site's; else its certificate is looked up, in a thread for nothing else
    2. the caller has a call left
    3. the message arrives, or its time runs out
    4. the servicer authenticates the call, so that a revocation counts from the next call on, and answers

To gRPC every method takes a stream of messages, which is the same on the wire. In a unary method it would wait for the
message by itself, for as long as the caller likes.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import grpc
import structlog
from federation.limits import CHUNK_BYTES_MAX
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from aggregator.rpc.acceptor import Acceptor, Connection

log = structlog.get_logger()

READ_BYTES = CHUNK_BYTES_MAX  # of a download at once: to change threads costs as much as to read a small chunk

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Result = TypeVar("Result")


class CallRefused(Exception):
    """The call ends with this status code and this sentence."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


@dataclass(frozen=True)
class IncomingCall:
    """A call as servicers see it: the part of gRPC's ServicerContext that they use."""

    identity: Any  # what TLS found out about the caller
    address: str

    def auth_context(self) -> Any:
        """Return what TLS found out about the caller, by property."""
        return self.identity

    def peer(self) -> str:
        """Return the caller's address."""
        return self.address

    def abort(self, code: grpc.StatusCode, sentence: str) -> NoReturn:
        """Refuse the call.

        Raises:
            CallRefused: Always.
        """
        raise CallRefused(code, sentence)


class CallLimits(NamedTuple):
    """See [limits] and [listen] in deploy/aggregator.toml."""

    calls_per_caller: int
    message_s: float
    progress_s: float
    hold_s: float


# None: it has sent its answers itself.
Act: TypeAlias = Callable[[IncomingCall, Connection, Context], Awaitable[bytes | None]]


class CallReceiver:
    """Receives the calls of one listener. Everything but `handler` runs in one event loop."""

    def __init__(
        self, acceptor: Acceptor, limits: CallLimits, threads: int, site_of: Callable[[IncomingCall], str] | None
    ) -> None:
        """Make the threads.

        Args:
            acceptor: Knows the connections that calls come on.
            limits: Bounds for the calls of one caller.
            threads: Calls answered at once.
            site_of: Returns the site that makes a call, or aborts it. None on the listener for hosts without a
                certificate: there the callers of one address are one caller.
        """
        self._acceptor, self._limits, self._site_of = acceptor, limits, site_of
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="call")
        self._lookup_thread = ThreadPoolExecutor(1, thread_name_prefix="authenticate")
        self._lookups: dict[str, asyncio.Task[str]] = {}  # in progress, by connection
        self._calls: Counter[str] = Counter()  # in progress, by caller
        self._changed = asyncio.Event()
        self._stopping = False

    def handler(
        self, service: ServiceDescriptor, servicer: Any, held: dict[str, Callable[..., Any]] | None = None
    ) -> grpc.GenericRpcHandler:
        """Return the handler of all methods of a service.

        Args:
            service: Says which methods there are.
            servicer: Has a method of the same name for each. Instead of one with a stream of requests it has
                `receive`, see `BlobsServicer`.
            held: By method name, what answers instead of the servicer's own. It is told whether it is asked for the
                `first` or the `last` time about this call; in between it may return None to be asked again after
                the next `wake`.
        """
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
        for method in service.methods:
            kind = grpc.stream_unary_rpc_method_handler
            if method.client_streaming:
                act = self._upload(servicer.receive, method.input_type)
            elif method.server_streaming:
                act = self._download(getattr(servicer, method.name), method.input_type)
                kind = grpc.stream_stream_rpc_method_handler
            elif held and method.name in held:
                act = self._held(held[method.name], method.input_type)
            else:
                act = self._unary(getattr(servicer, method.name), method.input_type)
            handlers[method.name] = kind(self._received(act))
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def wake(self) -> None:
        """Let held calls ask again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def stop(self) -> None:
        """Hold no more calls."""
        self._stopping = True
        self.wake()

    def close(self) -> None:
        """End the threads, when no call is left."""
        for pool in (self._threads, self._lookup_thread):
            pool.shutdown(cancel_futures=True)

    # --- any call ---

    def _received(self, act: Act) -> Callable[[object, Context], Awaitable[bytes | None]]:
        async def behavior(_requests: object, context: Context) -> bytes | None:
            connection = self._acceptor.connection(context.peer())
            if connection is None or connection.refused:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "this connection has ended; connect again")
            call = IncomingCall(context.auth_context(), connection.address)
            try:
                with self._counted(await self._caller(call, connection)):
                    return await act(call, connection, context)
            except CallRefused as refused:
                code, sentence = refused.code, refused.sentence
            # Nobody who is refused for who it is has another call on this connection. A host that joins is a stranger
            # anyway.
            denied = code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            if denied and self._site_of is not None:
                self._acceptor.refuse(connection)
            await context.abort(code, sentence)

        return behavior

    async def _caller(self, call: IncomingCall, connection: Connection) -> str:
        """Return whom the call counts for."""
        if self._site_of is None:
            return call.address
        if connection.site is not None:
            return connection.site
        # One look-up a connection: a caller that makes and drops calls makes no queue of them.
        lookup = self._lookups.get(connection.peer)
        if lookup is None:
            lookup = self._lookups[connection.peer] = asyncio.create_task(self._look_up(call, connection))
        return await asyncio.shield(lookup)

    async def _look_up(self, call: IncomingCall, connection: Connection) -> str:
        # Set where handlers are made for callers with certificates.
        assert self._site_of is not None
        try:
            site = await asyncio.get_running_loop().run_in_executor(self._lookup_thread, self._site_of, call)
        finally:
            del self._lookups[connection.peer]
        self._acceptor.admit(connection, site)
        return site

    @contextmanager
    def _counted(self, caller: str) -> Iterator[None]:
        if self._calls[caller] >= self._limits.calls_per_caller:
            log.info("call refused", code="RESOURCE_EXHAUSTED", why="too many calls at once", caller=caller)
            raise CallRefused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"expected at most {self._limits.calls_per_caller} calls at once, got another; try again in a moment",
            )
        self._calls[caller] += 1
        try:
            yield
        finally:
            self._calls[caller] -= 1
            if not self._calls[caller]:
                del self._calls[caller]

    async def _in_thread(self, act: Callable[[], Result]) -> Result:
        job = asyncio.get_running_loop().run_in_executor(self._threads, act)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            # The caller went away, and its thread works on: only then has it a call less.
            await asyncio.wait([job])
            raise

    async def _next(self, context: Context, within_s: float) -> bytes | None:
        """Return the next message, None after the last one.

        Raises:
            CallRefused: When it does not arrive in time.
        """
        try:
            async with asyncio.timeout(within_s):
                message = await context.read()
        except TimeoutError:
            log.info("call refused", code="DEADLINE_EXCEEDED", why="no whole message in time", peer=context.peer())
            raise CallRefused(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"expected a whole message within {within_s:g} s, got less"
            ) from None
        # gRPC's constant for the end of a stream is an object of its own class.
        return message if isinstance(message, bytes) else None

    async def _only(self, context: Context) -> bytes:
        data = await self._next(context, self._limits.message_s)
        if data is None:
            raise CallRefused(grpc.StatusCode.INVALID_ARGUMENT, "expected one message, got none")
        return data

    # --- the four kinds of methods ---

    def _unary(self, answer: Callable[[Message, IncomingCall], Message], kind: Descriptor) -> Act:
        async def act(call: IncomingCall, _connection: Connection, context: Context) -> bytes:
            data = await self._only(context)
            return await self._in_thread(lambda: answer(_parse(kind, data), call).SerializeToString())

        return act

    def _held(self, answer: Callable[..., Message | None], kind: Descriptor) -> Act:
        async def act(call: IncomingCall, _connection: Connection, context: Context) -> bytes:
            request = _parse(kind, await self._only(context))
            loop = asyncio.get_running_loop()
            ends_at, first, reply = loop.time() + self._limits.hold_s, True, None
            while reply is None:
                # Taken before the rows are read, so that no change in between is missed.
                changed, left_s = self._changed, ends_at - loop.time()
                last = self._stopping or left_s <= 0
                reply = await self._in_thread(partial(answer, request, call, first=first, last=last))
                first = False
                if reply is None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(left_s):
                            await changed.wait()
            return reply.SerializeToString()

        return act

    def _upload(self, receive: Callable[[IncomingCall], Callable[[Message], Message]], kind: Descriptor) -> Act:
        async def act(call: IncomingCall, _connection: Connection, context: Context) -> bytes:
            chunk: bytes | None = await self._only(context)
            take, reply = receive(call), None
            while chunk is not None:
                reply = await self._in_thread(partial(lambda data: take(_parse(kind, data)), chunk))
                chunk = await self._next(context, self._limits.progress_s)
            # There was at least one chunk, or `_only` had refused the call.
            assert reply is not None
            return reply.SerializeToString()

        return act

    def _download(self, answer: Callable[[Message, IncomingCall], Iterator[Message]], kind: Descriptor) -> Act:
        async def act(call: IncomingCall, connection: Connection, context: Context) -> None:
            messages = answer(_parse(kind, await self._only(context)), call)

            def read() -> list[bytes]:
                batch: list[bytes] = []
                while sum(map(len, batch)) < READ_BYTES and (message := next(messages, None)) is not None:
                    batch.append(message.SerializeToString())
                return batch

            while batch := await self._in_thread(read):
                for data in batch:
                    try:
                        async with asyncio.timeout(self._limits.progress_s):
                            await context.write(data)
                    except TimeoutError:
                        # A status would wait behind the bytes that the caller does not take.
                        self._acceptor.refuse(connection)
                        raise CallRefused(
                            grpc.StatusCode.DEADLINE_EXCEEDED,
                            f"expected a message to be taken within {self._limits.progress_s:g} s; continue from it",
                        ) from None

        return act


def _parse(kind: Descriptor, data: bytes) -> Message:
    try:
        return GetMessageClass(kind).FromString(data)
    except DecodeError:
        raise CallRefused(grpc.StatusCode.INVALID_ARGUMENT, f"expected a {kind.name}, got other bytes") from None
