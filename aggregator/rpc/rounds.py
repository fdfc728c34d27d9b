"""The service for a site's part in a round: poll, fetch the plan, send one message a phase."""

import random
from collections.abc import Callable
from typing import TypeVar

from federation.v1 import rounds_pb2, secagg_pb2
from federation.v1.plan_pb2 import SignedPlan
from federation.wire import check_known

from aggregator.context import AppContext
from aggregator.rounds import polling, submissions
from aggregator.rounds.certificates import accept_model_signature
from aggregator.rpc.call_guard import CallContext, CallGuard, translated
from aggregator.runs.key_release import release_key
from aggregator.sites import reports
from aggregator.store.traffic import SeatKey

Submission = TypeVar(
    "Submission",
    rounds_pb2.ReadyMessage,
    rounds_pb2.DeclineMessage,
    secagg_pb2.KeysMessage,
    secagg_pb2.SharesMessage,
    secagg_pb2.ComplaintMessage,
    secagg_pb2.UploadMessage,
    secagg_pb2.ConfirmMessage,
    secagg_pb2.RevealMessage,
    rounds_pb2.ModelSignature,
)

_VERDICTS = {"accepted": rounds_pb2.Receipt.ACCEPTED, "late": rounds_pb2.Receipt.LATE}


class RoundsServicer:
    """Answers polls, and hands each message of a round to its function in `rounds.submissions`."""

    def __init__(self, guard: CallGuard) -> None:
        self._guard = guard
        self._app = guard.app
        # Jitter spreads sites out; predicting it gains nothing, so the generator need not be a secure one.
        self._pacing = polling.PollPacing(guard.app.settings.pacing, random.random)

    def Poll(self, request: rounds_pb2.PollRequest, context: CallContext) -> rounds_pb2.PollReply:
        """Keep the site's report, and answer now what it is to do."""
        reply = self.look(request, context, first=True, last=True)
        # The last look always answers.
        assert reply is not None
        return reply

    def FetchPlan(self, request: rounds_pb2.FetchPlanRequest, context: CallContext) -> SignedPlan:
        """Return a signed plan by its digest."""

        def fetch(site: str) -> SignedPlan:
            signed, seat = polling.plan_for(self._app, site, request.plan_digest)
            self._app.traffic.add(seat, up=request.ByteSize(), down=signed.ByteSize())
            return signed

        return self._guard.call(request, context, fetch)

    def Ready(self, request: rounds_pb2.ReadyMessage, context: CallContext) -> rounds_pb2.Receipt:
        """Accept that the site holds a trained update."""
        return self._accept(request, context, submissions.accept_ready)

    def Decline(self, request: rounds_pb2.DeclineMessage, context: CallContext) -> rounds_pb2.Receipt:
        """Accept that the site takes no part in the round."""
        return self._accept(request, context, submissions.accept_decline)

    def SendKeys(self, request: secagg_pb2.KeysMessage, context: CallContext) -> rounds_pb2.Receipt:
        """Accept a member's fresh keys."""
        return self._accept(request, context, submissions.accept_keys)

    def SendShares(self, request: secagg_pb2.SharesMessage, context: CallContext) -> rounds_pb2.Receipt:
        """Accept a member's encrypted shares."""
        return self._accept(request, context, submissions.accept_shares)

    def SendComplaint(self, request: secagg_pb2.ComplaintMessage, context: CallContext) -> rounds_pb2.Receipt:
        """Accept a member's complaints about shares that it was dealt."""
        return self._accept(request, context, submissions.accept_complaints)

    def SendUpload(self, request: secagg_pb2.UploadMessage, context: CallContext) -> rounds_pb2.Receipt:
        """Accept a member's claim of its upload."""
        return self._accept(request, context, submissions.accept_upload)

    def SendConfirm(self, request: secagg_pb2.ConfirmMessage, context: CallContext) -> rounds_pb2.Receipt:
        """Accept a member's signature over the set of uploads."""
        return self._accept(request, context, submissions.accept_confirm)

    def SendReveal(self, request: secagg_pb2.RevealMessage, context: CallContext) -> rounds_pb2.Receipt:
        """Accept the shares that a member reveals."""
        return self._accept(request, context, submissions.accept_reveal)

    def SignModel(self, request: rounds_pb2.ModelSignature, context: CallContext) -> rounds_pb2.Receipt:
        """Accept a member's signature over the model that it computed."""
        return self._accept(request, context, accept_model_signature)

    def ReleaseKey(self, request: rounds_pb2.ReleaseRequest, context: CallContext) -> rounds_pb2.ReleaseReply:
        """Return the content key of a sealed model, encrypted for the site."""

        def release(site: str) -> rounds_pb2.ReleaseReply:
            reply, seat = release_key(self._app, site, request)
            self._app.traffic.add(seat, up=request.ByteSize(), down=reply.ByteSize())
            return reply

        return self._guard.call(request, context, release)

    def _accept(
        self,
        request: Submission,
        context: CallContext,
        accept: Callable[[AppContext, str, Submission], submissions.Receipt],
    ) -> rounds_pb2.Receipt:
        # The guard fills in the site: the request could name another.
        seat = SeatKey(request.round.run_id, request.round.round, "")

        def act(site: str) -> rounds_pb2.Receipt:
            return rounds_pb2.Receipt(verdict=_VERDICTS[accept(self._app, site, request)])

        return self._guard.call(request, context, act, seat)

    def look(
        self, request: rounds_pb2.PollRequest, context: CallContext, *, first: bool, last: bool
    ) -> rounds_pb2.PollReply | None:
        """Answer a Poll, or return None where the site had better wait for a change of rows.

        Args:
            request: The Poll.
            context: Of its call.
            first: Whether this is the first look for this call; then the site's report is kept.
            last: Whether the call is over with this look; then it is always answered.
        """
        with translated(context):
            # One transaction for both: a Poll is the most frequent call, and each transaction costs as much as a query.
            with self._app.store.read() as session:
                site = self._guard.caller_within(session, context)
                check_known(request)
                answer = polling.answer(session, site, request, self._app.clock(), self._pacing)
            if first:
                reports.keep(self._app, site, request)
            if answer.hold and not last:
                return None
            if answer.hold and not first:  # held for as long as it may be: the site is to come back at once
                answer.reply.retry_after_ms = polling.AT_ONCE_MS
            # A site whose ledger is shorter was put back to an earlier day, and takes part in nothing.
            seen = self._app.last_reports[site].longest_before
            answer.reply.ledger_entries_seen, answer.reply.ledger_head_seen = seen
            if answer.seat is not None:
                self._app.traffic.add(answer.seat, up=request.ByteSize(), down=answer.reply.ByteSize())
        return answer.reply
