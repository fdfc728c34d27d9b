"""One file -> its digest, its stored values and their scale. Only this file decodes pixel data.

It decodes files of strangers with libraries in C, so it runs in a reader process only (`reader_process`).
"""

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from site_client.errors import SeriesUnreadable
from site_client.ingest.files import tags
from site_client.ingest.files.addresses import parse_address
from site_client.ingest.files.decoders import RAW_SYNTAXES, RLE, encoding_syntax, has_decoder
from site_client.ingest.files.hounsfield import Scale
from site_client.ingest.files.multiframe import MULTIFRAME_BYTES_MAX
from site_client.ingest.files.parse import LimitExceeded, parse
from site_client.ingest.files.pixel_length import needed_bytes
from site_client.ingest.files.single_frames import FRAMES
from site_client.ingest.files.slices import Slice, unreadable
from site_client.ingest.files.sources import open_image
from site_client.ingest.files.stream_size import stream_size
from site_client.ingest.files.tags import Fields
from site_client.ingest.reasons import Reason
from site_client.ingest.rules import FILE_BYTES_MAX

SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"  # PS3.5 section 7.5; encapsulated data is little endian


def read_slice(path: Path, limit_bytes: int = FILE_BYTES_MAX, step: int = 1) -> Slice:
    """Reads and decodes one file.

    Args:
        path: The address of a file, a member or a frame.
        limit_bytes: Of a file with one image, of its inflated bytes, and of an image.
        step: Every how many pixels to keep.

    Raises:
        SeriesUnreadable: Q_READ, Q_NO_DECODER, Q_MISSING_TAG, Q_DECODE_LIMIT or Q_DECODE; or the archive's code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset, fields, digest = _image(path, limit_bytes)
            if not has_decoder(dataset.file_meta.TransferSyntaxUID):
                raise unreadable(Reason.Q_NO_DECODER)
            if needed_bytes(fields) > limit_bytes:
                raise LimitExceeded
            slope, intercept = fields.number(tags.SLOPE), fields.number(tags.INTERCEPT)
            stored = _stored(dataset)
            bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
            padding = _padding(dataset, signed)
    except SeriesUnreadable:
        raise
    except (MemoryError, RecursionError, LimitExceeded):
        raise unreadable(Reason.Q_DECODE_LIMIT) from None
    except Exception:  # decoders raise all kinds, with values in them: only the kind of failure goes on
        raise unreadable(Reason.Q_DECODE) from None
    if not slope or intercept is None:
        raise unreadable(Reason.Q_MISSING_TAG)
    if stored.ndim != 2:  # several frames, of which the header does not tell
        raise unreadable(Reason.Q_DECODE)
    return Slice(
        sha256=digest,
        stored=stored[::step, ::step],
        shape=stored.shape,
        step=step,
        scale=Scale(slope, intercept, bits, signed, padding),
        spacing_mm=fields.numbers(tags.SPACING, 2),
        position=fields.numbers(tags.POSITION, 3),
        orientation=fields.numbers(tags.ORIENTATION, 6),
        thickness_mm=max(0.0, fields.number(tags.THICKNESS) or 0.0),
    )


def _image(path: Path, limit_bytes: int) -> tuple[FileDataset, Fields, bytes]:
    """Reads an image as a data set of one frame, its fields and the digest of its bytes."""
    frame = parse_address(path).frame
    try:
        with open_image(path, limit_bytes if frame is None else MULTIFRAME_BYTES_MAX) as file:
            if frame is not None:
                single = FRAMES.frame(file, frame, limit_bytes)
                _complete(single.dataset)
                return single.dataset, single.fields, single.digest
            # Once into memory: digest and pixels are of the same bytes, even if the file is replaced meanwhile.
            data = file.read(limit_bytes + 1)
    except OSError:
        raise unreadable(Reason.Q_READ) from None
    except ValueError:  # no regular file any more, or a larger one
        raise unreadable(Reason.Q_DECODE_LIMIT) from None
    dataset = _with_pixels(data, limit_bytes)
    return dataset, Fields(dataset), hashlib.sha256(data).digest()


def _with_pixels(data: bytes, limit_bytes: int) -> FileDataset:
    """Parses a file with its pixel data."""

    def parsed(data: bytes) -> FileDataset:
        return parse(io.BytesIO(data), len(data), limit_bytes, (*tags.READ, *tags.PIXELS), False).dataset

    dataset = parsed(data)
    # pydicom drops encapsulated pixel data that lacks its last delimiter, which `pixel_length` tolerates.
    if "PixelData" not in dataset:
        dataset = parsed(data + SEQUENCE_DELIMITER)
    _complete(dataset)
    return dataset


def _stored(dataset: FileDataset) -> NDArray[np.int32]:
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in RAW_SYNTAXES and syntax != RLE:
        claimed = stream_size(get_frame(dataset.PixelData, 0, number_of_frames=1))
        if claimed is not None and claimed != (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)):
            raise ValueError("a stream of another size than its header")
        # Wide enough for any 16-bit value, signed or not.
        return np.asarray(dataset.pixel_array).astype(np.int32)
    # Not `pixel_array`: pydicom takes the lowest bits for the value, wherever (0028,0102) *High Bit* says it is.
    raw, _ = get_decoder(syntax).as_array(dataset, raw=True, correct_unused_bits=False)
    bits, high, allocated = int(dataset.BitsStored), int(dataset.HighBit), int(dataset.BitsAllocated)
    values: NDArray[np.int32] = raw.astype(np.int32)
    if not bits <= high + 1 <= allocated:
        raise ValueError("bits outside the cell")
    if bits == allocated:
        return values
    # Unused bits may hold an old overlay, and a sign may stop at the high bit (PS3.5 section 8.1.1).
    values = (values >> (high + 1 - bits)) & ((1 << bits) - 1)
    if dataset.PixelRepresentation:
        values = np.where(values >> (bits - 1) == 1, values - (1 << bits), values)
    return values


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
