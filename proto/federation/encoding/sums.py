"""Turns a site's update into its words, and the words of a cohort's sum into numbers. Nothing here masks.

The published sum is the upload's form again (header words, then lanes, uint64 little-endian) with lanes just wide
enough for the members that are in it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federation.encoding import lanes
from federation.encoding.header import HeaderSum, SiteHeader, read_header, write_header
from federation.encoding.layout import Layout
from federation.encoding.quantize import norm_of, quantize
from federation.encoding.rotation import rotate
from federation.errors import EncodingRefused, Malformed

# float32 rounding after clipping may leave an update this much longer than the clip norm.
NORM_SLACK = 1e-4


@dataclass(frozen=True, eq=False)
class DecodedSum:
    """A cohort's sum, unmasked and in range.

    Attributes:
        members: Uploads in the sum.
        header_words: uint64[layout.header_words] as summed.
        header: The same words, read.
        levels: uint16 or int32[layout.coordinates], each coordinate's sum of levels, 0 to members * level_max; empty
            after an evaluation-only round.
    """

    members: int
    header_words: NDArray[np.uint64]
    header: HeaderSum
    levels: NDArray[np.integer]


def encode(
    layout: Layout, delta: NDArray[np.float32] | None, header: SiteHeader, rng: np.random.Generator
) -> NDArray[np.uint64]:
    """Encodes a site's update: uint64[layout.words], before masking.

    Args:
        layout: Layout of the round.
        delta: f32[layout.parameters], already clipped; None in an evaluation-only round. It is weighted here by
            min(header.studies, cap) / cap.
        header: The site's header.
        rng: Rounds the coordinates. Its draws have to be uniform; they need not be secret.

    Raises:
        EncodingRefused: `delta` has another length, exceeds the clip norm, or is not finite.
    """
    words = np.empty(layout.words, np.uint64)
    words[: layout.header_words] = write_header(layout, header)
    if layout.parameters == 0:
        if delta is not None:
            raise EncodingRefused("expected no update in an evaluation-only round, got one")
        return words
    _check_delta(layout, delta)
    assert delta is not None  # _check_delta refuses None
    weight = min(header.studies, layout.weight_cap) / layout.weight_cap
    # Cost: quantized piece by piece, so that one piece at a time exists in float32. Levels take a quarter of that.
    levels = np.concatenate([quantize(layout, piece, rng) for piece in rotate(layout, delta, weight)])
    lanes.pack(levels, layout.lane_width, words[layout.header_words :])
    return words


def decode_sum(layout: Layout, words: NDArray[np.uint64], members: int) -> DecodedSum:
    """Decodes the unmasked sum of `members` uploads, uint64[layout.words].

    Raises:
        EncodingRefused: So many honest members cannot have made this sum. It is worthless.
    """
    layout.check_members(members)
    if words.dtype != np.uint64 or words.shape != (layout.words,):
        raise EncodingRefused(f"expected a sum uint64 [{layout.words}], got {words.dtype} {list(words.shape)}")
    return _read(layout, words, members, layout.lane_width)


def pack_sum(layout: Layout, decoded: DecodedSum) -> bytes:
    """Returns the published form of a sum: `layout.sum_bytes_for(decoded.members)` bytes."""
    words = np.empty(layout.sum_bytes_for(decoded.members) // 8, np.dtype("<u8"))
    words[: layout.header_words] = decoded.header_words
    if layout.parameters:
        lanes.pack(decoded.levels, layout.width_for(decoded.members), words[layout.header_words :])
    return words.tobytes()


def unpack_sum(layout: Layout, data: bytes | memoryview, members: int) -> DecodedSum:
    """Reads the published form of a sum of `members` uploads. One sum has one byte string.

    Raises:
        Malformed: The data has another length.
        EncodingRefused: A value is out of range.
    """
    layout.check_members(members)
    expected = layout.sum_bytes_for(members)
    if len(data) != expected:
        raise Malformed(f"expected a sum of {members} uploads in {expected} bytes, got {len(data)}")
    return _read(layout, np.frombuffer(data, "<u8").astype(np.uint64, copy=False), members, layout.width_for(members))


def _read(layout: Layout, words: NDArray[np.uint64], members: int, width: int) -> DecodedSum:
    header_words = words[: layout.header_words].copy()  # a view would keep the whole upload in memory
    header = read_header(layout, header_words, members)
    levels: NDArray[np.integer] = np.empty(0, np.int32)
    if layout.parameters:
        levels = lanes.unpack(words[layout.header_words :], width, layout.coordinates, members * layout.level_max)
    return DecodedSum(members, header_words, header, levels)


def _check_delta(layout: Layout, delta: NDArray[np.float32] | None) -> None:
    if delta is None:
        raise EncodingRefused("expected an update, got none; only an evaluation-only round has none")
    if delta.dtype != np.float32 or delta.shape != (layout.parameters,):
        raise EncodingRefused(
            f"expected an update float32 [{layout.parameters}], got {delta.dtype} {list(delta.shape)}"
        )
    if (norm := norm_of(delta)) > layout.clip_norm * (1 + NORM_SLACK):
        raise EncodingRefused(f"expected an update clipped to norm {layout.clip_norm}, got norm {norm:g}")
