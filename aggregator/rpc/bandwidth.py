"""The service with which a site measures its line."""

from federation.v1 import bandwidth_pb2

from aggregator.rpc.call_guard import CallContext, CallGuard
from aggregator.sites.bandwidth import BandwidthTest


class BandwidthServicer:
    """Echoes bytes."""

    def __init__(self, guard: CallGuard) -> None:
        self._guard = guard
        self._test = BandwidthTest()

    def Echo(self, request: bandwidth_pb2.EchoRequest, context: CallContext) -> bandwidth_pb2.EchoReply:
        """Answer with as many bytes as wanted."""
        return self._guard.call(request, context, lambda site: self._test.answer(site, request))
