"""Enhanced CT: many frames in one file, whose attributes stand in sequences (DICOM PS3.3 C.7.6.16, A.38, A.70).

Attributes of all frames stand in the shared functional groups, others in a group for each frame. Here every frame gets
the attributes that it would have as an image of its own, so that nothing above knows of frames.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from site_client.ingest.files import tags
from site_client.ingest.files.tags import Fields

# SOP classes (PS3.4 annex B): Enhanced CT Image Storage, Legacy Converted Enhanced CT Image Storage.
ENHANCED_CT: Final = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CONVERTED_CT: Final = "1.2.840.10008.5.1.4.1.1.2.2"
FRAMES_MAX: Final = 4096
MULTIFRAME_BYTES_MAX: Final = 1 << 30  # of a file; it is never in memory as a whole

SHARED: Final = Tag(0x5200, 0x9229)  # Shared Functional Groups Sequence
PER_FRAME: Final = Tag(0x5200, 0x9230)  # Per-Frame Functional Groups Sequence
ACQUIRED: Final = Tag(0x0008, 0x002A)  # Acquisition DateTime
FRAME_OFFSET: Final = Tag(0x0020, 0x9228)  # Concatenation Frame Offset Number
PARTS: Final = Tag(0x0020, 0x9163)  # In-concatenation Total Number
# What a multi-frame file has to be read for, beside the attributes of a single image.
WANTED: Final = (SHARED, PER_FRAME, ACQUIRED, FRAME_OFFSET, PARTS)

_FRAME_TYPES: Final = Tag(0x0018, 0x9329), Tag(0x0008, 0x9007)  # CT Image Frame Type Sequence, Frame Type
_CONTENT: Final = Tag(0x0020, 0x9111)  # Frame Content Sequence
_FRAME_ACQUISITION: Final = Tag(0x0020, 0x9156)  # Frame Acquisition Number, of VR US
_FRAME_ACQUIRED: Final = Tag(0x0018, 0x9074)  # Frame Acquisition DateTime
_ANATOMY: Final = Tag(0x0020, 0x9071), Tag(0x0008, 0x2218)  # Frame Anatomy Sequence, Anatomic Region Sequence
_MEANING: Final = Tag(0x0008, 0x0104)  # Code Meaning
_USAGE: Final = Tag(0x0018, 0x9341)  # Contrast/Bolus Usage Sequence
_GIVEN: Final = Tag(0x0018, 0x9342), Tag(0x0018, 0x9343)  # Contrast/Bolus Agent Administered, Detected
_CONVERTED: Final = Tag(0x0020, 0x9172), Tag(0x0008, 0x1155)  # Conversion Source Attributes, Referenced SOP UID
_SINGLE: Final = (
    tags.IMAGE_TYPE, tags.CONTRAST_AGENT, tags.CONTRAST_VOLUME, tags.CONTRAST_SEQUENCE, tags.BODY_PART, tags.KERNEL,
    tags.THICKNESS, tags.ACQUISITION, tags.ACQUISITION_DATE, tags.ACQUISITION_TIME, tags.BURNED_IN, tags.LOSSY,
)  # fmt: skip
# Sequences whose attributes have the tags of a single image. Others hold UIDs and numbers of other images.
_PLAIN: Final = {
    Tag(0x0028, 0x9110): (tags.SPACING, tags.THICKNESS),  # Pixel Measures Sequence
    Tag(0x0020, 0x9113): (tags.POSITION,),  # Plane Position Sequence
    Tag(0x0020, 0x9116): (tags.ORIENTATION,),  # Plane Orientation Sequence
    Tag(0x0028, 0x9145): (tags.SLOPE, tags.INTERCEPT, tags.RESCALE_TYPE),  # Pixel Value Transformation Sequence
    Tag(0x0018, 0x9314): (tags.KERNEL,),  # CT Reconstruction Sequence
    # Unassigned Shared, and Per-Frame, Converted Attributes Sequence: what a converter had no place for.
    Tag(0x0020, 0x9170): _SINGLE,
    Tag(0x0020, 0x9171): _SINGLE,
}


def frames_of(dataset: Dataset) -> list[Fields] | None:
    """Gives the attributes of each frame as those of an image of its own.

    | attribute | of a frame |
    |---|---|
    | (0008,0018) *SOP Instance UID* | of the image it was converted from, if stated; else the file's and its number |
    | (0020,0013) *Instance Number* | its number, from 1, over all files of a concatenation |
    | (0008,0008) *Image Type* | the words of the file and of *Frame Type* |
    | (0018,0012) *Contrast/Bolus Agent Sequence* | empty if *Usage* says that no agent was administered for the frame |
    | (0018,0015) *Body Part Examined* | the meaning of *Anatomic Region*, where the file itself names none |

    Returns:
        The fields, or None if the file does not have a group for each of its frames.
    """
    top = Fields(dataset)
    count = top.whole(tags.FRAMES)
    shared, groups = _first(dataset, SHARED), list(_items(dataset, PER_FRAME))
    if count < 1 or count != len(groups):
        return None
    of_all = _Frame(top, [shared] if shared is not None else [])
    return [
        Fields(dataset, of_all.values, _Frame(top, [group], of_all, number).values)
        for number, group in enumerate(groups)
    ]


class _Frame:
    """The raw values that functional groups give a frame, by the tags of a single image."""

    def __init__(
        self, top: Fields, groups: Iterable[Dataset], shared: "_Frame | None" = None, number: int | None = None
    ) -> None:
        self.values: dict[int, bytes] = {}
        self.source_uid: bytes = shared.source_uid if shared is not None else b""
        for group in groups:
            self._take(top, group)
        if number is not None:
            self._number(top, number)

    def _take(self, top: Fields, group: Dataset) -> None:
        for sequence, wanted in _PLAIN.items():
            item = _first(group, sequence)
            if item is not None:
                self.values |= {int(tag): value for tag in wanted if (value := _raw(item, tag)) is not None}
        kind = _value(group, *_FRAME_TYPES)
        if kind:
            self.values[int(tags.IMAGE_TYPE)] = "\\".join((*top.words(tags.IMAGE_TYPE), "")).encode() + kind
        region = _first(group, _ANATOMY[0])
        meaning = _value(region, _ANATOMY[1], _MEANING) if region is not None else b""
        if meaning and not top.text(tags.BODY_PART):
            self.values[int(tags.BODY_PART)] = meaning
        usage = list(_items(group, _USAGE))
        if usage:
            given = any(_text(item, _GIVEN[0]) != "NO" or _text(item, _GIVEN[1]) == "YES" for item in usage)
            self.values[int(tags.CONTRAST_SEQUENCE)] = b"given" if given else b""
        self.source_uid = _value(group, *_CONVERTED) or self.source_uid
        self._content(top, group)

    def _content(self, top: Fields, group: Dataset) -> None:
        content = _first(group, _CONTENT)
        acquired = (_raw(content, _FRAME_ACQUIRED) if content is not None else b"") or top.raw(ACQUIRED)
        if acquired:
            self.values |= {int(tags.ACQUISITION_DATE): acquired[:8], int(tags.ACQUISITION_TIME): _time(acquired)}
        number = _raw(content, _FRAME_ACQUISITION) if content is not None else None
        if number is not None and len(number) >= 2:
            self.values[int(tags.ACQUISITION)] = b"%d" % struct.unpack(top.order + "H", number[:2])[0]

    def _number(self, top: Fields, number: int) -> None:
        offset = top.raw(FRAME_OFFSET)
        before = struct.unpack(top.order + "I", offset[:4])[0] if len(offset) >= 4 else 0
        self.values[int(tags.INSTANCE)] = b"%d" % (before + number + 1)
        if self.source_uid:
            self.values[int(tags.SOP_UID)] = self.source_uid
        elif top.whole(tags.FRAMES) > 1:
            # No UID holds a bar.
            self.values[int(tags.SOP_UID)] = f"{top.text(tags.SOP_UID)}|{number + 1}".encode()


def parts(top: Fields) -> int:
    """Reads how many files a concatenation has; 0 when the file is whole by itself (PS3.3 C.7.6.16.2.2.4)."""
    number = top.raw(PARTS)
    return int(struct.unpack(top.order + "H", number[:2])[0]) if len(number) >= 2 else 0


def _items(dataset: Dataset, sequence: BaseTag) -> Iterator[Dataset]:
    if sequence in dataset:
        # pydicom parses a sequence of stated length now; its elements stay raw.
        value = dataset[sequence].value
        yield from (item for item in value or () if isinstance(item, Dataset))


def _first(dataset: Dataset, sequence: BaseTag) -> Dataset | None:
    return next(_items(dataset, sequence), None)


def _raw(item: Dataset, tag: BaseTag) -> bytes | None:
    value = item.get_item(tag).value if tag in item else None
    if tag == tags.CONTRAST_SEQUENCE and value:
        return b"given"
    return value if isinstance(value, bytes) else None


def _value(group: Dataset, sequence: BaseTag, tag: BaseTag) -> bytes:
    item = _first(group, sequence)
    return (_raw(item, tag) or b"") if item is not None else b""


def _text(item: Dataset, tag: BaseTag) -> str:
    return (_raw(item, tag) or b"").decode("latin-1").strip(" \0").upper()


def _time(moment: bytes) -> bytes:
    """Cuts VR DT to the time of VR TM: without the date and the offset from UTC."""
    return moment[8:].split(b"+")[0].split(b"-")[0].strip(b" \0")
