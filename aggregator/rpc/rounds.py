"""The service for a site's part in a round: poll, fetch the plan, send one message a phase."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from federation.v1 import rounds_pb2, rounds_pb2_grpc, secagg_pb2
from federation.v1.plan_pb2 import SignedPlan

from aggregator.context import AppContext
from aggregator.rounds import polling, submissions
from aggregator.rpc.call_guard import CallGuard
from aggregator.sites import reports
from aggregator.store.traffic import SeatKey

Submission = TypeVar(
    "Submission",
    rounds_pb2.ReadyMessage,
    rounds_pb2.DeclineMessage,
    secagg_pb2.KeysMessage,
    secagg_pb2.SharesMessage,
    secagg_pb2.UploadMessage,
    secagg_pb2.ConfirmMessage,
    secagg_pb2.RevealMessage,
)

_VERDICTS = {"accepted": rounds_pb2.Receipt.ACCEPTED, "late": rounds_pb2.Receipt.LATE}


class RoundsServicer(rounds_pb2_grpc.RoundsServicer):
    """Answers polls, and hands each message of a round to its function in `rounds.submissions`."""

    def __init__(self, guard: CallGuard) -> None:
        self._guard = guard
        self._app = guard.app
        # Jitter spreads sites out; predicting it gains nothing, so the generator need not be a secure one.
        self._pacing = polling.PollPacing(guard.app.settings.pacing, random.random)

    def Poll(self, request: rounds_pb2.PollRequest, context: grpc.ServicerContext) -> rounds_pb2.PollReply:
        """Keep the site's report, and answer what it is to do."""
        return self._guard.call(request, context, lambda site: self._poll(site, request))

    def FetchPlan(self, request: rounds_pb2.FetchPlanRequest, context: grpc.ServicerContext) -> SignedPlan:
        """Return a signed plan by its digest."""

        def fetch(site: str) -> SignedPlan:
            signed, seat = polling.plan_for(self._app, site, request.plan_digest)
            self._app.traffic.add(seat, up=request.ByteSize(), down=signed.ByteSize())
            return signed

        return self._guard.call(request, context, fetch)

    def Ready(self, request: rounds_pb2.ReadyMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        """Accept that the site holds a trained update."""
        return self._accept(request, context, submissions.accept_ready)

    def Decline(self, request: rounds_pb2.DeclineMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        """Accept that the site takes no part in the round."""
        return self._accept(request, context, submissions.accept_decline)

    def SendKeys(self, request: secagg_pb2.KeysMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        """Accept a member's fresh keys."""
        return self._accept(request, context, submissions.accept_keys)

    def SendShares(self, request: secagg_pb2.SharesMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        """Accept a member's encrypted shares."""
        return self._accept(request, context, submissions.accept_shares)

    def SendUpload(self, request: secagg_pb2.UploadMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        """Accept a member's claim of its upload."""
        return self._accept(request, context, submissions.accept_upload)

    def SendConfirm(self, request: secagg_pb2.ConfirmMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        """Accept a member's signature over the set of uploads."""
        return self._accept(request, context, submissions.accept_confirm)

    def SendReveal(self, request: secagg_pb2.RevealMessage, context: grpc.ServicerContext) -> rounds_pb2.Receipt:
        """Accept the shares that a member reveals."""
        return self._accept(request, context, submissions.accept_reveal)

    def _accept(
        self,
        request: Submission,
        context: grpc.ServicerContext,
        accept: Callable[[AppContext, str, Submission], submissions.Receipt],
    ) -> rounds_pb2.Receipt:
        # The guard fills in the site: the request could name another.
        seat = SeatKey(request.round.run_id, request.round.round, "")

        def act(site: str) -> rounds_pb2.Receipt:
            return rounds_pb2.Receipt(verdict=_VERDICTS[accept(self._app, site, request)])

        return self._guard.call(request, context, act, seat)

    def _poll(self, site: str, request: rounds_pb2.PollRequest) -> rounds_pb2.PollReply:
        """Answer now, or hold the call for a moment while something that the site waits for may happen."""
        reports.keep(self._app, site, request)
        ends_at = time.monotonic() + self._app.settings.listen.answer_hold_ms / 1000
        count, answer = self._look(site, request)
        # Without a free slot the answer goes out at once: a held call must not take the thread of a short one.
        if answer.hold and self._guard.acquire_slot():
            try:
                while answer.hold and not self._guard.stopping.is_set() and (left_s := ends_at - time.monotonic()) > 0:
                    self._app.phase_changed.wait(count, left_s)
                    count, answer = self._look(site, request)
            finally:
                self._guard.release_slot()
            if answer.hold:  # held for as long as it may be: the site is to come back for another slot
                answer.reply.retry_after_ms = polling.AT_ONCE_MS
        if answer.seat is not None:
            self._app.traffic.add(answer.seat, up=request.ByteSize(), down=answer.reply.ByteSize())
        return answer.reply

    def _look(self, site: str, request: rounds_pb2.PollRequest) -> tuple[int, polling.PollAnswer]:
        # Counted before the rows are read: a change in between is not missed.
        count = self._app.phase_changed.count
        with self._app.store.read() as session:
            return count, polling.answer(session, site, request, self._app.clock(), self._pacing)
