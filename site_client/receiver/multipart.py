"""A multipart/related answer with one part (RFC 2387, PS3.18 section 8.7.2), written to a file as it arrives."""

import re
from collections.abc import Callable
from typing import IO, Final

_HEAD_MAX: Final = 1 << 17  # bytes before the part's own, and as much as one read may bring


class MultipartRefused(ValueError):
    """The bytes are no answer with one whole part. The message is a clause and quotes none of them."""


def boundary_of(content_type: str) -> bytes:
    """Return the boundary of a Content-Type.

    Raises:
        MultipartRefused: It is not multipart/related, or has no boundary.
    """
    match = re.search(r';\s*boundary="?([0-9A-Za-z\'()+_,./:=? -]{1,70}?)"?\s*(?:;|$)', content_type)
    if not content_type.lower().startswith("multipart/related") or match is None:
        raise MultipartRefused("it is not multipart/related")
    return match[1].encode("ascii")


def write_part(read: Callable[[], bytes], boundary: bytes, file: IO[bytes], size_max: int) -> int:
    """Write the one part of an answer.

    Args:
        read: Returns the next bytes of the body, and none at its end.
        boundary: Of the parts.
        file: Takes the part's bytes, unchanged.
        size_max: bytes that the part may have.

    Returns:
        The part's bytes.

    Raises:
        MultipartRefused: There is no part, more than one, a cut one, or one over `size_max`.
    """
    end = b"\r\n--" + boundary
    buffer, head = b"\r\n", -1  # the first boundary may stand at the very beginning
    while head < 0:
        if len(buffer) > _HEAD_MAX:
            raise MultipartRefused("its head is too long")
        buffer += _more(read)
        start = buffer.find(end)
        head = buffer.find(b"\r\n\r\n", start) if start >= 0 else -1
    buffer = buffer[head + 4 :]
    written = 0
    while (at := buffer.find(end)) < 0:
        # A boundary may be split between two reads: its length less one byte stays.
        safe = max(0, len(buffer) - len(end) + 1)
        written += safe
        if written > size_max:
            raise MultipartRefused("it is over object_max_mib")
        file.write(buffer[:safe])
        buffer = buffer[safe:] + _more(read)
    written += at
    if written > size_max:
        raise MultipartRefused("it is over object_max_mib")
    file.write(buffer[:at])
    rest = buffer[at + len(end) :]
    while len(rest) < 2:
        rest += _more(read)
    if not rest.startswith(b"--"):
        raise MultipartRefused("it has more than one part")
    return written


def _more(read: Callable[[], bytes]) -> bytes:
    if not (data := read()):
        raise MultipartRefused("it ended too early")
    return data
