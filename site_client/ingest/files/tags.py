"""The attributes that ingest reads, and reading them from raw bytes. Nothing else of a header is ever touched."""

import math
import re
import struct

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from site_client.ingest.files.header import Kernel

IMAGE_TYPE = Tag(0x0008, 0x0008)
SOP_CLASS = Tag(0x0008, 0x0016)
SOP_UID = Tag(0x0008, 0x0018)
MODALITY = Tag(0x0008, 0x0060)
PATIENT_ID = Tag(0x0010, 0x0020)
CONTRAST_AGENT = Tag(0x0018, 0x0010)
CONTRAST_SEQUENCE = Tag(0x0018, 0x0012)
BODY_PART = Tag(0x0018, 0x0015)
THICKNESS = Tag(0x0018, 0x0050)
CONTRAST_VOLUME = Tag(0x0018, 0x1041)
KERNEL = Tag(0x0018, 0x1210)
STUDY_UID = Tag(0x0020, 0x000D)
SERIES_UID = Tag(0x0020, 0x000E)
ACQUISITION = Tag(0x0020, 0x0012)
INSTANCE = Tag(0x0020, 0x0013)
POSITION = Tag(0x0020, 0x0032)
ORIENTATION = Tag(0x0020, 0x0037)
FRAME_UID = Tag(0x0020, 0x0052)
EXPECTED = Tag(0x0020, 0x1209)
SAMPLES = Tag(0x0028, 0x0002)
FRAMES = Tag(0x0028, 0x0008)
ROWS = Tag(0x0028, 0x0010)
COLUMNS = Tag(0x0028, 0x0011)
SPACING = Tag(0x0028, 0x0030)
BITS_ALLOCATED = Tag(0x0028, 0x0100)
BURNED_IN = Tag(0x0028, 0x0301)
INTERCEPT = Tag(0x0028, 0x1052)
SLOPE = Tag(0x0028, 0x1053)
RESCALE_TYPE = Tag(0x0028, 0x1054)
LOSSY = Tag(0x0028, 0x2110)

READ = tuple(value for value in list(globals().values()) if isinstance(value, BaseTag))
# Needed beside READ to decode: photometric interpretation, planar configuration, bits, padding, the pixels themselves.
_IMAGE = (0x0004, 0x0006, 0x0101, 0x0102, 0x0103, 0x0120, 0x0121)
PIXELS = (
    *(Tag(0x0028, element) for element in _IMAGE),
    *(Tag(0x7FE0, element) for element in (0x0001, 0x0002, 0x0010)),
)

_SPREADSHEET_NUMBER = re.compile(r"\d[.,]?\d*E\+\d+", re.IGNORECASE)


class Fields:
    """Typed access to a data set's raw elements. Absent or malformed gives the empty value, never an exception."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._order = ">" if dataset.original_encoding[1] is False else "<"

    def present(self, tag: BaseTag) -> bool:
        """Whether the element is there and not empty."""
        return tag in self._dataset and bool(self._dataset.get_item(tag).value)

    def text(self, tag: BaseTag) -> str:
        """First value of a text, without padding; "" when absent."""
        return next(iter(self._values(tag)), "")

    def words(self, tag: BaseTag) -> tuple[str, ...]:
        """All values in upper case."""
        return tuple(value.upper() for value in self._values(tag))

    def uid(self, tag: BaseTag) -> str | None:
        """A UID, or what stands for one (RSNA: "ID_..."). None when it cannot tell two objects apart."""
        uid = self.text(tag)
        return uid if is_uid(uid) else None

    def numbers(self, tag: BaseTag, count: int) -> tuple[float, ...]:
        """Exactly `count` finite decimal numbers, or ()."""
        values = self._values(tag)
        try:
            numbers = tuple(float(value.replace(",", ".")) for value in values)
        except ValueError:
            return ()
        return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else ()

    def number(self, tag: BaseTag) -> float | None:
        """One finite decimal number (the first value)."""
        first = self.text(tag).replace(",", ".")
        try:
            number = float(first)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def whole(self, tag: BaseTag) -> int:
        """A whole number, binary (US) or text (IS); -1 when absent."""
        raw = self._raw(tag)
        if tag in (SAMPLES, ROWS, COLUMNS, BITS_ALLOCATED):
            return int(struct.unpack(self._order + "H", raw[:2])[0]) if len(raw) >= 2 else -1
        number = self.number(tag)
        return int(number) if number is not None and abs(number) < 2**31 else -1

    def _values(self, tag: BaseTag) -> list[str]:
        raw = self._raw(tag)
        return [value.strip(" \0\t\r\n") for value in raw.decode("latin-1").split("\\")] if raw else []

    def _raw(self, tag: BaseTag) -> bytes:
        if tag not in self._dataset:
            return b""
        value = self._dataset.get_item(tag).value
        return value if isinstance(value, bytes) else b""


def is_uid(text: str) -> bool:
    """Whether a text can serve as a UID. A spreadsheet's 1.2E+30 cannot: it stands for many."""
    return 0 < len(text) <= 128 and text.isprintable() and " " not in text and not _SPREADSHEET_NUMBER.fullmatch(text)


def kernel_class(kernel: tuple[str, ...]) -> Kernel:
    """Soft-tissue or bone, by the vendors' naming (a table of habits, used only to prefer one reconstruction)."""
    name = kernel[0].replace(" ", "") if kernel else ""
    siemens = re.match(r"[A-Z]{1,2}(\d\d)", name)
    toshiba = re.match(r"FC(\d\d)", name)
    if re.match(r"BONE|EDGE|LUNG|SHARP|HARD|DETAIL|Y[A-E]$|[DEL]$|ULTRA", name):
        return "bone"
    if re.match(r"STD|STAND|SOFT|SMOOTH|BRAIN|HEAD|NEURO|U[A-C]$|[A-C]$", name):
        return "soft"
    if toshiba:
        return "bone" if int(toshiba[1]) in (30, 31, 35, 50, 51, 52, 80, 81, 82, 83, 84, 85, 86) else "soft"
    if siemens:
        return "soft" if int(siemens[1]) < 50 else "bone"
    return "unknown"
