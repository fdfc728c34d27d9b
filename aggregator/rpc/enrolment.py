"""The enrolment service, divided among two listeners: sites that have a certificate, and hosts that have none yet."""

from typing import NoReturn

import grpc
from federation.v1 import enrolment_pb2
from federation.wire import check_known

from aggregator import errors
from aggregator.rpc.call_guard import CallContext, CallGuard, translated
from aggregator.sites.enrolment import EnrolmentService


class SiteEnrolmentServicer:
    """Calls of enrolled sites: Renew, FetchRoster, Leave. On the mutual-TLS listener."""

    def __init__(self, guard: CallGuard, enrolment: EnrolmentService) -> None:
        self._guard = guard
        self._enrolment = enrolment

    def Renew(self, request: enrolment_pb2.RenewRequest, context: CallContext) -> enrolment_pb2.Credentials:
        """Issue the site's next certificate."""
        return self._guard.call(request, context, lambda site: self._enrolment.renew(site, request))

    def FetchRoster(
        self, request: enrolment_pb2.FetchRosterRequest, context: CallContext
    ) -> enrolment_pb2.SignedRoster:
        """Return the roster in force."""
        return self._guard.call(request, context, lambda _site: self._enrolment.roster())

    def Leave(self, request: enrolment_pb2.LeaveRequest, context: CallContext) -> enrolment_pb2.LeaveReply:
        """Let the site leave for good."""
        with translated(context):
            # Not through `guard.call`, which would refuse the repetition of a call that succeeded.
            try:
                site = self._guard.caller(context)
                check_known(request)
                self._enrolment.leave(site)
            # The answer to its first call was lost. A site that has left asks for nothing else, so this is its success.
            except errors.SiteLeft:
                check_known(request)
            return enrolment_pb2.LeaveReply()

    def Join(self, request: enrolment_pb2.JoinRequest, context: CallContext) -> enrolment_pb2.JoinReply:
        """Refuse: hosts without a certificate use the other listener."""
        _refuse_listener(context)

    def Challenge(self, request: enrolment_pb2.ChallengeRequest, context: CallContext) -> enrolment_pb2.ChallengeReply:
        """Refuse: hosts without a certificate use the other listener."""
        _refuse_listener(context)

    def Recover(self, request: enrolment_pb2.RecoverRequest, context: CallContext) -> enrolment_pb2.Credentials:
        """Refuse: hosts without a certificate use the other listener."""
        _refuse_listener(context)


class HostEnrolmentServicer:
    """Calls of hosts without a valid certificate: Join, Challenge, Recover. The enrolment listener has no others."""

    def __init__(self, enrolment: EnrolmentService) -> None:
        self._enrolment = enrolment

    def Join(self, request: enrolment_pb2.JoinRequest, context: CallContext) -> enrolment_pb2.JoinReply:
        """Admit a host with a one-time token."""
        with translated(context):
            check_known(request)
            return self._enrolment.join(request)

    def Challenge(self, request: enrolment_pb2.ChallengeRequest, context: CallContext) -> enrolment_pb2.ChallengeReply:
        """Hand out a nonce to a site whose certificate has expired."""
        with translated(context):
            check_known(request)
            return self._enrolment.challenge(request)

    def Recover(self, request: enrolment_pb2.RecoverRequest, context: CallContext) -> enrolment_pb2.Credentials:
        """Issue a certificate to the site that has signed the nonce."""
        with translated(context):
            check_known(request)
            return self._enrolment.recover(request)

    def Renew(self, request: enrolment_pb2.RenewRequest, context: CallContext) -> enrolment_pb2.Credentials:
        """Refuse: enrolled sites use the other listener."""
        _refuse_listener(context)

    def FetchRoster(
        self, request: enrolment_pb2.FetchRosterRequest, context: CallContext
    ) -> enrolment_pb2.SignedRoster:
        """Refuse: enrolled sites use the other listener."""
        _refuse_listener(context)

    def Leave(self, request: enrolment_pb2.LeaveRequest, context: CallContext) -> enrolment_pb2.LeaveReply:
        """Refuse: enrolled sites use the other listener."""
        _refuse_listener(context)


def _refuse_listener(context: CallContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "this call belongs to the aggregator's other listener")
