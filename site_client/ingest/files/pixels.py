"""One file -> its digest, its stored values and their scale. Only this file decodes pixel data."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from site_client.errors import SeriesUnreadable
from site_client.ingest.files import tags
from site_client.ingest.files.decoders import RAW_SYNTAXES, encoding_syntax
from site_client.ingest.files.hounsfield import Scale
from site_client.ingest.files.tags import Fields
from site_client.ingest.reasons import Reason


@dataclass(frozen=True, eq=False)
class Slice:
    """One decoded image. `stored`: int32[H, W] in stored units. `sha256`: over the whole file. Lengths in mm."""

    sha256: bytes
    stored: NDArray[np.int32]
    scale: Scale
    spacing_mm: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    thickness_mm: float


def digest(path: Path) -> bytes:
    """Computes the SHA-256 of a file.

    Raises:
        SeriesUnreadable: Q_READ.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        raise _unreadable(Reason.Q_READ) from None


def read_slice(path: Path) -> Slice:
    """Reads and decodes one file.

    Raises:
        SeriesUnreadable: Q_READ, Q_NO_DECODER, Q_MISSING_TAG or Q_DECODE.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise _unreadable(Reason.Q_READ) from None
    # Once into memory: digest and pixels are of the same bytes, even if the archive replaces the file meanwhile.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=[*tags.READ, *tags.PIXELS], force=True)
            fields = Fields(dataset)
            slope, intercept = fields.number(tags.SLOPE), fields.number(tags.INTERCEPT)
            stored = _stored(dataset)
    except Exception as error:  # decoders raise all kinds, with values in them: only the kind of failure goes on
        lacks_decoder = isinstance(error, NotImplementedError) or "missing required dependencies" in str(error)
        raise _unreadable(Reason.Q_NO_DECODER if lacks_decoder else Reason.Q_DECODE) from None
    if slope is None or intercept is None or stored.ndim != 2:
        raise _unreadable(Reason.Q_MISSING_TAG)
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    return Slice(
        sha256=hashlib.sha256(data).digest(),
        stored=stored,
        scale=Scale(slope, intercept, bits, signed, _padding(dataset, signed)),
        spacing_mm=fields.numbers(tags.SPACING, 2),
        position=fields.numbers(tags.POSITION, 3),
        orientation=fields.numbers(tags.ORIENTATION, 6),
        thickness_mm=max(0.0, fields.number(tags.THICKNESS) or 0.0),
    )


def _stored(dataset: FileDataset) -> NDArray[np.int32]:
    _complete(dataset)
    # Wide enough for any 16-bit value, signed or not, and for the shifts below.
    raw = np.asarray(dataset.pixel_array).astype(np.int32)
    bits = int(dataset.BitsStored)
    if bits >= int(dataset.BitsAllocated) or dataset.file_meta.TransferSyntaxUID not in RAW_SYNTAXES:
        return raw
    # Unused high bits may hold an old overlay, and a sign may stop at bit `BitsStored` (PS3.5 section 8.1.1).
    raw = (raw >> (int(dataset.HighBit) + 1 - bits)) & ((1 << bits) - 1)
    return np.where(raw >> (bits - 1) == 1, raw - (1 << bits), raw) if dataset.PixelRepresentation else raw


def _complete(dataset: FileDataset) -> None:
    """Fills in, in memory only, the elements that files without a meta header or files of the RSNA set lack."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(encoding_syntax(dataset))
    if "SamplesPerPixel" not in dataset:
        dataset.SamplesPerPixel = 1
    if "PhotometricInterpretation" not in dataset:
        dataset.PhotometricInterpretation = "MONOCHROME2"
    if "HighBit" not in dataset:
        dataset.HighBit = int(dataset.BitsStored) - 1


def _padding(dataset: FileDataset, signed: bool) -> tuple[int, ...]:
    """Reads Pixel Padding Value and its range limit, signed or unsigned as the pixels are, whatever VR was written."""
    values = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = dataset.get(name)
        if isinstance(value, bytes) and len(value) >= 2:
            value = int.from_bytes(value[:2], "little")
        if isinstance(value, int):
            low = value & 0xFFFF  # as stored: some write it signed under VR US, or the other way round
            values.append(low - 0x10000 if signed and low >= 0x8000 else low)
    return tuple(values)


def _unreadable(reason: Reason) -> SeriesUnreadable:
    return SeriesUnreadable(
        f"an image of a ready series cannot be used: {reason.value} ({reason.name}); the next scan puts it aside",
        reason.name,
    )
