"""Bytes to messages and back, strictly: one byte string per message, and no field this version does not know.

Signed bytes are kept and checked as bytes; parsing must therefore be the exact inverse of serializing. Protocol
buffers alone are lenient: they skip fields they do not know, let a later value replace an earlier one, and accept
overlong numbers. `parse` refuses every message that does not serialize to the very same bytes again.
"""

from functools import cache
from typing import TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from federation.errors import Malformed
from federation.limits import MESSAGE_BYTES_MAX

M = TypeVar("M", bound=Message)


def parse(message_type: type[M], data: bytes) -> M:
    """Parses the message whose canonical serialization is `data`, 16 MiB at most.

    Raises:
        Malformed: The bytes are too many (over 16 MiB), are no such message, hold a field or an enum value unknown to
            this version, or are not canonical (fields out of order, defaults spelt out, overlong numbers).
    """
    name = message_type.DESCRIPTOR.name
    if len(data) > MESSAGE_BYTES_MAX:
        raise Malformed(f"expected a {name} of at most {MESSAGE_BYTES_MAX} bytes, got {len(data)}")
    message = message_type()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise Malformed(f"expected a serialized {name}, got {len(data)} bytes that do not parse as one") from error
    # Order: protobuf keeps unknown fields and serializes them again, so the comparison alone would let them pass.
    check_known(message)
    if serialize(message) != data:
        raise Malformed(f"expected the canonical serialization of a {name}, got another form of the same message")
    return message


def serialize(message: Message) -> bytes:
    """Returns the canonical bytes of `message`: fields in the order of their numbers, defaults left out.

    Raises:
        Malformed: The message exceeds 16 MiB, which `parse` would refuse.
    """
    data = message.SerializeToString(deterministic=True)
    if len(data) > MESSAGE_BYTES_MAX:
        raise Malformed(
            f"expected a {message.DESCRIPTOR.name} of at most {MESSAGE_BYTES_MAX} bytes, got {len(data)} to send"
        )
    return data


def check_known(message: Message) -> None:
    """Refuses fields and enum values that this version does not know, at any depth.

    `parse` calls it. Requests that gRPC has parsed need it by itself.

    Raises:
        Malformed: The error names the message and the field's number.
    """
    name = message.DESCRIPTOR.name
    unknown = UnknownFieldSet(message)
    if len(unknown) > 0:
        raise Malformed(
            f"expected only known fields in {name}, got field {unknown[0].field_number}; "
            "the other side may run a newer version"
        )
    for field in _looked_into(message.DESCRIPTOR):
        if field.enum_type is not None:
            value = getattr(message, field.name)
            for number in value if field.is_repeated else (value,):
                if number not in field.enum_type.values_by_number:
                    raise Malformed(f"expected a known value of {name}.{field.name}, got {number}")
        elif field.is_repeated:
            for inner in getattr(message, field.name):
                check_known(inner)
        elif message.HasField(field.name):
            check_known(getattr(message, field.name))


@cache
def _looked_into(message_type: Descriptor) -> tuple[FieldDescriptor, ...]:
    """Returns the fields with enum values or messages in them. Reading a field of bytes would copy it."""
    return tuple(
        field
        for field in message_type.fields
        if field.type == FieldDescriptor.TYPE_MESSAGE or field.enum_type is not None
    )
