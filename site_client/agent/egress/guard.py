"""The guard: an allow-list of all that may leave this hospital. Everything else is refused.

It checks three things, one behind the other.

Messages: a closed set of calls, each with its one type, known fields only. Text fields hold names of sites and versions
of this software, nothing else. No message type has a field for a real number, so a loss or a score cannot travel in
clear.

Updates: as many numbers as move under the signed plan, finite, within its clip norm, from enough studies, with metrics
only where plan and policy both allow them. A private round adds gradients of patients: its norm is that of the largest
batch, and it is not refused for few studies, which would tell something about them.

Uploads: only the very bytes that `mask_contribution` has just masked, as many as the plan's layout says. The one other
message with room for arbitrary bytes, an echo, takes only a fixed sequence.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from federation.bandwidth import sequence
from federation.encoding import Layout
from federation.encoding.quantize import norm_of
from federation.errors import EncodingRefused, Malformed
from federation.hpke import SEALING_KEY_BYTES
from federation.limits import CHUNK_BYTES_MAX, COHORT_MAX, SITE_NAME, VERSION
from federation.plan import TrainingPlan
from federation.secagg.transcript import KEM_CIPHERTEXT_BYTES, KEM_KEY_BYTES
from federation.vocabulary import Outcome
from federation.wire import check_known
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from numpy.typing import NDArray

from site_client.agent.egress.calls import (
    CALLS,
    ECHO,
    OFFER_BLOB,
    PUT_BLOB,
    READY,
    SEND_COMPLAINTS,
    SEND_CONFIRM,
    SEND_KEYS,
    SEND_REVEAL,
    SEND_SHARES,
    SEND_UPLOAD,
    SIGN_MODEL,
    Call,
)
from site_client.config import PolicySettings
from site_client.errors import EgressRefused
from site_client.records import Update

# The calls by which an update, or a promise of one, leaves. A dry run makes none of them.
_TAKES_PART = frozenset(
    call.name
    for call in (
        *(READY, SEND_KEYS, SEND_SHARES, SEND_COMPLAINTS, SEND_UPLOAD, SEND_CONFIRM, SEND_REVEAL, SIGN_MODEL),
        *(OFFER_BLOB, PUT_BLOB),
    )
)
# Text and bytes fields that may leave, and the longest value of each. A field that is not here does not leave.
_TEXT: dict[str, re.Pattern[str]] = {
    "JoinRequest.site": SITE_NAME,
    "ChallengeRequest.site": SITE_NAME,
    "RecoverRequest.site": SITE_NAME,
    "PollRequest.version": VERSION,
    "Advertisement.site": SITE_NAME,
    "EncryptedShare.from_site": SITE_NAME,
    "EncryptedShare.to_site": SITE_NAME,
    "Complaint.site": SITE_NAME,
    "Complaint.dealer": SITE_NAME,
    "UploadClaim.site": SITE_NAME,
    "Confirmation.site": SITE_NAME,
    "OpenedShares.to_site": SITE_NAME,
    "RevealedShare.about_site": SITE_NAME,
}
_BYTES: dict[str, int] = {
    "JoinRequest.secret": 32,
    "JoinRequest.csr_der": 2048,
    "JoinRequest.signing_key": 32,
    "JoinRequest.sealing_key": 1216,
    "JoinRequest.possession": 64,
    "RecoverRequest.nonce": 32,
    "RecoverRequest.csr_der": 2048,
    "RecoverRequest.signature": 64,
    "RenewRequest.csr_der": 2048,
    "RoundRef.run_id": 16,
    "PollRequest.model_digest": 32,
    "PollRequest.ledger_head": 32,
    "FetchPlanRequest.plan_digest": 32,
    "Advertisement.mask_key": 32,
    "Advertisement.kem_key": KEM_KEY_BYTES,
    "Advertisement.share_key": 32,
    "Advertisement.seed_commitment": 32,
    "Advertisement.signature": 64,
    "EncryptedShare.kem_ciphertext": KEM_CIPHERTEXT_BYTES,
    "EncryptedShare.pair_secret": 32,
    "EncryptedShare.ciphertext": 128,
    "EncryptedShare.seed_digest": 32,
    "EncryptedShare.key_digest": 32,
    "EncryptedShare.signature": 64,
    "Complaint.signature": 64,
    "UploadClaim.digest": 32,
    "UploadClaim.signature": 64,
    "Confirmation.signature": 64,
    "OpenedShares.seed_share": 64,
    "OpenedShares.key_share": 64,
    "RevealedShare.share": 64,
    "RevealMessage.signature": 64,
    "ModelSignature.signature": 64,
    "ReleaseRequest.plan_digest": 32,
    "ReleaseRequest.model_digest": 32,
    "ReleaseRequest.nonce": 32,
    "ReleaseRequest.receiver_key": SEALING_KEY_BYTES,
    "SnpEvidence.report": 1184,
    "SnpEvidence.vcek": 4096,
    "SnpEvidence.ask": 4096,
    "SnpEvidence.ark": 4096,
    "BlobOffer.digest": 32,
    "BlobChunk.digest": 32,
    "BlobChunk.data": CHUNK_BYTES_MAX,
    "BlobRequest.digest": 32,
    "EchoRequest.data": CHUNK_BYTES_MAX,
}
# No float and no double: a loss or a score has no field in which it could travel.
_NUMBERS = {
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_BOOL,
    FieldDescriptor.TYPE_ENUM,
}


class Guard:
    """Refuses by raising EgressRefused."""

    def __init__(self, policy: PolicySettings) -> None:
        self._policy = policy
        self._upload: tuple[bytes, memoryview] | None = None  # digest and bytes of the one upload that may leave now

    @contextmanager
    def upload_of(self, layout: Layout, masked: memoryview, digest: bytes) -> Iterator[None]:
        """Let `masked` leave, under this digest, while the context lasts.

        The caller vouches that these are words under masks: the guard cannot tell masked words from others.

        Args:
            layout: The plan's, for this round.
            masked: The bytes.
            digest: SHA-256 of the bytes.

        Raises:
            EgressRefused: `masked` has another length than the layout says.
        """
        if len(masked) != layout.bytes:
            raise EgressRefused(
                f"an upload of this plan has {layout.bytes} bytes, got {len(masked)}; it does not leave"
            )
        self._upload = (digest, masked)
        try:
            yield
        finally:
            # Also after an error: outside the context no chunk leaves.
            self._upload = None

    def check_message(self, call: Call[Message, Message], message: Message) -> str:
        """Check a message: of the call's own type, with known fields within their bounds.

        Returns:
            The rules that it passed, for the ledger.

        Raises:
            EgressRefused: The message may not leave.
        """
        # By identity and exact type: a look-alike call or a subclass of the message is refused.
        if CALLS.get(call.name) is not call or type(message) is not call.request:
            raise EgressRefused(f"{call.name} with a {type(message).__name__} is not a call this site makes")
        if self._policy.dry_run and call.name in _TAKES_PART:
            raise EgressRefused(f"policy.dry_run is set: {call.name} does not leave")
        try:
            # Unknown fields would leave unchecked: protobuf keeps and sends them.
            check_known(message)
        except Malformed as error:
            raise EgressRefused(f"{call.name}: {error}") from error
        _check_fields(message)
        if call.name == PUT_BLOB.name:
            self._check_chunk(message)
            return "call, fields, masked upload"
        if call.name == ECHO.name:
            _check_echo(message)
            return "call, fields, fixed sequence"
        return "call, fields"

    def check_update(self, plan: TrainingPlan, update: Update, clipped: NDArray[np.float32] | None) -> None:
        """Check an update before it is encoded.

        Args:
            plan: Of the round, signed.
            update: As the trainer delivered it.
            clipped: f32[d], the delta after clipping; None in an evaluation-only round.

        Raises:
            EgressRefused: The update may not leave.
        """
        least = max(self._policy.studies_min, plan.training.studies_min)
        # Checked here again, although the plan was declined for it before: the guard trusts no earlier step.
        excess = set(plan.metrics) - set(self._policy.metrics)
        if excess:
            raise EgressRefused(f"policy.metrics does not hold {', '.join(sorted(excess))}; the update is withheld")
        if update.outcome == Outcome.DECLINED or (update.outcome == Outcome.TRAINED) != (clipped is not None):
            raise EgressRefused(f"an update with outcome {str(update.outcome)!r} does not leave")
        if clipped is None:
            return
        # An update from few studies reveals much about each of them, even within a sum that has no noise.
        if plan.privacy is None and update.studies < least:
            raise EgressRefused(f"an update comes from {least} studies or more; this one is withheld")
        if clipped.dtype != np.float32 or clipped.shape != (plan.moving.size,):
            raise EgressRefused(f"{plan.moving.size} numbers move under the plan; the update has another shape")
        try:
            norm = norm_of(clipped)
        except EncodingRefused:
            norm = math.nan
        # Written so that NaN fails, and with room for the rounding of the sum of squares.
        if not norm <= _norm_max(plan) * (1 + 1e-6):
            raise EgressRefused("the update is not finite and within the plan's clip norm")

    def _check_chunk(self, message: Message) -> None:
        # `check_message` has compared the type: a BlobChunk.
        digest, offset, data = message.digest, message.offset, message.data  # type: ignore[attr-defined]
        allowed, masked = self._upload or (b"", memoryview(b""))
        # Copied first: a comparison of memoryviews is done item by item in Python, some hundred times slower.
        if digest != allowed or not data or bytes(masked[offset : offset + len(data)]) != data:
            raise EgressRefused("a chunk that is no part of the upload masked by this agent does not leave")


def _norm_max(plan: TrainingPlan) -> float:
    return plan.encoding.clip_norm if plan.privacy is None else plan.privacy.batch_max * plan.privacy.clip_norm


def _check_echo(message: Message) -> None:
    # `check_message` has compared the type: an EchoRequest.
    data: bytes = message.data  # type: ignore[attr-defined]
    if data != sequence(len(data)):
        raise EgressRefused("an echo with other bytes than the fixed sequence does not leave")


def _check_fields(message: Message) -> None:
    for field, value in message.ListFields():
        name = f"{message.DESCRIPTOR.name}.{field.name}"
        if field.is_repeated and len(value) > COHORT_MAX:
            raise EgressRefused(f"{name} has {len(value)} items, at most {COHORT_MAX} leave")
        for item in value if field.is_repeated else (value,):
            _check_value(name, field, item)


def _check_value(name: str, field: FieldDescriptor, value: object) -> None:
    if isinstance(value, Message):
        _check_fields(value)
    elif isinstance(value, str):
        if name not in _TEXT or _TEXT[name].fullmatch(value) is None:
            raise EgressRefused(f"{name} holds text that does not leave")
    elif isinstance(value, bytes):
        # -1: a field that is not in the table does not leave, even when it is empty.
        if len(value) > _BYTES.get(name, -1):
            raise EgressRefused(f"{name} holds {len(value)} bytes, more than may leave")
    elif field.type not in _NUMBERS:
        raise EgressRefused(f"{name} is of a kind that does not leave")
