"""A rollback: the custodian's word that a run goes on from an earlier model. Every site verifies it for itself."""

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.bounds import check_length, check_whole
from federation.errors import Malformed, PlanRefused
from federation.signing import Signer, sign, verify
from federation.v1 import plan_pb2
from federation.wire import parse, serialize

_DOMAIN: Final = "hemofed rollback v1"
_NUMBER_MAX: Final = 2**31


@dataclass(frozen=True)
class RunRollback:
    """A run's way back to one of its models.

    Attributes:
        plan_digest: Of the run, 32 bytes.
        number: 1 for the first rollback of the run; a site follows none that is not newer than its last.
        after_round: The next round begins from the model, whatever rounds up to this one have led to.
        model_digest: 32 bytes.
        model_round: The round that led to the model, for people; 0 for the initial one.

    Raises:
        Malformed: A value is out of its bounds.
    """

    plan_digest: bytes
    number: int
    after_round: int
    model_digest: bytes
    model_round: int

    def __post_init__(self) -> None:
        try:
            check_length("rollback.plan_digest", self.plan_digest, 32)
            check_whole("rollback.number", self.number, 1, _NUMBER_MAX)
            check_whole("rollback.after_round", self.after_round, 1, _NUMBER_MAX)
            check_length("rollback.model_digest", self.model_digest, 32)
            check_whole("rollback.model_round", self.model_round, 0, self.after_round)
        except PlanRefused as error:
            raise Malformed(str(error)) from error

    @classmethod
    def from_bytes(cls, data: bytes) -> "RunRollback":
        """Parses the canonical bytes.

        Raises:
            Malformed: They are no canonical Rollback, or a value is out of its bounds.
        """
        message = parse(plan_pb2.Rollback, data)
        return cls(
            plan_digest=message.plan_digest,
            number=message.number,
            after_round=message.after_round,
            model_digest=message.model_digest,
            model_round=message.model_round,
        )

    def to_bytes(self) -> bytes:
        """Returns the canonical bytes, which the custodian signs."""
        return serialize(
            plan_pb2.Rollback(
                plan_digest=self.plan_digest,
                number=self.number,
                after_round=self.after_round,
                model_digest=self.model_digest,
                model_round=self.model_round,
            )
        )


def sign_rollback(rollback: RunRollback, custodian: Signer) -> plan_pb2.SignedRollback:
    """Signs the bytes with Ed25519 (RFC 8032): 64 bytes over a domain and the rollback."""
    data = rollback.to_bytes()
    return plan_pb2.SignedRollback(rollback=data, signature=sign(custodian, _DOMAIN, data))


def verify_rollback(signed: plan_pb2.SignedRollback, custodian: Ed25519PublicKey) -> RunRollback:
    """Checks the custodian's signature, then parses the rollback. No byte is parsed before.

    Raises:
        BadSignature: The custodian did not sign these bytes.
        Malformed: They are no canonical Rollback, or a value is out of its bounds.
    """
    verify(custodian, _DOMAIN, signed.rollback, signed.signature)
    return RunRollback.from_bytes(signed.rollback)
