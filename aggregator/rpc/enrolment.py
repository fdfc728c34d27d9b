"""Enrolment."""

from typing import NoReturn

import grpc
from federation.v1 import enrolment_pb2
from federation.v1.enrolment_pb2_grpc import EnrolmentServicer
from federation.wire import check_known

from aggregator import errors
from aggregator.rpc.call_guard import CallGuard, translated
from aggregator.sites.enrolment import EnrolmentService


class EnrolledDoor(EnrolmentServicer):
    """The part of enrolment that asks for a certificate; on the mutual-TLS listener."""

    def __init__(self, gate: CallGuard, enrolment: EnrolmentService) -> None:
        self._gate = gate
        self._enrolment = enrolment

    def Renew(self, request: enrolment_pb2.RenewRequest, context: grpc.ServicerContext) -> enrolment_pb2.Credentials:
        return self._gate.call(request, context, lambda site: self._enrolment.renew(site, request))

    def FetchRoster(
        self, request: enrolment_pb2.FetchRosterRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.SignedRoster:
        return self._gate.call(request, context, lambda _site: self._enrolment.roster())

    def Leave(self, request: enrolment_pb2.LeaveRequest, context: grpc.ServicerContext) -> enrolment_pb2.LeaveReply:
        with translated(context):
            try:
                site = self._gate.caller(context)
                check_known(request)
                self._enrolment.leave(site)
            except errors.SiteLeft:  # it has; the answer to its first call was lost
                check_known(request)
            return enrolment_pb2.LeaveReply()

    def Join(self, request: enrolment_pb2.JoinRequest, context: grpc.ServicerContext) -> enrolment_pb2.JoinReply:
        _other_listener(context)

    def Challenge(
        self, request: enrolment_pb2.ChallengeRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.ChallengeReply:
        _other_listener(context)

    def Recover(
        self, request: enrolment_pb2.RecoverRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.Credentials:
        _other_listener(context)


class JoiningDoor(EnrolmentServicer):
    """The part of enrolment for hosts without a certificate; on the enrolment listener, which has nothing else."""

    def __init__(self, enrolment: EnrolmentService) -> None:
        self._enrolment = enrolment

    def Join(self, request: enrolment_pb2.JoinRequest, context: grpc.ServicerContext) -> enrolment_pb2.JoinReply:
        with translated(context):
            check_known(request)
            return self._enrolment.join(request)

    def Challenge(
        self, request: enrolment_pb2.ChallengeRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.ChallengeReply:
        with translated(context):
            check_known(request)
            return self._enrolment.challenge(request)

    def Recover(
        self, request: enrolment_pb2.RecoverRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.Credentials:
        with translated(context):
            check_known(request)
            return self._enrolment.recover(request)

    def Renew(self, request: enrolment_pb2.RenewRequest, context: grpc.ServicerContext) -> enrolment_pb2.Credentials:
        _other_listener(context)

    def FetchRoster(
        self, request: enrolment_pb2.FetchRosterRequest, context: grpc.ServicerContext
    ) -> enrolment_pb2.SignedRoster:
        _other_listener(context)

    def Leave(self, request: enrolment_pb2.LeaveRequest, context: grpc.ServicerContext) -> enrolment_pb2.LeaveReply:
        _other_listener(context)


def _other_listener(context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "this call belongs to the aggregator's other listener")
