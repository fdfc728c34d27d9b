"""Every call that a site can make: name, type of the message, type of the answer. The guard lets no other leave."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from federation.v1 import bandwidth_pb2, blobs_pb2, enrolment_pb2, plan_pb2, rounds_pb2, secagg_pb2
from google.protobuf.message import Message

# Covariant, because a Call is read-only: a call of one type of message is also a call of `Message`.
Q = TypeVar("Q", bound=Message, covariant=True)
R = TypeVar("R", bound=Message, covariant=True)


@dataclass(frozen=True)
class Call(Generic[Q, R]):
    """One RPC; `name` is Service/Method."""

    name: str
    request: type[Q]
    reply: type[R]

    @property
    def path(self) -> str:
        """The method's path in HTTP/2."""
        return f"/hemofed.v1.{self.name}"


JOIN = Call("Enrolment/Join", enrolment_pb2.JoinRequest, enrolment_pb2.JoinReply)
CHALLENGE = Call("Enrolment/Challenge", enrolment_pb2.ChallengeRequest, enrolment_pb2.ChallengeReply)
RECOVER = Call("Enrolment/Recover", enrolment_pb2.RecoverRequest, enrolment_pb2.Credentials)
RENEW = Call("Enrolment/Renew", enrolment_pb2.RenewRequest, enrolment_pb2.Credentials)
FETCH_ROSTER = Call("Enrolment/FetchRoster", enrolment_pb2.FetchRosterRequest, enrolment_pb2.SignedRoster)
LEAVE = Call("Enrolment/Leave", enrolment_pb2.LeaveRequest, enrolment_pb2.LeaveReply)

POLL = Call("Rounds/Poll", rounds_pb2.PollRequest, rounds_pb2.PollReply)
FETCH_PLAN = Call("Rounds/FetchPlan", rounds_pb2.FetchPlanRequest, plan_pb2.SignedPlan)
READY = Call("Rounds/Ready", rounds_pb2.ReadyMessage, rounds_pb2.Receipt)
DECLINE = Call("Rounds/Decline", rounds_pb2.DeclineMessage, rounds_pb2.Receipt)
SEND_KEYS = Call("Rounds/SendKeys", secagg_pb2.KeysMessage, rounds_pb2.Receipt)
SEND_SHARES = Call("Rounds/SendShares", secagg_pb2.SharesMessage, rounds_pb2.Receipt)
SEND_COMPLAINTS = Call("Rounds/SendComplaint", secagg_pb2.ComplaintMessage, rounds_pb2.Receipt)
SEND_UPLOAD = Call("Rounds/SendUpload", secagg_pb2.UploadMessage, rounds_pb2.Receipt)
SEND_CONFIRM = Call("Rounds/SendConfirm", secagg_pb2.ConfirmMessage, rounds_pb2.Receipt)
SEND_REVEAL = Call("Rounds/SendReveal", secagg_pb2.RevealMessage, rounds_pb2.Receipt)
SIGN_MODEL = Call("Rounds/SignModel", rounds_pb2.ModelSignature, rounds_pb2.Receipt)

RELEASE_KEY = Call("Rounds/ReleaseKey", rounds_pb2.ReleaseRequest, rounds_pb2.ReleaseReply)

OFFER_BLOB = Call("Blobs/Offer", blobs_pb2.BlobOffer, blobs_pb2.BlobProgress)
PUT_BLOB = Call("Blobs/Put", blobs_pb2.BlobChunk, blobs_pb2.BlobProgress)  # a stream of chunks goes out
GET_BLOB = Call("Blobs/Get", blobs_pb2.BlobRequest, blobs_pb2.BlobChunk)  # a stream of chunks comes in

ECHO = Call("Line/Echo", bandwidth_pb2.EchoRequest, bandwidth_pb2.EchoReply)

CALLS: dict[str, Call[Message, Message]] = {
    call.name: call
    for call in (
        *(JOIN, CHALLENGE, RECOVER, RENEW, FETCH_ROSTER, LEAVE),
        *(POLL, FETCH_PLAN, READY, DECLINE, SIGN_MODEL, RELEASE_KEY),
        *(SEND_KEYS, SEND_SHARES, SEND_COMPLAINTS, SEND_UPLOAD, SEND_CONFIRM, SEND_REVEAL),
        *(OFFER_BLOB, PUT_BLOB, GET_BLOB, ECHO),
    )
}
