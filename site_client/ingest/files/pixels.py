"""One file -> its digest, its stored values and their scale. The only place where pixel data is decoded."""

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
from site_client.ingest.files.decoders import RAW_SYNTAXES
from site_client.ingest.files.hounsfield import Scale
from site_client.ingest.files.tags import Fields
from site_client.ingest.reasons import Reason


@dataclass(frozen=True, eq=False)
class Slice:
    """One decoded image, still in stored units: int32[H, W]. `sha256` is over the whole file."""

    sha256: bytes
    stored: NDArray[np.int32]
    scale: Scale
    spacing_mm: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    thickness_mm: float


def digest(path: Path) -> bytes:
    """SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        raise _unreadable(Reason.Q_READ) from None


def read_slice(path: Path) -> Slice:
    """Reads and decodes one file. Raises SeriesUnreadable with Q_READ, Q_NO_DECODER, Q_MISSING_TAG or Q_DECODE."""
    try:
        data = path.read_bytes()
    except OSError:
        raise _unreadable(Reason.Q_READ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _decode(data)


def _decode(data: bytes) -> Slice:
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=[*tags.READ, *tags.PIXELS], force=True)
        fields = Fields(dataset)
        slope, intercept = fields.number(tags.SLOPE), fields.number(tags.INTERCEPT)
        stored = _stored(dataset)
    except Exception as error:  # decoders raise what they like, with values in it: only the kind of failure goes on
        raise _unreadable(Reason.Q_NO_DECODER if _lacks_decoder(error) else Reason.Q_DECODE) from None
    if slope is None or intercept is None or stored.ndim != 2:
        raise _unreadable(Reason.Q_MISSING_TAG)
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    return Slice(
        sha256=hashlib.sha256(data).digest(),
        stored=stored,
        scale=Scale(slope, intercept, bits, signed, _padding(dataset, bits, signed)),
        spacing_mm=fields.numbers(tags.SPACING, 2),
        position=fields.numbers(tags.POSITION, 3),
        orientation=fields.numbers(tags.ORIENTATION, 6),
        thickness_mm=max(0.0, fields.number(tags.THICKNESS) or 0.0),
    )


def _stored(dataset: FileDataset) -> NDArray[np.int32]:
    _complete(dataset)
    raw = np.asarray(dataset.pixel_array).astype(np.int32)
    bits = int(dataset.BitsStored)
    if bits >= int(dataset.BitsAllocated) or dataset.file_meta.TransferSyntaxUID not in RAW_SYNTAXES:
        return raw
    # Unused high bits may hold an old overlay, and a sign may stop at bit `BitsStored` (PS3.5 section 8.1.1).
    raw = (raw >> (int(dataset.HighBit) + 1 - bits)) & ((1 << bits) - 1)
    return np.where(raw >> (bits - 1) == 1, raw - (1 << bits), raw) if dataset.PixelRepresentation else raw


def _complete(dataset: FileDataset) -> None:
    """Fills in what files without a meta header or from the RSNA set leave out, in memory only."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        code = "1.2.840.10008.1.2" + ("" if implicit else ".1" if little else ".2")
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(code)
    if "SamplesPerPixel" not in dataset:
        dataset.SamplesPerPixel = 1
    if "PhotometricInterpretation" not in dataset:
        dataset.PhotometricInterpretation = "MONOCHROME2"
    if "HighBit" not in dataset:
        dataset.HighBit = int(dataset.BitsStored) - 1


def _padding(dataset: FileDataset, bits: int, signed: bool) -> tuple[int, ...]:
    """PixelPaddingValue and its range limit. Read as signed or unsigned by the pixels, whatever VR was written."""
    found = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = dataset.get(name)
        if isinstance(value, bytes) and len(value) >= 2:
            value = int.from_bytes(value[:2], "little")
        if isinstance(value, int):
            low = value & 0xFFFF
            found.append(low - 0x10000 if signed and low >= 0x8000 else low)
    return tuple(found)


def _lacks_decoder(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or "missing required dependencies" in str(error)


def _unreadable(reason: Reason) -> SeriesUnreadable:
    return SeriesUnreadable(
        f"an image of a ready series cannot be used: {reason.value} ({reason.name}); the next scan puts it aside",
        reason.name,
    )
