"""The attributes that ingest reads, and their reading from raw bytes. It touches no other attribute of a header."""

import math
import re
import struct
from collections.abc import Mapping
from datetime import date, datetime, timedelta

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

IMAGE_TYPE = Tag(0x0008, 0x0008)  # Image Type
SOP_CLASS = Tag(0x0008, 0x0016)  # SOP Class UID
SOP_UID = Tag(0x0008, 0x0018)  # SOP Instance UID
STUDY_DATE = Tag(0x0008, 0x0020)  # Study Date
SERIES_DATE = Tag(0x0008, 0x0021)  # Series Date
ACQUISITION_DATE = Tag(0x0008, 0x0022)  # Acquisition Date
STUDY_TIME = Tag(0x0008, 0x0030)  # Study Time
SERIES_TIME = Tag(0x0008, 0x0031)  # Series Time
ACQUISITION_TIME = Tag(0x0008, 0x0032)  # Acquisition Time
ACCESSION = Tag(0x0008, 0x0050)  # Accession Number
MODALITY = Tag(0x0008, 0x0060)  # Modality
CONTRAST_AGENT = Tag(0x0018, 0x0010)  # Contrast/Bolus Agent
CONTRAST_SEQUENCE = Tag(0x0018, 0x0012)  # Contrast/Bolus Agent Sequence
BODY_PART = Tag(0x0018, 0x0015)  # Body Part Examined
THICKNESS = Tag(0x0018, 0x0050)  # Slice Thickness
CONTRAST_VOLUME = Tag(0x0018, 0x1041)  # Contrast/Bolus Volume
KERNEL = Tag(0x0018, 0x1210)  # Convolution Kernel
STUDY_UID = Tag(0x0020, 0x000D)  # Study Instance UID
SERIES_UID = Tag(0x0020, 0x000E)  # Series Instance UID
SERIES_NUMBER = Tag(0x0020, 0x0011)  # Series Number
ACQUISITION = Tag(0x0020, 0x0012)  # Acquisition Number
INSTANCE = Tag(0x0020, 0x0013)  # Instance Number
POSITION = Tag(0x0020, 0x0032)  # Image Position (Patient)
ORIENTATION = Tag(0x0020, 0x0037)  # Image Orientation (Patient)
FRAME_UID = Tag(0x0020, 0x0052)  # Frame of Reference UID
EXPECTED = Tag(0x0020, 0x1209)  # Number of Series Related Instances
SAMPLES = Tag(0x0028, 0x0002)  # Samples per Pixel
FRAMES = Tag(0x0028, 0x0008)  # Number of Frames
ROWS = Tag(0x0028, 0x0010)  # Rows
COLUMNS = Tag(0x0028, 0x0011)  # Columns
SPACING = Tag(0x0028, 0x0030)  # Pixel Spacing
BITS_ALLOCATED = Tag(0x0028, 0x0100)  # Bits Allocated
BURNED_IN = Tag(0x0028, 0x0301)  # Burned In Annotation
INTERCEPT = Tag(0x0028, 0x1052)  # Rescale Intercept
SLOPE = Tag(0x0028, 0x1053)  # Rescale Slope
RESCALE_TYPE = Tag(0x0028, 0x1054)  # Rescale Type
LOSSY = Tag(0x0028, 0x2110)  # Lossy Image Compression

# All tags above and no other: a header's other attributes are never parsed.
READ = tuple(value for value in list(globals().values()) if isinstance(value, BaseTag))
# Beside READ, decoding needs photometric interpretation, planar configuration, bits, padding, and the pixels.
_IMAGE = (0x0004, 0x0006, 0x0101, 0x0102, 0x0103, 0x0120, 0x0121)
PIXELS = (
    *(Tag(0x0028, element) for element in _IMAGE),
    *(Tag(0x7FE0, element) for element in (0x0001, 0x0002, 0x0010)),
)

_BINARY = frozenset(map(int, (SAMPLES, ROWS, COLUMNS, BITS_ALLOCATED)))  # VR US
_SPREADSHEET_NUMBER = re.compile(r"\d[.,]?\d*E\+\d+", re.IGNORECASE)


class Fields:
    """Typed access to a data set's raw elements. An absent or malformed one gives an empty value and raises nothing."""

    def __init__(self, dataset: Dataset, *overlays: Mapping[int, bytes]) -> None:
        """Takes a data set as pydicom read it, whose elements are still raw.

        Args:
            dataset: The data set.
            overlays: Raw values by tag, which count instead of the data set's; later ones prevail.
        """
        # Once, and by plain numbers: pydicom's own look-up takes longer than its parsing.
        self._raw = {int(tag): element.value for tag, element in dataset.items() if isinstance(element.value, bytes)}
        self._present = {int(tag) for tag, element in dataset.items() if element.value}
        self.order = ">" if dataset.original_encoding[1] is False else "<"
        for overlay in overlays:
            self._raw |= overlay
            self._present |= {tag for tag, value in overlay.items() if value}
            self._present -= {tag for tag, value in overlay.items() if not value}

    def raw(self, tag: BaseTag) -> bytes:
        """Reads the bytes of an element, in the byte order `order`; b"" when absent."""
        return self._raw.get(int(tag), b"")

    def present(self, tag: BaseTag) -> bool:
        """Tells whether the element exists and is not empty."""
        return int(tag) in self._present

    def text(self, tag: BaseTag) -> str:
        """Reads the first value of a text, without padding; "" when absent."""
        return next(iter(self._values(tag)), "")

    def words(self, tag: BaseTag) -> tuple[str, ...]:
        """Reads all values in upper case."""
        return tuple(value.upper() for value in self._values(tag))

    def uid(self, tag: BaseTag) -> str | None:
        """Reads a UID, or its substitute (RSNA: "ID_..."); None when it cannot tell two objects apart."""
        uid = self.text(tag)
        return uid if is_uid(uid) else None

    def numbers(self, tag: BaseTag, count: int) -> tuple[float, ...]:
        """Reads exactly `count` finite decimal numbers (VR DS); else gives ()."""
        values = self._values(tag)
        try:
            numbers = tuple(float(value.replace(",", ".")) for value in values)
        except ValueError:
            return ()
        return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else ()

    def number(self, tag: BaseTag) -> float | None:
        """Reads the first value as a finite decimal number (VR DS)."""
        first = self.text(tag).replace(",", ".")
        try:
            number = float(first)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def since_study_s(self) -> float | None:
        """Computes seconds from the study's begin to the image's acquisition, or else its series' begin.

        No date is left in the difference. Without dates all times are of one day; without the study's time its day
        counts. None when no time is stated.
        """
        for day, time in ((ACQUISITION_DATE, ACQUISITION_TIME), (SERIES_DATE, SERIES_TIME)):
            taken = _time(self.text(time))
            if taken is not None:
                study_day = _date(self.text(STUDY_DATE))
                days = (_date(self.text(day)) or study_day) - study_day if study_day else timedelta()
                return (days + taken - (_time(self.text(STUDY_TIME)) or timedelta())).total_seconds()
        return None

    def whole(self, tag: BaseTag) -> int:
        """Reads a whole number, binary (VR US) or text (VR IS); -1 when absent."""
        raw = self._raw.get(int(tag), b"")
        if int(tag) in _BINARY:
            return int(struct.unpack(self.order + "H", raw[:2])[0]) if len(raw) >= 2 else -1
        number = self.number(tag)
        return int(number) if number is not None and abs(number) < 2**31 else -1

    def _values(self, tag: BaseTag) -> list[str]:
        raw = self._raw.get(int(tag))
        # Latin-1 decodes any byte: (0008,0005) *Specific Character Set* is often wrong, and keywords are ASCII.
        return [value.strip(" \0\t\r\n") for value in raw.decode("latin-1").split("\\")] if raw else []


def tag_of(text: str) -> BaseTag:
    """Converts "gggg,eeee", two hexadecimal numbers of four digits."""
    group, element = text.split(",")
    return Tag(int(group, 16), int(element, 16))


def _date(text: str) -> date | None:
    try:
        return datetime.strptime(text.replace(".", "")[:8], "%Y%m%d").date()
    except ValueError:
        return None


def _time(text: str) -> timedelta | None:
    """Reads VR TM: HHMMSS.FFFFFF, of which the end may be missing, and colons as old files have them."""
    match = re.fullmatch(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d*)?)?", text)
    if match is None:
        return None
    return timedelta(hours=int(match[1]), minutes=int(match[2] or 0), seconds=float(match[3] or 0))


def is_uid(text: str) -> bool:
    """Tells whether a text can serve as a UID. A spreadsheet's 1.2E+30 cannot: it stands for many UIDs."""
    return 0 < len(text) <= 128 and text.isprintable() and " " not in text and not _SPREADSHEET_NUMBER.fullmatch(text)
