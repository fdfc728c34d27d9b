"""What the guard lets out, and that it lets nothing else out."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from federation.bandwidth import sequence
from federation.encoding import Layout
from federation.limits import CHUNK_BYTES_MAX
from federation.plan import TrainingPlan
from federation.v1 import bandwidth_pb2, blobs_pb2, enrolment_pb2, rounds_pb2, secagg_pb2
from federation.v1.blobs_pb2 import RoundRef
from federation.vocabulary import Metric, Outcome, StateReason
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from site_client.agent.egress import calls
from site_client.agent.egress.calls import CALLS, Call
from site_client.agent.egress.guard import Guard
from site_client.config import PolicySettings
from site_client.errors import EgressRefused
from site_client.records import RunId, Update

REF = RoundRef(run_id=bytes(16), round=3, attempt=1)
GOOD: list[tuple[Call[Any, Any], Message]] = [
    (calls.JOIN, enrolment_pb2.JoinRequest(site="mercy", secret=bytes(32), csr_der=bytes(400), signing_key=bytes(32))),
    (calls.CHALLENGE, enrolment_pb2.ChallengeRequest(site="mercy")),
    (calls.RECOVER, enrolment_pb2.RecoverRequest(site="mercy", nonce=bytes(32), csr_der=bytes(400))),
    (calls.RENEW, enrolment_pb2.RenewRequest(csr_der=bytes(400))),
    (calls.FETCH_ROSTER, enrolment_pb2.FetchRosterRequest()),
    (calls.LEAVE, enrolment_pb2.LeaveRequest()),
    (
        calls.POLL,
        rounds_pb2.PollRequest(
            state=rounds_pb2.SITE_TRAINING,
            reasons=[rounds_pb2.WINDOW, rounds_pb2.BATTERY],
            working_on=REF,
            version="0.1.0",
            ledger_entries=9,
        ),
    ),
    (calls.FETCH_PLAN, rounds_pb2.FetchPlanRequest(plan_digest=bytes(32))),
    (calls.READY, rounds_pb2.ReadyMessage(round=REF)),
    (calls.DECLINE, rounds_pb2.DeclineMessage(round=REF, reason=rounds_pb2.TOO_FEW_STUDIES)),
    (
        calls.SEND_KEYS,
        secagg_pb2.KeysMessage(round=REF, advertisement=secagg_pb2.Advertisement(site="mercy", mask_key=bytes(32))),
    ),
    (
        calls.SEND_SHARES,
        secagg_pb2.SharesMessage(
            round=REF, shares=[secagg_pb2.EncryptedShare(from_site="mercy", to_site="north", ciphertext=bytes(100))]
        ),
    ),
    (
        calls.SEND_COMPLAINTS,
        secagg_pb2.ComplaintMessage(
            round=REF, complaints=[secagg_pb2.Complaint(site="mercy", dealer="north", signature=bytes(64))]
        ),
    ),
    (
        calls.SEND_UPLOAD,
        secagg_pb2.UploadMessage(round=REF, claim=secagg_pb2.UploadClaim(site="mercy", digest=bytes(32))),
    ),
    (
        calls.SEND_CONFIRM,
        secagg_pb2.ConfirmMessage(round=REF, confirmation=secagg_pb2.Confirmation(site="mercy", signature=bytes(64))),
    ),
    (
        calls.SEND_REVEAL,
        secagg_pb2.RevealMessage(
            round=REF,
            shares=[secagg_pb2.RevealedShare(about_site="north", kind=secagg_pb2.RevealedShare.SEED, share=bytes(33))],
        ),
    ),
    (calls.SIGN_MODEL, rounds_pb2.ModelSignature(round=REF, signature=bytes(64))),
    (calls.RELEASE_KEY, rounds_pb2.ReleaseRequest(plan_digest=bytes(32), model_digest=bytes(32))),
    (calls.ECHO, bandwidth_pb2.EchoRequest(data=sequence(1000), wanted_bytes=1000)),
    (calls.OFFER_BLOB, blobs_pb2.BlobOffer(round=REF, digest=bytes(32), size_bytes=10)),
    (calls.GET_BLOB, blobs_pb2.BlobRequest(digest=bytes(32), offset=5)),
]


def descriptor_of(message: type[Message]) -> Descriptor:
    return descriptor_pool.Default().FindMessageTypeByName(message.DESCRIPTOR.full_name)


def reachable(descriptor: Descriptor) -> Iterator[FieldDescriptor]:
    for field in descriptor.fields:
        yield field
        if field.message_type is not None:
            yield from reachable(field.message_type)


OUTGOING = [field for call in CALLS.values() for field in reachable(descriptor_of(call.request))]


def with_value(path: list[FieldDescriptor], value: object, message: Message) -> None:
    *above, field = path
    for part in above:
        inner = getattr(message, part.name)
        message = inner.add() if part.is_repeated else inner
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def paths(descriptor: Descriptor, kind: int) -> Iterator[list[FieldDescriptor]]:
    for field in descriptor.fields:
        if field.type == kind:
            yield [field]
        elif field.message_type is not None:
            yield from ([field, *rest] for rest in paths(field.message_type, kind))


TEXTS = [(c, p) for c in CALLS.values() for p in paths(descriptor_of(c.request), FieldDescriptor.TYPE_STRING)]
BYTES = [(c, p) for c in CALLS.values() for p in paths(descriptor_of(c.request), FieldDescriptor.TYPE_BYTES)]


@pytest.mark.parametrize(("call", "message"), GOOD, ids=[call.name for call, _ in GOOD])
def test_every_message_of_the_protocol_may_leave(guard: Guard, call: Call[Any, Any], message: Message) -> None:
    rule = "call, fields, fixed sequence" if call is calls.ECHO else "call, fields"
    assert guard.check_message(call, message) == rule


def test_every_call_was_tried() -> None:
    assert {call.name for call, _ in GOOD} | {"Blobs/Put"} == set(CALLS)


def test_no_message_that_leaves_has_a_place_for_a_real_number_or_a_map() -> None:
    kinds = {field.type for field in OUTGOING}
    assert kinds <= {
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_ENUM,
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BYTES,
        FieldDescriptor.TYPE_MESSAGE,
    }
    assert not any(field.message_type and field.message_type.GetOptions().map_entry for field in OUTGOING)


@given(
    where=st.sampled_from(TEXTS),
    text=st.text(min_size=1).filter(
        lambda s: not set(s) <= set("abcdefghijklmnopqrstuvwxyz0123456789-+.ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    ),
)
def test_no_text_but_a_name_leaves_in_any_field(where: tuple[Call[Any, Any], list[FieldDescriptor]], text: str) -> None:
    call, path = where
    message = call.request()
    with_value(path, text, message)
    with pytest.raises(EgressRefused, match="holds text that does not leave"):
        Guard(PolicySettings()).check_message(call, message)


@pytest.mark.parametrize(
    "text", ["DOE^JANE", "Jane Doe", "/export/doe/1.dcm", "mercy\n", "1.2.840.113619.2.55.3.1.2.3.4"]
)
@pytest.mark.parametrize(("call", "path"), TEXTS, ids=[f"{c.name}.{p[-1].name}" for c, p in TEXTS])
def test_an_identifier_does_not_leave_as_a_name(
    guard: Guard, call: Call[Any, Any], path: list[FieldDescriptor], text: str
) -> None:
    message = call.request()
    with_value(path, text + "-and-more-of-it" if path[-1].name == "version" else text, message)
    with pytest.raises(EgressRefused):
        guard.check_message(call, message)


@pytest.mark.parametrize(("call", "path"), BYTES, ids=[f"{c.name}.{p[-1].name}" for c, p in BYTES])
def test_no_field_of_bytes_takes_more_than_its_own_measure(
    guard: Guard, call: Call[Any, Any], path: list[FieldDescriptor]
) -> None:
    message = call.request()
    with_value(path, bytes(CHUNK_BYTES_MAX + 1), message)
    with pytest.raises(EgressRefused, match="more than may leave"):
        guard.check_message(call, message)


def test_a_list_longer_than_any_cohort_does_not_leave(guard: Guard) -> None:
    message = rounds_pb2.PollRequest(state=rounds_pb2.SITE_IDLE, reasons=[rounds_pb2.WINDOW] * 501)
    with pytest.raises(EgressRefused, match="501 items"):
        guard.check_message(calls.POLL, message)


def test_a_field_this_version_does_not_know_does_not_leave(guard: Guard) -> None:
    message = rounds_pb2.ReadyMessage.FromString(b"\x9a\x06\x08DOE^JANE")
    with pytest.raises(EgressRefused, match="only known fields"):
        guard.check_message(calls.READY, message)


def test_a_message_leaves_only_with_its_own_call(guard: Guard) -> None:
    with pytest.raises(EgressRefused, match="not a call this site makes"):
        guard.check_message(calls.READY, rounds_pb2.DeclineMessage())
    with pytest.raises(EgressRefused, match="not a call this site makes"):
        guard.check_message(
            Call("Rounds/Ready", rounds_pb2.ReadyMessage, rounds_pb2.Receipt), rounds_pb2.ReadyMessage()
        )


@given(data=st.binary(min_size=1), at=st.integers(0), keep=st.booleans())
def test_an_echo_takes_the_fixed_sequence_and_not_one_other_byte(data: bytes, at: int, keep: bool) -> None:
    fixed = sequence(1000)
    at %= len(fixed)
    other = fixed[:at] + data + (fixed[at + len(data) :] if keep else b"")
    if other == sequence(len(other)):
        return
    with pytest.raises(EgressRefused, match="other bytes than the fixed sequence"):
        Guard(PolicySettings()).check_message(calls.ECHO, bandwidth_pb2.EchoRequest(data=other))


def test_an_echo_leaves_up_to_its_measure(guard: Guard) -> None:
    for size in (0, 1, 65_536, CHUNK_BYTES_MAX):
        guard.check_message(calls.ECHO, bandwidth_pb2.EchoRequest(data=sequence(size)))
    with pytest.raises(EgressRefused, match="more than may leave"):
        guard.check_message(calls.ECHO, bandwidth_pb2.EchoRequest(data=sequence(CHUNK_BYTES_MAX + 1)))


# Uploads.


@pytest.fixture
def layout(plan: TrainingPlan) -> Layout:
    return Layout.of(plan, plan.manifest.size)


@pytest.fixture
def masked(layout: Layout, random_bytes: Callable[[int], bytes]) -> bytes:
    return random_bytes(layout.bytes)


def test_any_part_of_the_sealed_upload_leaves_while_it_is_uploaded(guard: Guard, layout: Layout, masked: bytes) -> None:
    digest = hashlib.sha256(masked).digest()
    with guard.upload_of(layout, memoryview(masked), digest):
        for start, end in ((0, 10), (10, len(masked)), (0, len(masked))):
            chunk = blobs_pb2.BlobChunk(digest=digest, offset=start, data=masked[start:end])
            assert guard.check_message(calls.PUT_BLOB, chunk) == "call, fields, masked upload"
    with pytest.raises(EgressRefused, match="no part of the upload"):
        guard.check_message(calls.PUT_BLOB, chunk)


@given(at=st.integers(0, 99), flip=st.integers(1, 255), shift=st.integers(-50, 50))
def test_other_bytes_do_not_leave_under_its_digest(plan: TrainingPlan, at: int, flip: int, shift: int) -> None:
    guard, layout = Guard(PolicySettings()), Layout.of(plan, plan.manifest.size)
    masked = np.random.default_rng(1).bytes(layout.bytes)
    changed = bytearray(masked[200:300])
    changed[at] ^= flip
    digest = hashlib.sha256(masked).digest()
    with guard.upload_of(layout, memoryview(masked), digest):
        for offset, data in ((200, bytes(changed)), (200 + (shift or 1), masked[200:300]), (layout.bytes, b"x")):
            with pytest.raises(EgressRefused, match="no part of the upload"):
                guard.check_message(calls.PUT_BLOB, blobs_pb2.BlobChunk(digest=digest, offset=offset, data=data))


def test_a_chunk_beyond_the_end_or_without_bytes_or_of_no_upload_does_not_leave(
    guard: Guard, layout: Layout, masked: bytes
) -> None:
    digest = hashlib.sha256(masked).digest()
    with guard.upload_of(layout, memoryview(masked), digest):
        for chunk in (
            blobs_pb2.BlobChunk(digest=digest, offset=len(masked) - 5, data=masked[-5:] + b"x"),
            blobs_pb2.BlobChunk(digest=digest, offset=5),
            blobs_pb2.BlobChunk(digest=bytes(32), data=masked[:10]),
        ):
            with pytest.raises(EgressRefused):
                guard.check_message(calls.PUT_BLOB, chunk)
    with pytest.raises(EgressRefused):
        guard.check_message(calls.PUT_BLOB, blobs_pb2.BlobChunk())


@pytest.mark.parametrize("change", [-8, -1, 1, 8])
def test_an_upload_of_another_size_than_the_plan_gives_does_not_leave(
    guard: Guard, layout: Layout, masked: bytes, change: int
) -> None:
    wrong = masked[:change] if change < 0 else masked + bytes(change)
    with (
        pytest.raises(EgressRefused, match=f"has {layout.bytes} bytes"),
        guard.upload_of(layout, memoryview(wrong), bytes(32)),
    ):
        pass


# Updates.


def update(**changes: Any) -> Update:
    plain: dict[str, Any] = {
        "run_id": RunId(bytes(range(16))),
        "round": 1,
        "base_model_digest": bytes(32),
        "outcome": Outcome.TRAINED,
        "reason": None,
        "studies": 40,
        "loss_sum": 1.0,
        "example_count": 40,
        "clipped": False,
    }
    return Update(**(plain | changes))


@pytest.fixture
def delta(plan: TrainingPlan) -> np.ndarray:
    return np.full(plan.manifest.size, 1 / math.sqrt(plan.manifest.size), np.float32)  # of norm 1, the plan's bound


def test_an_update_within_plan_and_policy_passes(guard: Guard, plan: TrainingPlan, delta: np.ndarray) -> None:
    guard.check_update(plan, update(studies=32), delta)
    guard.check_update(plan, update(outcome=Outcome.EVALUATED), None)


def test_an_update_from_too_few_studies_is_withheld_whoever_asks_for_fewer(
    plan: TrainingPlan, delta: np.ndarray
) -> None:
    greedy = replace(plan, training=replace(plan.training, studies_min=1))
    strict = replace(plan, training=replace(plan.training, studies_min=50))
    for asked, policy, studies in (
        (greedy, PolicySettings(), 31),
        (strict, PolicySettings(), 49),
        (plan, PolicySettings(studies_min=90), 89),
    ):
        with pytest.raises(EgressRefused, match="studies or more"):
            Guard(policy).check_update(asked, update(studies=studies), delta)
        Guard(policy).check_update(asked, update(studies=studies + 1), delta)


def test_an_update_with_a_metric_that_the_policy_keeps_is_withheld(plan: TrainingPlan, delta: np.ndarray) -> None:
    with pytest.raises(EgressRefused, match="does not hold loss"):
        Guard(PolicySettings(metrics=(Metric.HISTOGRAMS,))).check_update(plan, update(), delta)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d[:-1],
        lambda d: d.astype(np.float64),
        lambda d: d.reshape(6, -1),
        lambda d: d * np.float32(1.001),
        lambda d: np.where(np.arange(d.size) == 3, np.float32("nan"), d),
        lambda d: np.where(np.arange(d.size) == 3, np.float32("inf"), d),
        lambda d: np.append(d, np.float32(0)),
    ],
    ids=["short", "float64", "shape", "norm", "nan", "inf", "long"],
)
def test_an_update_that_the_manifest_or_the_clip_norm_does_not_allow_is_withheld(
    guard: Guard, plan: TrainingPlan, delta: np.ndarray, spoil: Callable[[np.ndarray], np.ndarray]
) -> None:
    with pytest.raises(EgressRefused):
        guard.check_update(plan, update(), spoil(delta))


def test_a_declined_update_never_leaves(guard: Guard, plan: TrainingPlan, delta: np.ndarray) -> None:
    for odd in (
        update(outcome=Outcome.DECLINED, reason=StateReason.TOO_FEW_STUDIES),
        update(outcome=Outcome.EVALUATED),
        update(),
    ):
        with pytest.raises(EgressRefused, match="does not leave"):
            guard.check_update(plan, odd, None if odd.outcome == Outcome.TRAINED else delta)
