"""Slices decoded for the eyes of this site: a small picture in the brain window, and the measures of the content."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from site_client.ingest.files.hounsfield import may_have_wrapped, to_hu
from site_client.ingest.files.readers import shared_readers
from site_client.ingest.files.slices import Slice
from site_client.ingest.reasons import Reason
from site_client.ingest.series.assess import SAMPLED
from site_client.ingest.series.content import Content, measure
from site_client.ingest.series.volume import have_wrapped

WINDOW_CENTER_HU: Final = 40
WINDOW_WIDTH_HU: Final = 80
PICTURE_PX: Final = 128


def measure_content(paths: Sequence[Path]) -> list[Content] | Reason:
    """Decodes and measures the sample of slices by which a series is assessed.

    Args:
        paths: All slices, caudal to cranial.

    Returns:
        The measures, or the code of the first slice that cannot be decoded.
    """
    last = len(paths) - 1
    slices = _decoded([paths[index] for index in sorted({round(fraction * last) for fraction in SAMPLED})])
    if isinstance(slices, Reason):
        return slices
    return [
        measure(hu, (image.spacing_mm[0], image.spacing_mm[1])) for image, hu in zip(slices, _hu(slices), strict=True)
    ]


def picture(path: Path) -> bytes | Reason:
    """Makes a PNG of one slice in the brain window, at most PICTURE_PX each way; a code when it cannot be decoded."""
    slices = _decoded([path])
    if isinstance(slices, Reason):
        return slices
    hu = _hu(slices)[0]
    step = -(-max(hu.shape) // PICTURE_PX)
    low = WINDOW_CENTER_HU - WINDOW_WIDTH_HU / 2
    gray = np.clip((hu[::step, ::step].astype(np.float32) - low) * (255 / WINDOW_WIDTH_HU), 0, 255)
    return png(np.rint(gray).astype(np.uint8))


def png(gray: NDArray[np.uint8]) -> bytes:
    """Encodes uint8[H, W] as a grayscale PNG (ISO/IEC 15948)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = gray.shape
    # Eight bits of one channel; each row begins with its filter, of which 0 is none.
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in gray)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def _decoded(paths: Sequence[Path]) -> list[Slice] | Reason:
    slices: list[Slice] = []
    # By the reader processes: the bytes are a stranger's, here as in a scan.
    for result in shared_readers().slices(paths):
        if isinstance(result, Reason):
            return result
        slices.append(result)
    return slices


def _hu(slices: Sequence[Slice]) -> list[NDArray[np.int16]]:
    wrapped = have_wrapped(slices)
    return [to_hu(image.stored, image.scale, wrapped and may_have_wrapped(image.scale)) for image in slices]
