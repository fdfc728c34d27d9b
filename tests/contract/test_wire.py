"""federation.wire: one byte string per message, nothing unknown, garbage refused with one kind of error."""

import subprocess
import sys
from pathlib import Path

import pytest
from federation.errors import Malformed
from federation.v1 import blobs_pb2, enrolment_pb2, plan_pb2, rounds_pb2, secagg_pb2
from federation.wire import MESSAGE_BYTES_MAX, check_known, parse, serialize
from google.protobuf import message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = [
    message_factory.GetMessageClass(descriptor)
    for module in (blobs_pb2, enrolment_pb2, plan_pb2, rounds_pb2, secagg_pb2)
    for descriptor in module.DESCRIPTOR.message_types_by_name.values()
]
EXAMPLE = rounds_pb2.PollRequest(
    state=rounds_pb2.SITE_PAUSED,
    reasons=[rounds_pb2.WINDOW, rounds_pb2.USER_ACTIVE],
    working_on=blobs_pb2.RoundRef(run_id=bytes(16), round=3, attempt=1),
    progress_percent=40,
    roster_epoch=300,
    model_digest=bytes(32),
    version="0.1.0",
)


def test_a_message_comes_back_as_it_was() -> None:
    assert parse(rounds_pb2.PollRequest, serialize(EXAMPLE)) == EXAMPLE


@pytest.mark.parametrize("message_type", MESSAGES, ids=lambda one: one.DESCRIPTOR.name)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=80))
def test_random_bytes_are_refused_or_are_the_one_form_of_a_message(message_type: type, data: bytes) -> None:
    try:
        message = parse(message_type, data)
    except Malformed:
        return
    assert serialize(message) == data


@pytest.mark.parametrize("message_type", MESSAGES, ids=lambda one: one.DESCRIPTOR.name)
def test_a_field_of_a_newer_version_is_refused(message_type: type) -> None:
    field_1999 = b"\xf8\x7c\x01"
    with pytest.raises(Malformed, match="1999"):
        parse(message_type, field_1999)


@given(position=st.integers(0, len(serialize(EXAMPLE)) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_never_passes_for_the_same_message(position: int, bit: int) -> None:
    data = bytearray(serialize(EXAMPLE))
    data[position] ^= 1 << bit
    try:
        message = parse(rounds_pb2.PollRequest, bytes(data))
    except Malformed:
        return
    assert message != EXAMPLE


@given(length=st.integers(0, len(serialize(EXAMPLE)) - 1))
def test_a_truncated_message_never_passes_for_the_same_message(length: int) -> None:
    try:
        message = parse(rounds_pb2.PollRequest, serialize(EXAMPLE)[:length])
    except Malformed:
        return
    assert message != EXAMPLE


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x10\x03\x0a\x01a", id="fields out of order"),
        pytest.param(b"\x0a\x01a\x10\x83\x00", id="an overlong number"),
        pytest.param(b"\x0a\x01a\x10\x00", id="a default spelt out"),
        pytest.param(b"\x0a\x01b\x0a\x01a", id="a field twice"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x0fa", id="a length of 4 GiB"),
        pytest.param(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7fa", id="a length of 2^63"),
        pytest.param(b"\x0b\x0b\x0c\x0c", id="groups"),
        pytest.param(b"\x00\x00", id="field number 0"),
    ],
)
def test_other_forms_of_a_message_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse(blobs_pb2.RoundRef, data)


def test_unknown_fields_are_found_in_messages_grpc_has_parsed_at_any_depth() -> None:
    inner = serialize(blobs_pb2.RoundRef(run_id=b"a")) + b"\xf8\x7c\x01"
    request = rounds_pb2.PollRequest.FromString(b"\x1a" + bytes([len(inner)]) + inner)
    with pytest.raises(Malformed, match="RoundRef, got field 1999"):
        check_known(request)


def test_unknown_fields_are_found_in_every_item_of_a_list() -> None:
    reply = rounds_pb2.SharesStep()
    reply.advertisements.add(site="a")
    reply.advertisements.append(secagg_pb2.Advertisement.FromString(b"\xf8\x7c\x01"))
    with pytest.raises(Malformed, match="Advertisement, got field 1999"):
        check_known(reply)


@pytest.mark.parametrize("data", [b"\x08\x63", b"\x12\x02\x01\x63"], ids=["single", "repeated"])
def test_an_unknown_enum_value_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed, match="got 99"):
        parse(rounds_pb2.PollRequest, data)


def test_a_message_over_the_limit_is_neither_read_nor_written() -> None:
    message = blobs_pb2.BlobChunk(data=bytes(MESSAGE_BYTES_MAX))
    with pytest.raises(Malformed, match="at most"):
        serialize(message)
    with pytest.raises(Malformed, match="at most"):
        parse(blobs_pb2.BlobChunk, message.SerializeToString())


def test_the_committed_stubs_are_what_protoc_makes_of_the_proto_files() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "proto" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "proto" / "__init__.py").exists(), "proto/ is a source root; `import proto` is Google's"
