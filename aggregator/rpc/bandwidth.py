"""A site measures its line."""

import grpc
from federation.v1 import bandwidth_pb2
from federation.v1.bandwidth_pb2_grpc import LineServicer

from aggregator.rpc.call_guard import CallGuard
from aggregator.sites.bandwidth import BandwidthTest


class LineDoor(LineServicer):
    """A site measures how fast its line is. Such calls are large: they share the places of those that last."""

    def __init__(self, gate: CallGuard) -> None:
        self._gate = gate
        self._echoes = BandwidthTest()

    def Echo(self, request: bandwidth_pb2.EchoRequest, context: grpc.ServicerContext) -> bandwidth_pb2.EchoReply:
        def echo(site: str) -> bandwidth_pb2.EchoReply:
            with self._gate.slot():
                return self._echoes.answer(site, request)

        return self._gate.call(request, context, echo)
