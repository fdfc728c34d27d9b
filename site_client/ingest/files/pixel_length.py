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
UNDEFINED_LENGTH = 0xFFFFFFFF


def pixel_reason(
    parsed: ParsedFile, fields: Fields, limit_bytes: int, frames: int = 1, file_limit_bytes: int | None = None
) -> Reason | None:
    """Checks the pixel data element.

    Args:
        parsed: Its file stands at the pixel data element, where pydicom's `stop_before_pixels` leaves it.
        fields: Of the header.
        limit_bytes: An image may decode to at most this.
        frames: Images in the file.
        file_limit_bytes: The file may have at most this; None: `limit_bytes`.

    Returns:
        None if all is there; else Q_DECODE_LIMIT, Q_NO_PIXELS or Q_TRUNCATED.
    """
    file, size_bytes = parsed.file, parsed.size_bytes
    needed = needed_bytes(fields)
    # Before anything is decoded: a small compressed file may claim an image of gigabytes.
    if needed > limit_bytes or size_bytes > (file_limit_bytes or limit_bytes):
        return Reason.Q_DECODE_LIMIT
    length = pixel_data_length(parsed)
    if length is None:
        return Reason.Q_TRUNCATED
    if length == 0:
        return Reason.Q_NO_PIXELS
    if length == UNDEFINED_LENGTH:
        return None if _reaches_delimiter(file, size_bytes, frames) else Reason.Q_TRUNCATED
    whole = file.tell() + length <= size_bytes
    return None if whole and length >= needed * frames else Reason.Q_TRUNCATED


def pixel_data_length(parsed: ParsedFile) -> int | None:
    """Reads the length of the pixel data element, and leaves the file at the element's value.

    Returns:
        The length, which may be UNDEFINED_LENGTH; 0 without the element; None if the file ends before.
    """
    implicit, little = parsed.dataset.original_encoding
    order = "<" if little else ">"
    start = parsed.file.read(8)
    if len(start) < 8 or struct.unpack(order + "HH", start[:4]) != _PIXEL_DATA:
        return 0
    # Explicit VR: bytes 4 to 7 hold the VR and two reserved bytes, and the length follows (PS3.5 section 7.1.2).
    length_bytes = start[4:] if implicit else parsed.file.read(4)
    return int(struct.unpack(order + "I", length_bytes)[0]) if len(length_bytes) == 4 else None


def needed_bytes(fields: Fields) -> int:
    """Computes how many bytes the decoded image takes, by its header; 0 if the header does not say."""
    sizes = (tags.ROWS, tags.COLUMNS, tags.BITS_ALLOCATED)
    rows, columns, bits = (max(0, fields.whole(tag)) for tag in sizes)
    return rows * columns * max(1, fields.whole(tags.SAMPLES)) * bits // 8


def _reaches_delimiter(file: BinaryIO, size_bytes: int, frames: int) -> bool:
    places, ended = fragments(file, size_bytes)
    # The offset table, and at least one fragment a frame. Some writers leave out the delimiter. A file that ends with
    # its only fragment is whole: had a second one been lost, the image would not decode.
    return len(places) > frames if ended is True else ended is None and len(places) == 2 and frames == 1


def fragments(file: BinaryIO, size_bytes: int) -> tuple[list[tuple[int, int]], bool | None]:
    """Walks the items of encapsulated pixel data, which is little endian always (PS3.5 annex A.4).

    Args:
        file: At the value of the pixel data element.
        size_bytes: Of the file.

    Returns:
        Place and length of each item, of which the first is the offset table; True if they end with their delimiter,
        None if the file ends exactly there instead, False if an item is cut or none.
    """
    places: list[tuple[int, int]] = []
    while len(start := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", start)
        if (group, element) == _SEQUENCE_DELIMITER:
            return places, True
        if (group, element) != _ITEM or file.tell() + length > size_bytes:
            return places, False
        places.append((file.tell(), length))
        file.seek(length, 1)
    return places, None if not start else False
