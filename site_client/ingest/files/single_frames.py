"""One frame of an enhanced CT as an image of its own: attributes, compressed or raw bytes, digest.

A file of several hundred frames is never in memory as a whole: its header is, and one frame.
"""

import hashlib
import io
import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag

from site_client.errors import SeriesUnreadable
from site_client.ingest.files import tags
from site_client.ingest.files.multiframe import FRAMES_MAX, PER_FRAME, SHARED, WANTED, frames_of
from site_client.ingest.files.parse import LimitExceeded, ParsedFile, parse
from site_client.ingest.files.pixel_length import UNDEFINED_LENGTH, fragments, needed_bytes, pixel_data_length
from site_client.ingest.files.slices import unreadable
from site_client.ingest.files.tags import Fields
from site_client.ingest.reasons import Reason

_HEADER_BYTES_MAX: Final = 256 << 20
_TAG_BYTES: Final = 4
_OFFSETS: Final = Tag(0x7FE0, 0x0001)  # Extended Offset Table
_OF_ALL: Final = frozenset((SHARED, PER_FRAME, _OFFSETS, Tag(0x7FE0, 0x0002)))  # the last: the lengths of all frames


@dataclass(frozen=True)
class SingleFrame:
    """A frame as a data set with one image, and its fields. `digest`: of the header, the number, the frame's bytes."""

    dataset: FileDataset
    fields: Fields
    digest: bytes


@dataclass(frozen=True)
class _Header:
    """A file's bytes up to its pixel data, parsed. `size_bytes`: of these bytes. `digest`: with the next tag."""

    digest: bytes
    size_bytes: int
    dataset: FileDataset
    frames: list[Fields]


class SingleFrames:
    """Reads frames, and keeps the header that was parsed last: it takes longer than a frame."""

    def __init__(self) -> None:
        self._header: _Header | None = None

    def fields(self, file: BinaryIO, number: int, limit_bytes: int) -> Fields:
        """Reads the fields of one frame.

        Raises:
            Exception: Nearly any, from pydicom, for a broken file.
        """
        return self._parsed(file, limit_bytes)[1].frames[number]

    def frame(self, file: BinaryIO, number: int, limit_bytes: int) -> SingleFrame:
        """Reads one frame.

        Args:
            file: The multi-frame file.
            number: Of the frame, from 0.
            limit_bytes: Of inflated bytes, and of the frame.

        Raises:
            OSError: The file cannot be read.
            SeriesUnreadable: Q_DECODE, or Q_DECODE_LIMIT.
        """
        try:
            parsed, header = self._parsed(file, limit_bytes)
            fields = header.frames[number]
            data = _frame_bytes(parsed, header, number, limit_bytes)
        except (SeriesUnreadable, OSError):
            raise
        except (MemoryError, RecursionError, LimitExceeded):
            raise unreadable(Reason.Q_DECODE_LIMIT) from None
        except Exception:  # pydicom lets nearly any exception through for a broken file
            raise unreadable(Reason.Q_DECODE) from None
        digest = hashlib.sha256(header.digest + struct.pack(">I", number) + data.raw).digest()
        return SingleFrame(_alone(header.dataset, data), fields, digest)

    def _parsed(self, file: BinaryIO, limit_bytes: int) -> tuple[ParsedFile, _Header]:
        """Parses the header, unless it is byte for byte the one that was parsed last."""
        known = self._header
        if known is not None:
            # With the next tag: another file may begin likewise and have one more element before its pixels.
            start = file.read(known.size_bytes + _TAG_BYTES)
            if hashlib.sha256(start).digest() == known.digest:
                file.seek(0, io.SEEK_END)
                size_bytes = file.tell()
                file.seek(known.size_bytes)
                return ParsedFile(file, known.dataset, size_bytes), known
        wanted = (*tags.READ, *tags.PIXELS[:-1], *WANTED)
        file.seek(0, io.SEEK_END)
        size_bytes = file.tell()
        file.seek(0)
        parsed = parse(file, size_bytes, limit_bytes, wanted, stop_before_pixels=True)
        place = parsed.file.tell()
        if place > _HEADER_BYTES_MAX:
            raise LimitExceeded
        # Parsed again from the bytes that are hashed: the file may be written to meanwhile.
        parsed.file.seek(0)
        start = parsed.file.read(place + _TAG_BYTES)
        parsed.file.seek(place)
        dataset = parse(io.BytesIO(start[:place]), place, limit_bytes, wanted, stop_before_pixels=True).dataset
        frames = frames_of(dataset)
        if frames is None or len(frames) > FRAMES_MAX:
            raise ValueError("a header without its frames")
        header = _Header(hashlib.sha256(start).digest(), place, dataset, frames)
        # An inflated header is no beginning of its file.
        self._header = header if parsed.file is file else None
        return ParsedFile(parsed.file, dataset, parsed.size_bytes), header


FRAMES: Final = SingleFrames()  # of this process, which has one thread


@dataclass(frozen=True)
class _FrameBytes:
    """The bytes of a frame as they stand in the file. `encapsulated`: they are a compressed stream."""

    raw: bytes
    encapsulated: bool


def _frame_bytes(parsed: ParsedFile, header: _Header, number: int, limit_bytes: int) -> _FrameBytes:
    file, needed = parsed.file, needed_bytes(header.frames[number])
    if needed > limit_bytes:
        raise LimitExceeded
    length = pixel_data_length(parsed)
    if length is None:
        raise ValueError("no length")
    if length != UNDEFINED_LENGTH:
        if needed * (number + 1) > length:
            raise ValueError("the frame is cut")
        file.seek(needed * number, io.SEEK_CUR)
        return _FrameBytes(file.read(needed), False)
    (table, *places), _ = fragments(file, parsed.size_bytes)
    first, behind = _of_frame(file, header, table, places, number)
    if sum(size for _, size in places[first:behind]) > limit_bytes:
        raise LimitExceeded
    stream = b""
    for place, size in places[first:behind]:
        file.seek(place)
        stream += file.read(size)
    return _FrameBytes(stream, True)


def _of_frame(
    file: BinaryIO, header: _Header, table: tuple[int, int], places: list[tuple[int, int]], number: int
) -> tuple[int, int]:
    """Finds the first fragment of a frame, and the one behind its last (PS3.5 annex A.4)."""
    if len(places) == len(header.frames):
        return number, number + 1
    file.seek(table[0])
    kind, data = "<I", file.read(table[1])
    if not data and _OFFSETS in header.dataset:
        kind, data = "<Q", header.dataset[_OFFSETS].value
    offsets = [offset for (offset,) in struct.iter_unpack(kind, data)]
    if len(offsets) != len(header.frames):
        raise ValueError("frames without a place")
    # Offsets count from the first fragment's item, whose head has eight bytes.
    begins = [place - places[0][0] for place, _ in places]
    behind = begins.index(offsets[number + 1]) if number + 1 < len(offsets) else len(places)
    return begins.index(offsets[number]), behind


def _alone(dataset: FileDataset, data: _FrameBytes) -> FileDataset:
    """Gives a data set with the frame alone: a new one, because pydicom keeps what it decoded of a data set."""
    single = FileDataset(
        "", {}, preamble=None, file_meta=dataset.file_meta, is_implicit_VR=dataset.original_encoding[0]
    )
    single.set_original_encoding(*dataset.original_encoding)
    for tag in dataset.keys() - _OF_ALL:
        single[tag] = dataset.get_item(tag)
    single.NumberOfFrames = 1
    single.PixelData = encapsulate([data.raw]) if data.encapsulated else data.raw
    single["PixelData"].VR = "OB" if data.encapsulated else "OW"
    return single
