"""The gRPC services, called as gRPC calls them: callers let in, codes of refusals, and when to poll again."""

import itertools
import os
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from federation.v1 import blobs_pb2, enrolment_pb2, rounds_pb2, secagg_pb2
from federation.v1.blobs_pb2 import RoundRef
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.rounds.polling import AT_ONCE_MS
from aggregator.states import SeatState
from aggregator.store import round_rows, run_rows
from site_client.agent.egress.calls import CALLS
from site_client.errors import LinkError
from tests.federation.wire import Aborted, Context, poll_of
from tests.federation.world import World

GUARDED = [
    *(name for name in sorted(CALLS) if name.startswith(("Rounds/", "Blobs/", "Line/"))),
    *("Enrolment/FetchRoster", "Enrolment/Leave"),
]
TYPED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
}

WRONG_REPORTS: list[dict[str, Any]] = [
    {"state": 0},
    {"progress_percent": 101},
    {"reasons": [2, 1]},
    {"reasons": [1, 1]},
    {"reasons": [0]},
    {"model_digest": b"x"},
    {"ledger_head": b"x"},
    {"version": "a patient's name"},
    {"version": "1" * 33},
]


def ask(world: World, name: str, message: Message, certificate_pem: bytes) -> list[Message]:
    """One call of the servicer itself. Raises: Aborted."""
    service, method = name.split("/")
    method_of = getattr(world.wire.servicers[service], method)
    if name == "Blobs/Put":
        return [method_of(iter([message]), Context(certificate_pem))]
    reply = method_of(message, Context(certificate_pem))
    return list(reply) if name == "Blobs/Get" else [reply]


def test_every_call_asks_for_the_certificate_of_an_approved_site(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    stranger = (world.aggregator.folder / "ca" / "custodian.pem").read_bytes()  # ours, but of no site
    for name, shown in itertools.product(GUARDED, (b"", b"no certificate", stranger)):
        with pytest.raises(Aborted) as refused:
            ask(world, name, CALLS[name].request(), shown)
        assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED


def test_a_revoked_site_is_refused_from_its_next_call_on(make_world: Callable[..., World]) -> None:
    world = make_world(sites=4)
    world.aggregator.enrolment.revoke("site-d")
    for name in GUARDED:
        with pytest.raises(Aborted) as refused:
            ask(world, name, CALLS[name].request(), world.sites["site-d"].certificate_pem)
        assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


def test_a_site_revoked_in_the_middle_of_masking_is_out_and_the_others_publish(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=4, phase="upload")
    world.aggregator.enrolment.revoke("site-d")
    for _ in range(6):
        world.everybody()
        world.clock.advance(31)
    assert world.rounds()[0].members == 3


def test_a_site_that_leaves_in_the_middle_of_masking_is_out_and_the_others_publish(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=4, phase="upload")
    shown = world.sites["site-d"].certificate_pem
    for _ in range(2):  # the first answer may get lost
        assert ask(world, "Enrolment/Leave", enrolment_pb2.LeaveRequest(), shown) == [enrolment_pb2.LeaveReply()]
    for name in GUARDED:
        if name != "Enrolment/Leave":
            with pytest.raises(Aborted, match="has left") as refused:
                ask(world, name, CALLS[name].request(), shown)
            assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
    for _ in range(6):
        world.everybody()
        world.clock.advance(31)
    first, after = world.rounds()[0], world.rounds()[-1]
    assert first.members == 3
    with world.aggregator.app.store.read() as session:
        states = [round_rows.seat_states(session, row.id) for row in (first, after)]
    assert (states[0]["site-d"], "site-d" in states[1]) == (SeatState.MISSED, False)


def test_a_farewell_with_a_field_of_a_newer_version_is_refused_twice_too(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    shown = world.sites["site-a"].certificate_pem
    ask(world, "Enrolment/Leave", enrolment_pb2.LeaveRequest(), shown)
    with pytest.raises(Aborted, match="1999"):
        ask(world, "Enrolment/Leave", enrolment_pb2.LeaveRequest.FromString(b"\xf8\x7c\x01"), shown)


def test_a_site_of_another_secure_aggregation_is_told_what_to_install_and_the_others_go_on(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=4)
    older = rounds_pb2.PollRequest(state=rounds_pb2.SITE_IDLE, version="0.1.0")  # it has no field for its version
    with pytest.raises(
        Aborted, match=r"version 2 of secure aggregation, got version 1; install hemofed 0\."
    ) as refused:
        ask(world, "Rounds/Poll", older, world.sites["site-d"].certificate_pem)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    world.silent.add("site-d")
    for _ in range(3):
        world.everybody()
    world.clock.advance(world.plan.deadlines.training_s)
    for _ in range(8):
        world.everybody()
    assert world.rounds()[0].members == 3


def test_an_expired_certificate_is_refused(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    world.clock.advance(31 * 86_400)
    with pytest.raises(Aborted) as refused:
        ask(world, "Rounds/Poll", poll_of(), world.sites["site-a"].certificate_pem)
    assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("field", ["ledger_entries", "roster_epoch"])
def test_numbers_that_the_database_cannot_hold_are_refused_with_one_sentence(
    make_world: Callable[..., World], field: str
) -> None:
    world = make_world(sites=3)
    shown = world.sites["site-a"].certificate_pem
    ask(world, "Rounds/Poll", poll_of(**{field: 2**63 - 1}), shown)
    for number in (2**63, 2**64 - 1):
        with pytest.raises(Aborted, match=f"PollRequest.{field} is not as rounds.proto says") as refused:
            ask(world, "Rounds/Poll", poll_of(**{field: number}), shown)
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_report_outside_what_the_proto_says_is_refused(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    shown = world.sites["site-a"].certificate_pem
    for report in WRONG_REPORTS:
        with pytest.raises(Aborted) as refused:
            ask(world, "Rounds/Poll", poll_of(**report), shown)
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_field_of_a_newer_version_is_refused(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    for name in GUARDED:
        newer = CALLS[name].request.FromString(b"\xf8\x7c\x01")
        with pytest.raises(Aborted, match="1999") as refused:
            ask(world, name, newer, world.sites["site-a"].certificate_pem)
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_reveal_without_a_kind_and_an_offset_beyond_the_blob_are_refused_and_not_failed(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=3, phase="reveal")
    shown, row = world.sites["site-a"].certificate_pem, world.round
    ref = RoundRef(run_id=row.run_id, round=row.number, attempt=row.attempt)
    shares = [secagg_pb2.RevealedShare(about_site=name, share=bytes(33)) for name in world.sites]
    with pytest.raises(Aborted, match="SEED or MASK_KEY"):
        ask(world, "Rounds/SendReveal", secagg_pb2.RevealMessage(round=ref, shares=shares), shown)
    with world.aggregator.app.store.read() as session:
        model = run_rows.newest_model(session, row.run_id)
    for offset in (model.size_bytes + 1, 2**63, 2**64 - 1):
        with pytest.raises(Aborted, match="expected an offset within") as refused:
            ask(world, "Blobs/Get", blobs_pb2.BlobRequest(digest=model.blob, offset=offset), shown)
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_model_that_is_fetched_twice_is_read_from_the_disk_again_and_damage_is_named(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=3)
    shown = world.sites["site-a"].certificate_pem
    with world.aggregator.app.store.read() as session:
        model = run_rows.newest_model(session, world.run_id)
    request = blobs_pb2.BlobRequest(digest=model.blob)
    first = ask(world, "Blobs/Get", request, shown)
    assert ask(world, "Blobs/Get", request, shown) == first
    folder = world.folder / "aggregator" / "blobs"
    (stored,) = (path for path in folder.rglob(f"*{model.blob.hex()}*") if path.is_file())
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(Aborted, match="has changed on the aggregator's disk since it was stored") as refused:
        ask(world, "Blobs/Get", request, shown)
    assert refused.value.code is grpc.StatusCode.NOT_FOUND


def test_a_chunk_over_a_mebibyte_or_of_nothing_is_refused(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3, phase="upload")
    shown, row = world.sites["site-a"].certificate_pem, world.round
    ref, digest = RoundRef(run_id=row.run_id, round=row.number, attempt=row.attempt), os.urandom(32)
    world.step("site-b")
    size = next(one.message.size_bytes for one in world.wire.heard if isinstance(one.message, blobs_pb2.BlobOffer))
    ask(world, "Blobs/Offer", blobs_pb2.BlobOffer(round=ref, digest=digest, size_bytes=size), shown)
    for data in (b"", bytes(2**20 + 1), bytes(size + 1)):
        with pytest.raises(Aborted) as refused:
            ask(world, "Blobs/Put", blobs_pb2.BlobChunk(digest=digest, data=data), shown)
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    for wrong in (size - 8, size + 8, 2**64 - 1):
        with pytest.raises(Aborted, match="by the plan"):
            ask(world, "Blobs/Offer", blobs_pb2.BlobOffer(round=ref, digest=digest, size_bytes=wrong), shown)


def test_another_sites_upload_can_be_neither_written_nor_read(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3, phase="upload")
    world.step("site-b")
    chunk = next(one.message for one in world.wire.heard if isinstance(one.message, blobs_pb2.BlobChunk))
    offer = next(one.message for one in world.wire.heard if isinstance(one.message, blobs_pb2.BlobOffer))
    shown = world.sites["site-a"].certificate_pem
    for name, message in (
        ("Blobs/Put", chunk),
        ("Blobs/Offer", offer),
        ("Blobs/Get", blobs_pb2.BlobRequest(digest=chunk.digest)),
    ):
        with pytest.raises(Aborted):
            ask(world, name, message, shown)


@pytest.mark.parametrize("phase", ["keys", "reveal"])
def test_random_requests_are_answered_or_refused_by_type_and_change_nothing(
    make_world: Callable[..., World], phase: str
) -> None:
    """Every call, with the round's own reference or without: never an error that nobody foresaw."""
    world = make_world(sites=3, phase=phase)
    row = world.round
    ref = RoundRef(run_id=row.run_id, round=row.number, attempt=row.attempt)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        name=st.sampled_from([name for name in GUARDED if name != "Enrolment/Leave"]),
        data=st.binary(max_size=60),
        refers=st.booleans(),
    )
    def fuzz(name: str, data: bytes, refers: bool) -> None:
        try:
            message: Any = CALLS[name].request.FromString(data)
        except DecodeError:
            message = CALLS[name].request()
        if refers and "round" in message.DESCRIPTOR.fields_by_name:
            message.round.CopyFrom(ref)
        try:
            world.wire.call("site-a", world.sites["site-a"].certificate_pem, CALLS[name], [message.SerializeToString()])
        except LinkError:
            assert world.wire.refusals[-1][2] in TYPED, world.wire.refusals[-1]

    fuzz()
    after = world.round
    assert (after.state, after.attempt) == (row.state, row.attempt)


def test_a_site_is_told_to_come_back_soon_while_masking_and_late_while_idle(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    pacing = world.aggregator.app.settings.pacing
    shown = world.sites["site-a"].certificate_pem
    poll = poll_of()

    def retry_after_ms() -> int:
        (reply,) = ask(world, "Rounds/Poll", poll, shown)
        assert isinstance(reply, rounds_pb2.PollReply)
        return reply.retry_after_ms

    first = retry_after_ms()
    assert first <= 1250 * pacing.masking_s
    world.clock.advance(3000)
    assert 750 * pacing.training_s <= retry_after_ms() <= 1250 * pacing.training_s
    masking = make_world(sites=3, phase="keys")
    (reply,) = ask(masking, "Rounds/Poll", poll, masking.sites["site-a"].certificate_pem)
    assert isinstance(reply, rounds_pb2.PollReply)
    assert reply.retry_after_ms == AT_ONCE_MS
    world.pause()
    world.clock.advance(4000)
    world.drive()
    assert 750 * pacing.paused_s <= retry_after_ms() <= 1250 * pacing.paused_s


def test_a_poll_of_a_round_nobody_knows_is_told_that_it_is_over(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    foreign = RoundRef(run_id=os.urandom(16), round=4_000_000_000, attempt=1)
    poll = poll_of(working_on=foreign)
    (reply,) = ask(world, "Rounds/Poll", poll, world.sites["site-a"].certificate_pem)
    assert isinstance(reply, rounds_pb2.PollReply)
    assert reply.close.outcome == rounds_pb2.CloseStep.RUN_OVER
