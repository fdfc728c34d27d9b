"""One file as a data set, with a bound on the bytes that a deflated one unfolds to (DICOM PS3.5 annex A.5)."""

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pydicom
from pydicom.dataset import FileDataset
from pydicom.tag import BaseTag

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_GROUP, _TRANSFER_SYNTAX = 0x0002, 0x0010
# VRs whose length takes four bytes, after two reserved ones (PS3.5 section 7.1.2).
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_UID_BYTES_MAX = 128


class LimitExceeded(Exception):
    """The file would unfold to more bytes than allowed."""


@dataclass(frozen=True)
class ParsedFile:
    """A data set and the bytes it came from.

    `file`: stands where pydicom stopped. `size_bytes`: of `file`; for a deflated file, of the inflated bytes.
    """

    file: BinaryIO
    dataset: FileDataset
    size_bytes: int


def parse(
    file: BinaryIO, size_bytes: int, limit_bytes: int, wanted: Sequence[BaseTag], stop_before_pixels: bool
) -> ParsedFile:
    """Parses a file, whether it has a preamble or not.

    A deflated data set is inflated here, because pydicom would inflate it without a bound.

    Args:
        file: At its first byte.
        size_bytes: Of the file.
        limit_bytes: A deflated data set may hold at most this.
        wanted: The elements that are read.
        stop_before_pixels: Leaves the file at the pixel data element.

    Raises:
        LimitExceeded: The data set is deflated and larger.
        Exception: Nearly any, from pydicom, for a broken file.
    """
    start = _deflated_from(file)
    if start is not None:
        file.seek(start)
        inflated = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflated.decompress(file.read(limit_bytes), limit_bytes)
        if not inflated.eof and len(data) >= limit_bytes:
            raise LimitExceeded
        # A bare data set in explicit VR little endian, which pydicom recognizes by its first element.
        file, size_bytes = io.BytesIO(data), len(data)
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, specific_tags=list(wanted), force=True)
    return ParsedFile(file, dataset, size_bytes)


def _deflated_from(file: BinaryIO) -> int | None:
    """Finds where the deflated data set begins; None for any other transfer syntax. Group 0002 is never deflated."""
    preamble = file.read(132)
    if preamble[128:] != b"DICM":
        file.seek(0)
    is_deflated = False
    while len(element := file.read(8)) == 8:
        group, number, vr, length = struct.unpack("<HH2sH", element)
        if group != _META_GROUP:
            return file.tell() - 8 if is_deflated else None
        if vr in _LONG:
            long = file.read(4)
            length = int.from_bytes(long, "little")
        if number == _TRANSFER_SYNTAX:
            is_deflated = length <= _UID_BYTES_MAX and file.read(length).rstrip(b"\0 ") == _DEFLATED
        else:
            file.seek(length, 1)
    return None
