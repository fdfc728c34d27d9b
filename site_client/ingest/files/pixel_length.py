"""The check that all pixel data is there, from lengths alone (DICOM PS3.5 section 8, annex A.4).

A parser accepts a file that was cut in half: its last element just is short. So the length that the element states is
compared with rows, columns and bits, and with the file's end. Encapsulated data has to reach its delimiter.
"""

import struct
from typing import BinaryIO

from site_client.ingest.files import tags
from site_client.ingest.files.parse import ParsedFile
from site_client.ingest.files.tags import Fields
from site_client.ingest.reasons import Reason

_PIXEL_DATA = (0x7FE0, 0x0010)
_ITEM, _SEQUENCE_DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)  # PS3.5 section 7.5
_UNDEFINED_LENGTH = 0xFFFFFFFF


def pixel_reason(parsed: ParsedFile, fields: Fields, limit_bytes: int) -> Reason | None:
    """Checks the pixel data element.

    Args:
        parsed: its file stands at the pixel data element, where pydicom's `stop_before_pixels` leaves it.
        fields: of the header.
        limit_bytes: an image may decode to at most this.

    Returns:
        None if all is there; else Q_DECODE_LIMIT, Q_NO_PIXELS or Q_TRUNCATED.
    """
    file, size_bytes = parsed.file, parsed.size_bytes
    needed = needed_bytes(fields)
    # Before anything is decoded: a small compressed file may claim an image of gigabytes.
    if max(needed, size_bytes) > limit_bytes:
        return Reason.Q_DECODE_LIMIT
    implicit, little = parsed.dataset.original_encoding
    order = "<" if little else ">"
    start = file.read(8)
    if len(start) < 8 or struct.unpack(order + "HH", start[:4]) != _PIXEL_DATA:
        return Reason.Q_NO_PIXELS
    # Explicit VR: bytes 4 to 7 hold the VR and two reserved bytes, and the length follows (PS3.5 section 7.1.2).
    length_bytes = start[4:] if implicit else file.read(4)
    if len(length_bytes) < 4:
        return Reason.Q_TRUNCATED
    length = int(struct.unpack(order + "I", length_bytes)[0])
    if length == _UNDEFINED_LENGTH:
        return None if _reaches_delimiter(file, size_bytes) else Reason.Q_TRUNCATED
    if length == 0:
        return Reason.Q_NO_PIXELS
    whole = file.tell() + length <= size_bytes
    return None if whole and length >= needed else Reason.Q_TRUNCATED


def needed_bytes(fields: Fields) -> int:
    """Computes how many bytes the decoded image takes, by its header; 0 if the header does not say."""
    sizes = (tags.ROWS, tags.COLUMNS, tags.BITS_ALLOCATED)
    rows, columns, bits = (max(0, fields.whole(tag)) for tag in sizes)
    return rows * columns * max(1, fields.whole(tags.SAMPLES)) * bits // 8


def _reaches_delimiter(file: BinaryIO, size_bytes: int) -> bool:
    """Walks the fragments of encapsulated pixel data, which is little endian always (PS3.5 annex A.4)."""
    items = 0
    while len(start := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", start)
        if (group, element) == _SEQUENCE_DELIMITER:
            return items >= 2  # the offset table and at least one fragment
        if (group, element) != _ITEM or file.tell() + length > size_bytes:
            return False
        file.seek(length, 1)
        items += 1
    # Some writers leave out the delimiter. A file that ends with its only fragment is whole: had a second one been
    # lost, the image would not decode.
    return not start and items == 2
