"""The type of a gRPC channel without serializers: bytes are sent and bytes are received."""

from types import TracebackType
from typing import Protocol, Self

import grpc


class RawChannel(Protocol):
    """`grpc.Channel` as these tests use it. Its own type leaves open what a call without serializers takes."""

    # In quotes: grpc's classes take type arguments in its stubs only.
    def unary_unary(self, method: str, /) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]": ...

    def unary_stream(self, method: str, /) -> "grpc.UnaryStreamMultiCallable[bytes, bytes]": ...

    def stream_unary(self, method: str, /) -> "grpc.StreamUnaryMultiCallable[bytes, bytes]": ...

    def stream_stream(self, method: str, /) -> "grpc.StreamStreamMultiCallable[bytes, bytes]": ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...
