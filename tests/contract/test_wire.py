"""federation.wire: one byte string per message, nothing unknown, garbage refused with one kind of error."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federation.errors import Malformed
from federation.limits import MESSAGE_BYTES_MAX
from federation.v1 import blobs_pb2, enrolment_pb2, plan_pb2, rounds_pb2, secagg_pb2
from federation.wire import check_known, parse, serialize
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
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


def _class_of(name: str) -> type[Message]:
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))


def filled(message_type: type[Message]) -> Message:
    """With something in every field, lists with two items; of a oneof, its last field."""
    message = message_type()
    for field in message_type.DESCRIPTOR.fields:
        number = field.number
        if field.message_type is not None:
            inner = filled(_class_of(field.message_type.full_name))
            values: list[Any] = [inner, inner]
        elif field.enum_type is not None:
            values = [field.enum_type.values[-1].number, field.enum_type.values[-1].number]
        else:
            values = [_VALUES[field.type](number), _VALUES[field.type](number + 1)]
        if field.is_repeated:
            getattr(message, field.name).extend(values)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(values[0])
        else:
            setattr(message, field.name, values[0])
    return message


_VALUES: dict[int, Callable[[int], Any]] = {
    FieldDescriptor.TYPE_UINT32: lambda number: number * 300,
    FieldDescriptor.TYPE_UINT64: lambda number: number * 2**40,
    FieldDescriptor.TYPE_DOUBLE: lambda number: number / 3,
    FieldDescriptor.TYPE_BOOL: lambda _number: True,
    FieldDescriptor.TYPE_STRING: lambda number: f"text {number}",
    FieldDescriptor.TYPE_BYTES: lambda number: bytes([number]) * 5,
}
FILLABLE = [each for each in MESSAGES if each.DESCRIPTOR.fields]


def test_a_message_comes_back_as_it_was() -> None:
    assert parse(rounds_pb2.PollRequest, serialize(EXAMPLE)) == EXAMPLE


@pytest.mark.parametrize("message_type", MESSAGES, ids=lambda one: one.DESCRIPTOR.name)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=80))
def test_random_bytes_are_refused_or_are_the_one_form_of_a_message(message_type: type[Message], data: bytes) -> None:
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


@pytest.mark.parametrize("message_type", FILLABLE, ids=lambda one: one.DESCRIPTOR.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_never_passes_for_the_same_message(message_type: type[Message], data: st.DataObject) -> None:
    whole = serialize(filled(message_type))
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        message = parse(message_type, bytes(changed))
    except Malformed:
        return
    assert message != filled(message_type)
    assert serialize(message) == bytes(changed)


@pytest.mark.parametrize("message_type", FILLABLE, ids=lambda one: one.DESCRIPTOR.name)
def test_a_truncated_message_never_passes_for_the_same_message(message_type: type[Message]) -> None:
    whole = serialize(filled(message_type))
    assert parse(message_type, whole) == filled(message_type)
    for length in range(len(whole)):
        try:
            message = parse(message_type, whole[:length])
        except Malformed:
            continue
        assert message != filled(message_type)


@pytest.mark.parametrize("message_type", MESSAGES, ids=lambda one: one.DESCRIPTOR.name)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_message_spliced_into_another_is_refused_or_says_openly_something_else(
    message_type: type[Message], data: st.DataObject
) -> None:
    whole, other = serialize(filled(message_type)), serialize(filled(data.draw(st.sampled_from(MESSAGES))))
    at, end = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))
    spliced = whole[:at] + other + whole[end:]
    try:
        message = parse(message_type, spliced)
    except Malformed:
        return
    assert serialize(message) == spliced


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
