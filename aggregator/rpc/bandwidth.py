"""The service with which a site measures its line."""

import grpc
from federation.v1 import bandwidth_pb2, bandwidth_pb2_grpc

from aggregator.rpc.call_guard import CallGuard
from aggregator.sites.bandwidth import BandwidthTest


class BandwidthServicer(bandwidth_pb2_grpc.LineServicer):
    """Echoes bytes. Such calls are large, so they take slots of the calls that last."""

    def __init__(self, guard: CallGuard) -> None:
        self._guard = guard
        self._test = BandwidthTest()

    def Echo(self, request: bandwidth_pb2.EchoRequest, context: grpc.ServicerContext) -> bandwidth_pb2.EchoReply:
        """Answer with as many bytes as wanted."""

        def echo(site: str) -> bandwidth_pb2.EchoReply:
            with self._guard.slot():
                return self._test.answer(site, request)

        return self._guard.call(request, context, echo)
