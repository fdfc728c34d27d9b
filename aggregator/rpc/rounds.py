"""Sites' side of a round."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from federation.v1 import rounds_pb2, secagg_pb2
from federation.v1.plan_pb2 import SignedPlan
from federation.v1.rounds_pb2_grpc import RoundsServicer

from aggregator.context import AppContext
from aggregator.rounds import polling, submissions
from aggregator.rpc.call_guard import CallGuard
from aggregator.sites import reports
from aggregator.store.traffic import SeatKey

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


class RoundsDoor(RoundsServicer):
    """Sites' side of a round: poll, say one thing a phase."""

    def __init__(self, gate: CallGuard) -> None:
        self._gate = gate
        self._app = gate.app
        # Jitter spreads sites out; nobody gains by predicting it.
        self._pace = polling.PollPacing(gate.app.settings.pacing, random.random)

    def Poll(self, request: rounds_pb2.PollRequest, context: grpc.ServicerContext) -> rounds_pb2.PollReply:
        return self._gate.call(request, context, lambda site: self._poll(site, request))

    def FetchPlan(self, request: rounds_pb2.FetchPlanRequest, context: grpc.ServicerContext) -> SignedPlan:
        def fetch(site: str) -> SignedPlan:
            signed, seat = polling.plan_for(self._app, site, request.plan_digest)
            self._app.traffic.add(seat, up=request.ByteSize(), down=signed.ByteSize())
            return signed

        return self._gate.call(request, context, fetch)

    def Ready(self, request: rounds_pb2.ReadyMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, submissions.accept_ready)

    def Decline(self, request: rounds_pb2.DeclineMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, submissions.accept_decline)

    def SendKeys(self, request: secagg_pb2.KeysMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, submissions.accept_keys)

    def SendShares(self, request: secagg_pb2.SharesMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, submissions.accept_shares)

    def SendUpload(self, request: secagg_pb2.UploadMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, submissions.accept_upload)

    def SendConfirm(self, request: secagg_pb2.ConfirmMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, submissions.accept_confirm)

    def SendReveal(self, request: secagg_pb2.RevealMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        return self._receipt(request, context, submissions.accept_reveal)

    def _receipt(
        self,
        request: Said,
        context: grpc.ServicerContext,
        accept: Callable[[AppContext, str, Said], submissions.Receipt],
    ) -> rounds_pb2.Receipt:
        seat = SeatKey(request.round.run_id, request.round.round, "")

        def act(site: str) -> rounds_pb2.Receipt:
            return rounds_pb2.Receipt(verdict=_VERDICTS[accept(self._app, site, request)])

        return self._gate.call(request, context, act, seat)

    def _poll(self, site: str, request: rounds_pb2.PollRequest) -> rounds_pb2.PollReply:
        """Answer now, or hold the call for a moment while something the site waits for may happen."""
        reports.keep(self._app, site, request)
        ends_at = time.monotonic() + self._app.settings.listen.answer_hold_ms / 1000
        heard, answer = self._look(site, request)
        if answer.hold and self._gate.acquire_slot():
            try:
                while answer.hold and not self._gate.stopping.is_set() and (left_s := ends_at - time.monotonic()) > 0:
                    self._app.phase_changed.wait(heard, left_s)
                    heard, answer = self._look(site, request)
            finally:
                self._gate.release_slot()
            if answer.hold:  # it was held for as long as its place lasts: come back for another
                answer.reply.retry_after_ms = polling.AT_ONCE_MS
        if answer.seat is not None:
            self._app.traffic.add(answer.seat, up=request.ByteSize(), down=answer.reply.ByteSize())
        return answer.reply

    def _look(self, site: str, request: rounds_pb2.PollRequest) -> tuple[int, polling.PollAnswer]:
        heard = self._app.phase_changed.count
        with self._app.store.read() as session:
            return heard, polling.answer(session, site, request, self._app.clock(), self._pace)
