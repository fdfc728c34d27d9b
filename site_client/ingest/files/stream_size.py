"""The size that a compressed stream claims for itself, which decoders believe more than the header around it.

Sources: ISO/IEC 10918-1 B.2.2 (JPEG), ISO/IEC 14495-1 C.2.2 (JPEG-LS), ISO/IEC 15444-1 A.5.1 (JPEG 2000, also HTJ2K).
"""

import struct

_JPEG_START, _CODESTREAM_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
# Start-of-frame markers: of all JPEG processes but those that mean something else, and of JPEG-LS.
_JPEG_LS_FRAME = 0xF7
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {_JPEG_LS_FRAME}
_JPEG_END = b"\xff\xd9"
_PADDING_MAX = 16  # the end and what writers put behind it to reach an even length, or a multiple of eight


def stream_size(stream: bytes) -> tuple[int, int, int] | None:
    """Reads rows, columns and components; None if the stream does not begin as one of these.

    A damaged stream may name any size. Decoders allocate it, and work through it, before they notice.

    Raises:
        ValueError: A JPEG or JPEG-LS stream lacks its end. Where a copy that broke off has left zeros, a decoder of
            JPEG makes an image of them. Of JPEG-LS, CharLS takes seconds to refuse even a small one.
    """
    if stream.startswith(_CODESTREAM_START):
        if len(stream) < 42:
            return None
        width, height, left, top = struct.unpack(">4I", stream[8:24])
        return height - top, width - left, int.from_bytes(stream[40:42], "big")
    if not stream.startswith(_JPEG_START):
        return None
    place = 2
    while place + 10 <= len(stream) and stream[place] == 0xFF:
        marker, length = stream[place + 1], int.from_bytes(stream[place + 2 : place + 4], "big")
        if marker in _FRAMES:
            if _JPEG_END not in stream.rstrip(b"\0")[-_PADDING_MAX:]:
                raise ValueError("a stream without its end")
            rows, columns = struct.unpack(">2H", stream[place + 5 : place + 9])
            return rows, columns, stream[place + 9]
        # 0xFF before a marker is a fill byte.
        place += 1 if marker == 0xFF else 2 + length
    return None
