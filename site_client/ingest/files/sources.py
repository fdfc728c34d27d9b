"""Images as bytes, wherever they lie: in a file of the export, or in an archive there. For reader processes only."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from site_client.ingest.files.addresses import parse_address
from site_client.ingest.files.archives import INNER_BYTES_MAX, Archives
from site_client.untrusted_files import open_regular

ARCHIVES: Final = Archives()  # of this process, which has one thread


@contextmanager
def open_image(path: Path, limit_bytes: int) -> Iterator[BinaryIO]:
    """Opens the file, or unpacks the member, in which an image or a frame lies.

    Args:
        path: An address.
        limit_bytes: Of a file. A member may have INNER_BYTES_MAX, too, because it is unpacked in memory.

    Raises:
        ValueError: No regular file, or a larger one.
        OSError: It cannot be read.
        SeriesUnreadable: The archive or the member cannot be used.
    """
    address = parse_address(path)
    if address.members:
        limit_bytes = min(limit_bytes, INNER_BYTES_MAX)
        yield io.BytesIO(ARCHIVES.member(address, limit_bytes, keep=address.frame is not None))
    else:
        with open_regular(address.file, limit_bytes) as file:
            yield file
