"""Frames on the pipes between hemofed and its reader processes: a JSON object, then bytes.

A frame is two lengths (u32, u32, big endian), the JSON, the bytes. JSON and no pickle: a reader process that a hostile
file has taken over must not be able to run code on the other side.
"""

import json
import os
import struct
from typing import Any

LENGTHS = struct.Struct(">II")
JSON_BYTES_MAX = 1 << 20


def write_frame(handle: int, table: dict[str, Any], data: bytes = b"") -> None:
    """Writes one frame to a pipe.

    Raises:
        OSError: Nothing reads the pipe any more.
    """
    # Paths may hold bytes that are no UTF-8; as ASCII, JSON keeps their surrogates.
    text = json.dumps(table, separators=(",", ":")).encode("ascii")
    for part in (LENGTHS.pack(len(text), len(data)) + text, data):
        view = memoryview(part)
        while len(view):
            view = view[os.write(handle, view) :]


def read_lengths(head: bytes) -> tuple[int, int]:
    """Reads the lengths of JSON and bytes."""
    text_bytes, data_bytes = LENGTHS.unpack(head)
    return text_bytes, data_bytes
